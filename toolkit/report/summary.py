"""What a finished run is told in: read once from its artifacts, shown by the last screen, report.md and the model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.models.merging import merged_onto
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import Objective
from toolkit.report.answers import Answer, read_answers, shown_answers
from toolkit.report.page import with_served
from toolkit.report.plot import read_rewards
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import (
    AdapterFacts,
    DatasetFacts,
    GGUFFile,
    GoldenFacts,
    OllamaFacts,
    OntoFacts,
    SourceLoss,
)

EVALUATION = "evaluation.json"
"""Of the evaluate stage; see `toolkit.evaluate.stage`."""
SERVED = "served.json"
"""Of the create stage: what the server showed, as a subject of a certificate."""
_ONTO = {
    "nf4": "the dequantized NF4 weights that were trained on",
    "16-bit": "the original 16-bit weights",
    "as trained": "the weights that were trained on",
}


@dataclass(frozen=True)
class Summary:
    """A finished run."""

    name: str
    model: str
    language: str
    """Of the rows that were trained on; empty where another tool trained."""
    trained: list[tuple[str, str]]
    """What was trained on what: (label, value)."""
    losses: list[tuple[str, str]]
    """Validation loss and perplexity before → after, and what merging costs."""
    answers: list[Answer]
    """Those that show most."""
    pictured: list[Answer]
    """All that are about pictures."""
    certificate: dict[str, Any]
    files: list[GGUFFile]
    served_file: str
    costs: list[tuple[str, Cost]]
    """What every stage spent."""
    served: str
    """What the real server showed, in a sentence; empty where none is installed."""
    evaluation: dict[str, Any] | None
    """evaluation.json: did it help, did it forget."""
    commands: list[str]
    """What to run now, the last one last."""


def summarize(recipe: Recipe, artifacts: Mapping[str, Artifact[Any]]) -> Summary:
    """Read the artifacts of a run (all stages but `report` must be there; `prepare` only where the data was given)."""
    adapter: AdapterFacts = artifacts["train"].facts
    ollama: OllamaFacts = artifacts["create"].facts
    made = {**_by_type(artifacts["convert"]), **_by_type(artifacts["quantize"])}
    answers = read_answers(artifacts["golden"].folder, artifacts["create"].folder / SERVED)
    return Summary(
        name=recipe.name,
        model=ollama.model,
        language=artifacts["prepare"].facts.language if "prepare" in artifacts else "",
        trained=[
            *_trained(recipe, adapter, artifacts.get("prepare")),
            *_steps_before(recipe, artifacts),
            *_ends(artifacts["golden"].facts),
        ],
        losses=[*_rewards(artifacts["train"]), *_losses(recipe, artifacts)],
        answers=shown_answers(answers),
        pictured=[answer for answer in answers if answer.pictures],
        certificate=_certificate(artifacts["verify"].folder, artifacts["create"].folder),
        files=[made[t] for t in recipe.export.file_types if t in made],
        served_file=artifacts["verify"].facts.served_file,
        costs=[(stage, artifact.cost) for stage, artifact in artifacts.items()],
        served=_served(ollama),
        evaluation=_evaluation(artifacts.get("evaluate")),
        commands=[*ollama.remaining, f"ollama run {ollama.model}"],
    )


def _evaluation(artifact: Artifact[Any] | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    found: dict[str, Any] = json.loads((artifact.folder / EVALUATION).read_text(encoding="utf-8"))
    return found


def _certificate(verified: Path, created: Path) -> dict[str, Any]:
    """The certificate, with the server's part where a server was asked."""
    certificate: dict[str, Any] = json.loads((verified / "certificate.json").read_text(encoding="utf-8"))
    served = created / SERVED
    if not served.is_file():
        return certificate
    return with_served(certificate, json.loads(served.read_text(encoding="utf-8")))


def _by_type(artifact: Artifact[Any]) -> dict[str, GGUFFile]:
    return {file.file_type: file for file in artifact.facts.files}


