"""Every objective that can be exported, through the chain to its certificate: the figures of docs/methods.md's table.

    python -m tests.bench.methods [OBJECTIVE …]

Each is trained for a few steps on the embedded base with the samples of this project, exported at Q8_0 and certified. Prints a
row of the table for each: peak memory of the training stage, time of a step, the verdict, the adapter's strength in the weights,
and the mean KL divergence.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from toolkit.errors import InconclusiveError, ParityError
from toolkit.recipe.reading import load_recipe
from toolkit.run import pipeline
from toolkit.run.artifacts import read_artifact
from toolkit.run.facts import CertificateFacts

STEPS = 12
_PAIRS: tuple[str, list[str]] = ("recipes/polite.yaml", ["golden.prompts=data/polite/golden.en.txt", "earlier={}"])
WAYS: dict[str, tuple[str, list[str]]] = {
    "sft": ("recipes/medical.yaml", ["train.method=lora"]),
    "dpo": _PAIRS,
    "orpo": _PAIRS,
    "simpo": _PAIRS,
    "kto": (_PAIRS[0], [*_PAIRS[1], "data.path=data/polite/labelled.en.jsonl"]),
    "grpo": ("recipes/r1.yaml", ["earlier.format.train.max_steps=16"]),
    "rloo": ("recipes/r1.yaml", ["earlier.format.train.max_steps=16"]),
    "pretrain": (_PAIRS[0], ["data.path=data/text/notes.jsonl", "golden.prompts=data/text/golden.txt", "earlier={}"]),
}
"""Objective → the recipe that it is trained by, and what is set otherwise."""


def row_of(objective: str) -> str:
    """Train, export and certify; a row of the table."""
    path, settings = WAYS[objective]
    recipe = load_recipe(
        Path(path), "cpu",
        [*settings, f"name=bench-{objective}", f"train.objective={objective}", f"train.max_steps={STEPS}",
         "golden.max_new_tokens=48", "export.file_types=[Q8_0]", "ollama.model=bench"],
    )  # fmt: skip
    folder = pipeline.run_folder(recipe)
    try:
        have = pipeline.run(recipe, upto="verify")
        certificate = have["verify"]
    except (ParityError, InconclusiveError):
        found = read_artifact(folder / "verify", CertificateFacts)
        assert found is not None
        certificate = found
    told = json.loads((folder / "train" / "artifact.json").read_text(encoding="utf-8"))
    seconds, memory = told["cost"]["seconds"], told["cost"]["peak_memory_bytes"]
    subjects = json.loads((certificate.folder / "certificate.json").read_text(encoding="utf-8"))["subjects"]
    measured = _measures(next(one for one in subjects if one["name"].startswith("Q8_0")))
    return (
        f"| `{objective}` | {memory / 1e9:.1f} GB | {seconds / STEPS:.1f} s | {certificate.facts.verdict} | "
        f"{measured.get('strength', '–')} | {measured.get('mean KL', '–')} |"
    )


def _measures(subject: dict[str, Any]) -> dict[str, str]:
    found = {measure["name"]: measure["value"] for check in subject["checks"] for measure in check["measures"]}
    strength = next((value for name, value in found.items() if "strength" in name), None)
    divergence = next((value for name, value in found.items() if "mean KL" in name), None)
    told = {"strength": strength, "mean KL": divergence}
    return {name: f"{value:.3g}" for name, value in told.items() if value is not None}


def main() -> None:
    """Print the table."""
    print("| objective | peak memory | a step, start included | certificate | strength | mean KL |")
    print("|---|---|---|---|---|---|")
    for objective in sys.argv[1:] or WAYS:
        print(row_of(objective), flush=True)


if __name__ == "__main__":
    main()
