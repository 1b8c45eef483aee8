"""`verify` as a tool of its own: any adapter, merged folder, GGUF or Ollama model, whoever made it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from toolkit.errors import InconclusiveError, ParityError, UsageError
from toolkit.models.gguf_file import read_gguf
from toolkit.models.pictures import sees_pictures
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.asked import NAME_ONE, NOTHING, Asked, check_exports, check_mmproj, check_repair, recipe_of
from toolkit.parity.certificate import Subject, certificate_text
from toolkit.parity.limits import file_type_of
from toolkit.recipe.schema import Recipe
from toolkit.report.page import PAGE, write_page
from toolkit.run.artifacts import Artifact, read_artifact, write_text
from toolkit.run.facts import CertificateFacts
from toolkit.run.processes import waiting

if TYPE_CHECKING:
    from toolkit.ollama.served_model import ServedModel
    from toolkit.parity.subjects import Tuned

stderr = Console(stderr=True, highlight=False)


def verify_recipe(recipe: Recipe, force: bool = False, out: Path | None = None) -> dict[str, Any]:
    """The certificate of a recipe's own files, brought up to date; whatever its verdict.

    Args:
        out: a folder that gets a copy of certificate.json and certificate.html.
    """
    from toolkit.run import pipeline

    with contextlib.suppress(ParityError, InconclusiveError):  # the verdict is in the certificate
        pipeline.run(recipe, upto="verify", force="verify" if force else "")
    path = pipeline.run_folder(recipe) / "verify" / "certificate.json"
    certificate = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
    if out is not None:
        _write(certificate, out)
    return certificate


def _write(certificate: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "certificate.json", certificate_text(certificate))
    write_page(certificate, folder)
    stderr.print(f"Certificate: {folder / 'certificate.json'}", soft_wrap=True, markup=False)
    stderr.print(f"For a browser: {folder / PAGE}", soft_wrap=True, markup=False)


def check(recipe: Recipe | None, asked: Asked, out: Path | None = None) -> dict[str, Any]:
    """Record what the tuned model says (once; it is kept), compare everything named with it, and write the certificate.

    Args:
        recipe: of a run whose adapter and goldens are to be used; None: an adapter or merged folder of any tool.
        out: folder for certificate.json and certificate.html; by default runs/<name>/checked.

    Returns:
        The certificate.

    Raises:
        UsageError: nothing to compare, or nothing to compare it with.
        DataError: a file that cannot be read or run.
        ExternalToolError: the Ollama that was asked for does not answer.
    """
    for file in asked.ggufs:
        if not file.is_file():
            raise UsageError(f"there is no file {file}", "Name a GGUF file.")
        file_type_of(read_gguf(file), file)
    check_repair(asked)
    check_mmproj(asked)
    given, recipe = recipe is not None, recipe or recipe_of(asked)
    merged = asked.hf if given or asked.adapter is not None else None
    if given and not asked.exports:
        raise UsageError(NOTHING, NAME_ONE)
    os.environ.update(waiting(os.environ))  # before torch is imported
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    from toolkit.models.bases import resolve_base
    from toolkit.parity.probe import probe
    from toolkit.run import pipeline

    check_exports(asked.ggufs, merged, Path(resolve_base(recipe.base).folder))
    recipe = _of_an_export_where_too_large(recipe, asked)
    _tell_plan(recipe, asked, merged)
    for file in asked.ggufs:
        probe(file)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(_served(asked, pipeline.run_folder(recipe))) if asked.ollama else None
        have = pipeline.run(recipe, upto="golden")
        certificate = _judge(recipe, have, asked, merged, model)
    for file in asked.ggufs:
        _tell_summary(file)
    _write(certificate, out or pipeline.run_folder(recipe) / "checked")
    if asked.repair is not None:
        _repair(asked.ggufs[0], asked.repair, recipe, have["train"])
    return certificate


def _repair(file: Path, out: Path, recipe: Recipe, adapter: Artifact[Any]) -> None:
    from toolkit.ollama.repair import repair_file
    from toolkit.run.pipeline import run_folder

    template = str(load_tokenizer(adapter.folder, adapter.facts.base.folder).get_chat_template())
    log, fields = run_folder(recipe) / "ollama-server.log", adapter.facts.chat_template_kwargs
    told = repair_file(file, out, template, recipe.system, log, fields)
    stderr.print(told, markup=False)


def _of_an_export_where_too_large(recipe: Recipe, asked: Asked) -> Recipe:
    """A tuned model that does not fit into memory is judged on an export's answers, read a layer at a time."""
    from toolkit.parity.golden.export_answers import too_large
    from toolkit.recipe.sizes import shape_of_base

    if (
        not asked.ggufs
        or recipe.golden.answers_from is not None
        or not too_large(shape_of_base(recipe.base)[0].parameters())
    ):
        return recipe
    stderr.print(
        f"The tuned model does not fit into memory: {asked.ggufs[0]} gives the answers, and the tuned model reads them."
    )
    golden = recipe.golden.model_copy(update={"answers_from": str(asked.ggufs[0])})
    return recipe.model_copy(update={"golden": golden})


