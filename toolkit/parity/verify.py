"""Is what runs what was trained? Every export against the tuned model, link by link; the result is a certificate."""

from __future__ import annotations

import functools
import importlib.metadata
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from toolkit.models.safetensors_file import link_or_copy
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.certificate import SCHEMA, Subject, blame_of, certificate_text, chain_of, verdict_of
from toolkit.parity.choice import served_as, served_type, smallest_that_passes
from toolkit.parity.comparison import compare_weights
from toolkit.parity.encodings import Encodings
from toolkit.parity.exported import Exported, FolderWeights, GGUFWeights
from toolkit.parity.eyes import Eyes
from toolkit.parity.limits import largest_rest
from toolkit.parity.projector import NAME, projector_subject, seeing
from toolkit.parity.subjects import GGUFUnderTest, Tuned, adapter_subject, gguf_subject, merged_subject
from toolkit.parity.summary_in_file import write_summary
from toolkit.recipe.schema import Recipe
from toolkit.report.page import write_page
from toolkit.run.artifacts import Artifact, file_sha256, write_text
from toolkit.run.bars import passing_bar
from toolkit.run.facts import AdapterFacts, CertificateFacts, GGUFFacts, GoldenFacts, ModelFacts


def verify(
    recipe: Recipe,
    adapter: Artifact[AdapterFacts],
    golden: Artifact[GoldenFacts],
    model: Artifact[ModelFacts] | None,
    gguf: Artifact[GGUFFacts],
    quantized: Artifact[GGUFFacts],
    out: Path,
    imatrix: Path | None = None,
) -> CertificateFacts:
    """Compare the adapter, the merged folder and every GGUF with the tuned model, and write the certificate into `out`.

    Args:
        model: the merged folder, where the recipe asks for one.
        imatrix: the importance matrix that files were quantized with.

    Where it passes, the file that goes to Ollama is copied there with the certificate's summary in its metadata. A failing
    verdict is written, not raised. See `toolkit.parity.certificate` for the schema and for what counts.

    Raises:
        DataError: a file that cannot be read.
    """
    tuned = Tuned.of(recipe, adapter, golden, load_tokenizer(adapter.folder, adapter.facts.base.folder))
    files = []
    first = next(iter(gguf.facts.files), None)
    converted = gguf.folder / first.name if first is not None else None
    for artifact in (gguf, quantized):
        for file in artifact.facts.files:
            path = artifact.folder / file.name
            made_from = ("merged" if model else "") if artifact is gguf or first is None else first.file_type
            with_matrix = imatrix if artifact is quantized else None
            files.append(
                GGUFUnderTest(
                    path, file.file_type, file.file_type, made_from=made_from, source=converted, imatrix=with_matrix
                )
            )
    mmproj = gguf.folder / gguf.facts.mmproj.name if gguf.facts.mmproj is not None else None
    merged = model.folder if model is not None else None
    encodings = Encodings()
    subjects = judge(tuned, merged, files, publishing=True, mmproj=mmproj, encodings=encodings)
    passing = smallest_that_passes(recipe, subjects, files)
    serve = served_type(recipe, subjects, files)
    subjects = served_as(serve, recipe, subjects)
    certificate = certificate_of(
        tuned,
        subjects,
        hashes(
            adapter.folder,
            golden.folder,
            *([merged] if merged else []),
            *(f.path for f in files),
            *([mmproj] if mmproj else []),
        ),
    )
    if certificate["verdict"] == "pass":
        certificate["certified"] = _certified(next(f.path for f in files if f.file_type == serve), out, certificate)
        if mmproj is not None:
            link_or_copy(mmproj, out / mmproj.name)
            if rules := tuned.trained.pictures:
                encodings.save(out / mmproj.name, (rules.min_tokens, rules.max_tokens))
    write_text(out / "certificate.json", certificate_text(certificate))
    write_page(certificate, out)
    checks = {f"{s.name}: {check.name}": check.verdict for s in subjects for check in s.checks}
    return CertificateFacts(
        verdict=certificate["verdict"],
        checks=checks,
        served_file=certificate["served_file"],
        served_mmproj=mmproj.name if mmproj is not None else "",
        message=certificate["message"],
        link=certificate["blame"]["link"] if certificate["blame"] else "",
        passing="" if certificate["verdict"] == "pass" else passing,
    )