def _trained(recipe: Recipe, adapter: AdapterFacts, prepared: Artifact[DatasetFacts] | None) -> list[tuple[str, str]]:
    base = adapter.base
    revision = f" ({base.revision[:12]})" if base.revision else ""
    rows = [("base", f"{base.id.partition('@')[0]}{revision}, licence {base.license}")]
    if recipe.data is not None and prepared is not None:
        facts = prepared.facts
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(facts.dropped.items())) or "none"
        counts = ", ".join(f"{count:,} {split}" for split, count in facts.rows.items())
        rows.append(
            ("data", f"{recipe.data.place}: {facts.kept:,} of {facts.read:,} rows kept ({counts}); dropped: {dropped}")
        )
        if any(facts.resembling.values()):
            alike = " and ".join(
                f"{count:,} of {facts.rows[side]:,} {side} rows" for side, count in facts.resembling.items()
            )
            rows.append(("leakage", f"{alike} resemble a row that was trained on, so held-out figures are too good"))
        if facts.sources:
            rows.append(("sources", ", ".join(f"{name} {count:,} rows" for name, count in facts.sources.items())))
        if facts.found:
            rows.append(("found in rows", ", ".join(f"{count:,} {what}" for what, count in facts.found.items())))
    if adapter.chat_template_kwargs:
        rows.append(("template told", json.dumps(dict(adapter.chat_template_kwargs), sort_keys=True)))
    if not adapter.trained_here:
        rows.append(("method", f"an adapter that another tool trained ({recipe.adapter})"))
        return rows
    train = recipe.train
    how = "full fine-tuning" if adapter.method == "full" else recipe.lora.told(on_nf4=adapter.method == "qlora")
    rows.append(("method", f"{how}; {adapter.trained_parameters:,} weights trained"))
    if recipe.tokens.add:
        rows.append(("tokens added", ", ".join(recipe.tokens.add)))
    if adapter.objective != "sft":
        rows.append(("objective", _OBJECTIVES[adapter.objective]))
    if adapter.thoughts:
        rows.append(("thoughts", f"before {adapter.thoughts:,} of {adapter.answers or adapter.train_rows:,} answers"))
    if adapter.answers > adapter.train_rows or adapter.rows_split or adapter.calls:
        rows.append(("answers", _learnt(adapter)))
    speed = (
        f"{adapter.tokens_per_second:,.0f} tokens/s, " if adapter.tokens_per_second else ""
    )  # not counted of preferences
    rows.append(
        ("steps", f"{adapter.steps:,} of {train.rows_a_step} rows{_processes(recipe)}, learning rate {train.learning_rate:g}, "
         f"{speed}profile {recipe.profile}")
    )  # fmt: skip
    if adapter.best_step is not None:
        rows.append(("kept", f"step {adapter.best_step:,}, where the loss of held-out rows was lowest"))
    return rows


_OBJECTIVES: dict[Objective, str] = {
    "sft": "fine-tuning on answers",
    "grpo": "GRPO: answers of its own, judged by rewards",
    "rloo": "RLOO: answers of its own, judged by rewards",
    "dpo": "DPO, on preference pairs",
    "orpo": "ORPO, on preference pairs",
    "simpo": "SimPO, on preference pairs",
    "kto": "KTO, on answers with labels",
    "reward": "a reward model, on preference pairs",
    "pretrain": "continued pretraining, on plain text",
}


def _steps_before(recipe: Recipe, artifacts: Mapping[str, Artifact[Any]]) -> list[tuple[str, str]]:
    """What was trained before the recipe's own training."""
    rows = []
    for step in recipe.earlier:
        facts: AdapterFacts = artifacts[f"train-{step}"].facts
        told = f"{_OBJECTIVES[facts.objective]}; {facts.steps:,} steps over {facts.train_rows:,} rows"
        if facts.validation_loss_before is not None and facts.validation_loss_after is not None:
            told += f"; validation loss {facts.validation_loss_before:.3f} → {facts.validation_loss_after:.3f}"
        if facts.pair_accuracy is not None:
            told += f"; the better answer told in {facts.pair_accuracy:.0%} of held-out pairs"
        rows.append((f"before: {step}", told))
    return rows