def _tell_plan(recipe: Recipe, asked: Asked, merged: Path | None) -> None:
    """What will be compared, and about how long it takes."""
    from toolkit.recipe.plan import check_seconds
    from toolkit.run.hardware import read_hardware

    files = [*asked.ggufs, *([merged] if merged else [])]
    tuned = asked.adapter or (recipe.name if merged else asked.hf) or recipe.name
    names = [path.name for path in files] + ([f"Ollama's {asked.ollama}"] if asked.ollama else [])
    golden, each = check_seconds(recipe, read_hardware())
    stderr.print(
        f"Comparing {', '.join(names) or 'nothing'} with {tuned}. About {golden:.0f} s to "
        f"record what the tuned model says (kept for the next time), then about {each:.0f} s for each file."
    )


def _served(asked: Asked, folder: Path) -> contextlib.AbstractContextManager[ServedModel]:
    """The model of the server: a name that it does not know is told before anything is recorded."""
    from toolkit.ollama.served_model import served_model

    return served_model(asked.ollama, folder / "ollama-server.log", asked.ggufs, asked.mmproj)


def _with_prediction(subject: Subject, file: Path) -> Subject:
    """What a plain `FROM` would make of a file's chat template, told and kept beside its prompts."""
    from toolkit.ollama.foretold import foretold, told

    found = foretold(file)
    stderr.print(told(file, found), markup=False)
    checks = [
        check.model_copy(update={"details": {**check.details, "ollama": found}}) if check.name == "prompts" else check
        for check in subject.checks
    ]
    return subject.model_copy(update={"checks": checks})


def _tell_summary(file: Path) -> None:
    """What the file itself claims, and whether that was said of this very file."""
    from rich.markup import escape

    from toolkit.parity.summary_in_file import read_summary

    claimed = read_summary(file)
    if claimed is not None:
        told = "was written for this very file" if claimed.fits else "[yellow]was written for another file[/]"
        stderr.print(f"{escape(f'{file.name} says of itself: {claimed.verdict}: {claimed.found}')}. That {told}.")


def _judge(
    recipe: Recipe, have: dict[str, Artifact[Any]], asked: Asked, merged: Path | None, model: ServedModel | None
) -> dict[str, Any]:
    from toolkit.parity.subjects import GGUFUnderTest, Tuned, whole_in_weights
    from toolkit.parity.verify import certificate_of, hashes, judge

    adapter, golden = have["train"], have["golden"]
    tokenizer = load_tokenizer(adapter.folder, adapter.facts.base.folder)
    tuned = Tuned.of(recipe, adapter, golden, tokenizer)
    names = _names(asked.ggufs)
    if model is not None and model.file not in names:
        names[model.file] = f"{asked.ollama}'s file"
    mmproj = asked.mmproj or (model.mmproj if model is not None else None)
    if mmproj is None and tuned.goldens.pictured and names:
        if model is None:
            raise UsageError(
                "the golden prompts show pictures, and no file that sees is named", "Name it too: --mmproj FILE."
            )
        names = {}  # the server has no such file either: that is what there is to say
    if mmproj is None and names and model is None and _learnt_to_see(tuned):
        raise UsageError(
            "training changed the part of the model that sees, and no file that sees is named",
            "Name it too: --mmproj FILE.",
        )
    files = [GGUFUnderTest(path, name, file_type_of(read_gguf(path), path)) for path, name in names.items()]
    subjects = judge(tuned, merged, files, mmproj=mmproj)
    ours = len(subjects) - len(files)
    subjects[ours:] = [_with_prediction(subject, path) for subject, path in zip(subjects[ours:], names, strict=True)]
    if model is not None:
        from toolkit.ollama.judged import judge_served

        behind = next((subject for subject in subjects if subject.name == names.get(model.file)), None)
        whole = behind is not None and whole_in_weights(behind.checks)
        subjects.append(_without_base(judge_served(model, tuned, golden.folder, recipe.system, whole), tuned))
    paths = hashes(adapter.folder, golden.folder, *names, *([merged] if merged else []), *([mmproj] if mmproj else []))
    certificate = certificate_of(tuned, subjects, paths)
    if model is not None:
        certificate["versions"]["ollama"] = model.client.version()
    return certificate


def _learnt_to_see(tuned: Tuned) -> bool:
    tuning = tuned.tuning
    return sees_pictures(tuning.folder) and any(map(tuning.changes, tuning.seeing))


def _without_base(subject: Subject, tuned: Tuned) -> Subject:
    """Without the strength where no base is known: nobody can tell what training changed."""
    checks = [check for check in subject.checks if tuned.tuning.has_base or check.name != "strength"]
    return subject.model_copy(update={"checks": checks})


def _names(paths: tuple[Path, ...]) -> dict[Path, str]:
    """A short name for each file: its own, or its whole path where two files are called the same."""
    seen = Counter(path.name for path in paths)
    return {path: path.name if seen[path.name] == 1 else str(path) for path in paths}


def raise_unless_passed(certificate: dict[str, Any], asked: Asked, recipe: Recipe | None) -> None:
    """Exit codes for scripts: nothing, 6 or 7.

    Args:
        recipe: the one that was named; None: files of any origin.

    Raises:
        ParityError, InconclusiveError: with the certificate's sentence.
    """
    if certificate["verdict"] == "pass":
        return
    from toolkit.parity.next_step import after_check
    from toolkit.run import pipeline

    folder = pipeline.run_folder(recipe) if recipe else Path()
    if recipe is not None and not asked.exports:
        artifact = read_artifact(folder / "verify", CertificateFacts)
        if artifact is not None:
            pipeline.stop_unless_passed(recipe, artifact)
    hint = after_check(certificate, asked, recipe, folder)
    raise (
        ParityError(certificate["message"], hint)
        if certificate["verdict"] == "fail"
        else InconclusiveError(certificate["message"], hint)
    )
