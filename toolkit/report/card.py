"""model_card.md: what a stranger must know before using the model, in the hub's form (YAML between dashes, then Markdown)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from toolkit.parity.summary_in_file import served_measures
from toolkit.recipe.schema import Recipe
from toolkit.report.evaluated import evaluation_cells, evaluation_lines
from toolkit.report.markdown import markdown_table
from toolkit.report.page import PAGE
from toolkit.report.summary import Summary, size
from toolkit.run.facts import AdapterFacts


def card_text(recipe: Recipe, adapter: AdapterFacts, summary: Summary) -> str:
    """The model card: base, data, licence, training settings, certificate in short, limits."""
    base = adapter.base
    hub = not base.id.startswith("embedded:") and "/" in base.id and not base.id.startswith((".", "/", "~"))
    head = {
        "license": recipe.license,
        "base_model": base.id.partition("@")[0] if hub else "HuggingFaceTB/SmolLM2-135M-Instruct",
        "language": [summary.language] if summary.language else None,
        "tags": ["tune2ollama", "gguf", adapter.method],
    }
    if not hub and not base.id.startswith("embedded:"):
        del head["base_model"]  # a folder of this machine means nothing elsewhere
    front = yaml.safe_dump({k: v for k, v in head.items() if v}, sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---", f"# {summary.model}"]
    parts.append(
        f"A fine-tune of {base.id.partition('@')[0]}, made with tune2ollama. Run it: `ollama run {summary.model}`"
    )
    parts.append("## What it was trained on\n\n" + "\n".join(f"- {k}: {v}" for k, v in summary.trained))
    parts.append(
        f"Licence of the data: {recipe.license}. Licence of the base: {base.license}. Both bind whoever passes it on."
    )
    if recipe.system:
        parts.append(
            "It was trained with this system text, and is served with it:\n\n> " + " ".join(recipe.system.split())
        )
    parts.append("## How well\n\n" + "\n".join(f"- {k}: {v}" for k, v in summary.losses))
    if summary.evaluation:
        figures = markdown_table(*evaluation_cells(summary.evaluation))
        parts += ["\n".join(f"- {line}" for line in evaluation_lines(summary.evaluation)), figures]
    parts.append("## Is what runs what was trained?\n\n" + _certificate(summary))
    parts.append(
        "## Files\n\n" + "\n".join(f"- {file.name}: {file.file_type}, {size(file.bytes)}" for file in summary.files)
    )
    parts.append("## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(recipe, adapter, summary.language)))
    return "\n\n".join(parts) + "\n"


def _certificate(summary: Summary) -> str:
    certificate = summary.certificate
    text = f"**{certificate['verdict']}**: {certificate['message']}."
    relaxed = {subject["relaxed"] for subject in certificate["subjects"] if subject.get("relaxed")}
    text += "".join(f" Wider limits were used: {reason}." for reason in sorted(relaxed))
    text += f" All that was measured: [{PAGE}]({PAGE})."
    text += _served_file(certificate)
    text += "".join(f"\n- not to be used: {warning}" for warning in certificate.get("warnings", []))
    return f"{text}\n\n{summary.served}" if summary.served else text


def _served_file(certificate: dict[str, Any]) -> str:
    """The served file's sum and its numbers, each with its limit."""
    told = served_measures(certificate)
    certified = certificate.get("certified")
    if certified is not None:
        name = Path(certified["file"]).name
        told.insert(0, f"SHA-256 of {name}: `{certified['sha256']}`; its metadata holds this summary too")
    return "".join(f"\n- {line}" for line in told)


def _limits(recipe: Recipe, adapter: AdapterFacts, language: str) -> list[str]:
    limits = [
        "It can be wrong and sound sure. It learnt the manner of its data, and knows little more than its base did.",
        "No advice on health, law, money or safety: ask somebody who knows.",
        "The certificate says that the export equals the tuned model. It does not say that the answers are true.",
        f"Prompt and answer were at most {recipe.train.max_length} tokens in training; longer ones are untested."
        if adapter.trained_here
        else "It was trained by another tool, whose settings are not known here.",
    ]
    if language:
        limits.append(f"Trained in one language ({language}); in others it is no better than its base.")
    if adapter.base.id.startswith("embedded:"):
        limits.append("The base has 135 million parameters: good for showing the way, not for relying on answers.")
    return limits