def _rewards(adapter: Artifact[AdapterFacts]) -> list[tuple[str, str]]:
    """Each reward, and what preference methods call so: the mean of the first tenth of the steps and of the last."""
    found = read_rewards(adapter.folder / "metrics.jsonl")
    rows = []
    for name, curve in found.items():
        tenth = max(1, len(curve.means) // 10)
        first, last = (sum(some) / tenth for some in (curve.means[:tenth], curve.means[-tenth:]))
        rows.append((name, f"{first:.2f} → {last:.2f} (first and last tenth of the steps)"))
    return rows


def _processes(recipe: Recipe) -> str:
    number, how = recipe.train.num_processes, recipe.train.distributed
    return f" in {number} processes ({how})" if number > 1 else ""


def _learnt(adapter: AdapterFacts) -> str:
    told = f"{adapter.answers:,} learnt, in {adapter.train_rows:,} sequences"
    told += f"; {adapter.calls:,} of them call functions" if adapter.calls else ""
    again = "; {:,} rows in several sequences, since the chat template writes earlier turns otherwise"
    return told + (again.format(adapter.rows_split) if adapter.rows_split else "")


def _ends(golden: GoldenFacts) -> list[tuple[str, str]]:
    return [("ends", golden.ends_told)] if golden.ends_told else []


def _losses(recipe: Recipe, artifacts: Mapping[str, Artifact[Any]]) -> list[tuple[str, str]]:
    rows = []
    adapter: AdapterFacts = artifacts["train"].facts
    before, after = adapter.validation_loss_before, adapter.validation_loss_after
    if before is not None and after is not None:
        over = _over(adapter.validation_rows_measured, adapter.validation_rows)
        rows.append(("validation loss", f"{before:.3f} → {after:.3f} nats a token{over}"))
        rows += [(f"loss of {name}", _of_source(loss)) for name, loss in adapter.validation_by_source.items()]
        rows.append(("perplexity", f"{math.exp(before):.2f} → {math.exp(after):.2f}"))
    return [*rows, ("merged", _merged(recipe, adapter, artifacts))]


def _merged(recipe: Recipe, adapter: AdapterFacts, artifacts: Mapping[str, Artifact[Any]]) -> str:
    """What the adapter went onto; and what that costs, where a stage measured it."""
    measured: OntoFacts | None = artifacts["onto"].facts if "onto" in artifacts else None
    told = f"onto {_ONTO[merged_onto(adapter, measured.onto if measured else recipe.merge.chosen)]}"
    if measured is not None and measured.loss_as_trained is not None and measured.loss_on_16_bit is not None:
        found = f"{measured.loss_as_trained:.4f} as trained, {measured.loss_on_16_bit:.4f} on the original weights"
        told += f" (held-out loss of the adapter: {found})"
    return told


def _over(measured: int, rows: int) -> str:
    return f", over {measured} of {rows:,} rows" if measured < rows else ""


def _of_source(loss: SourceLoss | None) -> str:
    if loss is None:
        return "not known: none of its rows was held out"
    return f"{loss.before:.3f} → {loss.after:.3f} nats a token{_over(loss.measured, loss.rows)}"


def _served(ollama: OllamaFacts) -> str:
    if not ollama.published:
        return ""
    told = f"Ollama {ollama.server_version} rendered {ollama.rendered_equal} prompts byte for byte as they were trained"
    if ollama.conversations_equal:
        told += f" (and {ollama.conversations_equal} further conversations, at the three addresses that apps use)"
    if ollama.answers_compared:
        told += f", and gave {ollama.answers_compared} golden answers as llama.cpp does"
    if ollama.largest_logprob_difference is not None:
        told += f" (largest difference of a log-probability {ollama.largest_logprob_difference:.2g})"
    return " ".join([f"{told}.", *ollama.thinking])


def size(count: float) -> str:
    """Bytes for people: 98.2 MB, 4.68 GB (decimal, as file managers and Ollama show them)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds for people: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
