"""Is what runs what was trained? Every export against the golden answers; the result is a certificate."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import AutoTokenizer

from toolkit.artifacts import (
    Artifact,
    CertificateFacts,
    GGUFFacts,
    GGUFFile,
    GoldenFacts,
    ModelFacts,
    file_sha256,
    read_jsonl,
    write_json,
)
from toolkit.errors import DataError
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import SCHEMA, Check, Link, verdict_of
from toolkit.parity.limits import limits_for
from toolkit.parity.logits import Positions, logits_check, strength_check
from toolkit.parity.prompts import prompts_check, render, render_template
from toolkit.parity.stops import Answer, begin, finish, stops_check
from toolkit.parity.tokens import recorded_tokens_check, tokens_check
from toolkit.recipe import Recipe

EVALUATED_TOGETHER = 16
"""Goldens whose caches are held at once."""

stderr = Console(stderr=True)


@dataclass(frozen=True)
class Goldens:
    """A golden artifact, read. Logits are memory maps, float32 [positions, vocabulary]."""

    facts: GoldenFacts
    rows: list[dict[str, Any]]
    conversations: list[dict[str, Any]]
    tuned: npt.NDArray[np.float32]
    base: npt.NDArray[np.float32]

    @classmethod
    def read(cls, golden: Artifact[GoldenFacts]) -> Goldens:
        """Read a golden artifact.

        Raises:
            DataError: its files do not fit together.
        """
        folder = golden.folder
        rows, conversations = (read_jsonl(folder / name) for name in ("golden.jsonl", "conversations.jsonl"))
        tuned, base = (np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in ("tuned", "base"))
        shape = (sum(len(row["completion_ids"]) for row in rows), golden.facts.vocabulary)
        if not rows or tuned.shape != shape or base.shape != shape:
            raise DataError(
                f"{folder}: logits {tuned.shape} do not fit the answers {shape}", "Record the goldens again."
            )
        return cls(golden.facts, rows, conversations, tuned, base)

    def texts(self) -> list[tuple[str, str | None]]:
        """(name, text of the training template) of every golden and every further conversation."""
        goldens = [(f"golden {i + 1}", row["prompt_text"]) for i, row in enumerate(self.rows)]
        return goldens + [(row["name"], row["text"]) for row in self.conversations]

    def messages(self) -> list[list[dict[str, str]]]:
        """The conversations of `texts`, in its order."""
        return [row["messages"] for row in self.rows + self.conversations]

    def recorded(self) -> list[tuple[str, list[int]]]:
        """(text, token ids) as the model was trained to read them."""
        goldens = [(row["prompt_text"], row["prompt_ids"]) for row in self.rows]
        return goldens + [(row["text"], row["ids"]) for row in self.conversations if row["text"] is not None]


def verify(
    recipe: Recipe,
    golden: Artifact[GoldenFacts],
    model: Artifact[ModelFacts],
    gguf: Artifact[GGUFFacts],
    quantized: Artifact[GGUFFacts],
    out: Path,
) -> CertificateFacts:
    """Compare the merged folder and every GGUF with the tuned model, and write certificate.json into `out`.

    A failing verdict is written, not raised. See `toolkit.parity.certificate` for the schema and for what counts.

    Raises:
        DataError: a file that cannot be read.
    """
    goldens = Goldens.read(golden)
    tokenizer = AutoTokenizer.from_pretrained(model.folder, trust_remote_code=False)
    links = [_merged_link(goldens, model, tokenizer)]
    files = [(gguf.folder, f) for f in gguf.facts.files] + [(quantized.folder, f) for f in quantized.facts.files]
    with _progress() as progress:
        for folder, file in files:
            task = progress.add_task(f"verify {file.file_type}", total=None)
            links.append(_gguf_link(recipe, goldens, model.facts, tokenizer, (folder, file)))
            progress.remove_task(task)
    served = next((f.name for _, f in files if f.file_type == recipe.export.serve), "")
    verdict, message, warnings = verdict_of(links)
    certificate = {
        "schema": SCHEMA,
        "verdict": verdict,
        "message": message,
        "served_file": served,
        "warnings": warnings,
        "reference": _reference(goldens, model.facts),
        "links": [link.as_json() for link in links],
        "files": _hashes(golden, model, files),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("tune2ollama", "torch", "transformers", "peft", "bitsandbytes", "llama-cpp-python")
        },
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(out / "certificate.json", certificate)
    checks = {f"{link.name}: {check.name}": check.verdict for link in links for check in link.checks}
    return CertificateFacts(verdict=verdict, checks=checks, served_file=served)


def _merged_link(goldens: Goldens, model: Artifact[ModelFacts], tokenizer: Any) -> Link:
    started = time.monotonic()
    rendered = [render(tokenizer, messages) for messages in goldens.messages()]
    checks = [
        prompts_check(goldens.texts(), rendered),
        recorded_tokens_check(tokenizer, goldens.recorded(), goldens.facts.end_tokens),
    ]
    return Link(
        name="merged", kind="merged", file=str(model.folder.name), file_type=model.facts.dtype, counts="everything",
        served=False, checks=checks, seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip


def _gguf_link(
    recipe: Recipe, goldens: Goldens, model: ModelFacts, tokenizer: Any, where: tuple[Path, GGUFFile]
) -> Link:
    folder, file = where
    started = time.monotonic()
    served = file.file_type == recipe.export.serve
    converted = file.file_type == recipe.export.converted
    fallback = file.fallback_tensors / file.tensors if file.tensors else 0.0
    limits, relaxed = limits_for(file.file_type, model.parameters, fallback)
    with Candidate(folder / file.name) as candidate:
        checks = [
            gguf_prompts_check(goldens, candidate),
            tokens_check(candidate, tokenizer, goldens.recorded(), goldens.facts.vocabulary),
        ]
        if candidate.vocabulary == goldens.facts.vocabulary:
            positions, answers = evaluate(goldens, candidate, recipe.golden.max_new_tokens)
            markers = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
            ends = (goldens.facts.end_tokens, tokenizer.eos_token_id, markers)
            # Strength before the rest: a lost adapter is to be called so, not a lost end token.
            checks += [
                strength_check(positions, limits),
                logits_check(positions, limits),
                stops_check(candidate, answers, positions, limits, ends),
            ]
        else:
            message = f"not compared: the vocabulary has {candidate.vocabulary} tokens, not {goldens.facts.vocabulary}"
            checks.append(Check(name="logits", verdict="fail", message=message))
    return Link(
        name=file.file_type,
        kind="converted" if converted else "quantized",
        file=file.name,
        file_type=file.file_type,
        counts="everything" if served else "ancestor" if converted else "text only",
        served=served,
        relaxed=relaxed,
        checks=checks,
        seconds=round(time.monotonic() - started, 2),
    )


def gguf_prompts_check(goldens: Goldens, candidate: Candidate) -> Check:
    """The GGUF's own template, with its own BOS and EOS texts, against the training template."""
    template = candidate.chat_template
    if template is None:
        return Check(name="prompts", verdict="fail", message="there is no chat template in the file")
    bos, eos = candidate.token_text(candidate.bos), candidate.token_text(candidate.eos)
    rendered = [render_template(template, messages, bos, eos) for messages in goldens.messages()]
    return prompts_check(goldens.texts(), rendered)