def _certified(judged: Path, out: Path, certificate: dict[str, Any]) -> dict[str, Any]:
    with _progress() as progress:
        task = progress.add_task("the summary, into the file", total=judged.stat().st_size)
        return write_summary(judged, out / judged.name, certificate, lambda size: progress.advance(task, size))


def judge(
    tuned: Tuned,
    merged: Path | None,
    files: list[GGUFUnderTest],
    publishing: bool = False,
    mmproj: Path | None = None,
    encodings: Encodings | None = None,
) -> list[Subject]:
    """Judge the adapter and whatever was made of it, with progress on stderr.

    Args:
        publishing: whether the verdict lets a file go to Ollama.
        mmproj: the file that sees, beside the language models' files.
        encodings: get what it makes of the golden pictures.
    """
    ggufs = {file.name: GGUFWeights(file.path, tuned.tuning.layout, file.imatrix) for file in files}
    exports: dict[str, Exported] = dict(ggufs)
    eyes = None
    if mmproj is not None:
        tuned = seeing(tuned)
        eyes = Eyes.of(mmproj, tuned.trained.pictures, tuned.tokenizer, tuned.goldens.folder, encodings)
        exports[NAME] = sees = GGUFWeights(mmproj, tuned.tuning.projector)
    if merged is not None:
        exports["merged"] = FolderWeights(merged)
    subjects = [subject for subject in [adapter_subject(tuned, publishing)] if subject.checks]
    with _progress() as progress:
        names = tuned.tuning.names()
        task = progress.add_task("weights, tensor by tensor", total=len(names))
        compared = compare_weights(tuned.tuning, exports, largest_rest, lambda: progress.advance(task))
        if merged is not None:
            subjects.append(merged_subject(tuned, merged, compared["merged"]))
        if eyes is not None:
            task = progress.add_task("the golden pictures", total=len(tuned.goldens.pictured))
            made_from, tick = "merged" if merged else "", functools.partial(progress.advance, task)
            subjects.append(projector_subject(tuned, eyes, sees, compared[NAME], files[0].path, made_from, tick))
        for file in files:
            task = progress.add_task(f"{file.name} answers", total=len(tuned.goldens.rows))
            tick = functools.partial(progress.advance, task)
            subjects.append(gguf_subject(tuned, file, ggufs[file.name], compared[file.name], tick, eyes))
    return subjects


def certificate_of(tuned: Tuned, subjects: list[Subject], files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The certificate as it is written."""
    verdict, message, warnings = verdict_of(subjects)
    blame = blame_of(subjects)
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "message": message,
        "blame": blame.model_dump() if blame else None,
        "chain": [link.model_dump() for link in chain_of(subjects)],
        "served_file": next((s.file for s in subjects if s.served), ""),
        "certified": None,
        "warnings": warnings,
        "reference": _reference(tuned),
        "subjects": [subject.as_json() for subject in subjects],
        "files": files,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("tune2ollama", "torch", "transformers", "peft", "bitsandbytes", "llama-cpp-python", "gguf")
        },
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _reference(tuned: Tuned) -> dict[str, Any]:
    facts, source = tuned.goldens.facts, tuned.answers_from
    answers = (
        "its own greedy answers" if source is None else f"the greedy answers of {source.name}, which is judged here"
    )
    return {
        "what": f"the tuned model as it was trained, teacher-forced on {answers}, float32",
        "prompts": facts.prompts,
        "positions": facts.positions,
        "conversations": len(tuned.goldens.conversations),
        "forward": facts.forward,
        "parameters": tuned.parameters,
        "engine": "llama.cpp on the CPU, F32 cache, no flash attention",
    }


def hashes(*paths: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file, by its folder's name and its own; folders are read one level deep.

    Where two files would be called the same, more of their folders' names tells them apart.
    """
    files = dict.fromkeys(
        file.parent.resolve() / file.name
        for path in paths
        for file in (sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path])
    )
    return {
        name: {"sha256": file_sha256(file), "bytes": file.stat().st_size}
        for file, name in _told_apart([*files]).items()
    }


def _told_apart(files: list[Path]) -> dict[Path, str]:
    """The shortest end of each path, of two parts or more, that no other has."""
    names: dict[Path, str] = {}
    left, parts = files, 2
    while left:
        ends = {file: "/".join(file.parts[-parts:]) for file in left}
        seen = Counter(ends.values())
        names |= {file: end for file, end in ends.items() if seen[end] == 1}
        left = [file for file in left if seen[ends[file]] > 1]
        parts += 1
    return {file: names[file] for file in files}


def _progress() -> Any:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return passing_bar(*columns)