def evaluate(goldens: Goldens, candidate: Candidate, new_tokens: int) -> tuple[Positions, list[Answer]]:
    """Teacher-force every golden through an export and let it finish its own answers: each prompt is evaluated once."""
    positions = Positions()
    answers: list[Answer] = []
    longest = max(len(row["prompt_ids"]) + max(len(row["completion_ids"]), new_tokens) for row in goldens.rows)
    groups = [goldens.rows[i : i + EVALUATED_TOGETHER] for i in range(0, len(goldens.rows), EVALUATED_TOGETHER)]
    with candidate.slots(len(groups[0]), longest) as slots:
        for group in groups:
            begun = []
            for slot, row in enumerate(group):
                wanted = row["completion_ids"]
                export = slots.logits(slot, row["prompt_ids"] + wanted, len(row["prompt_ids"]))
                part = slice(row["first_row"], row["first_row"] + len(wanted))
                number = len(answers) + slot
                best = positions.add(number, wanted, goldens.tuned[part], goldens.base[part], export)
                begun.append(begin(row, best))
            finish(slots, candidate, begun, new_tokens)
            answers += begun
    return positions, answers


def _reference(goldens: Goldens, model: ModelFacts) -> dict[str, Any]:
    return {
        "what": "the tuned model as it was trained, teacher-forced on its own greedy answers, float32",
        "prompts": goldens.facts.prompts,
        "positions": goldens.facts.positions,
        "conversations": len(goldens.conversations),
        "forward": goldens.facts.forward,
        "merged_onto": model.merged_onto,
        "parameters": model.parameters,
        "engine": "llama.cpp on the CPU, F32 cache, no flash attention",
    }


def _hashes(
    golden: Artifact[GoldenFacts], model: Artifact[ModelFacts], files: list[tuple[Path, GGUFFile]]
) -> dict[str, dict[str, Any]]:
    found = {f"{folder.name}/{f.name}": {"sha256": f.sha256, "bytes": f.bytes} for folder, f in files}
    for folder in (golden.folder, model.folder):
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            found[f"{folder.name}/{path.name}"] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    return found


def _progress() -> Any:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=stderr, transient=True
    )
