"""What can be told of a merge without computing it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts


def stack_of(adapter: Artifact[AdapterFacts]) -> list[Path]:
    """The folders of an artifact's adapters, in the order in which they were trained one on another."""
    return [adapter.folder, *(adapter.folder / f"then-{i}" for i in range(1, adapter.facts.stacked + 1))]


def merged_onto(facts: AdapterFacts, onto: str) -> Literal["nf4", "16-bit", "as trained"]:
    """Which weights an adapter is merged onto.

    Args:
        onto: as the recipe says it; see `toolkit.recipe.schema.Merge`.
    """
    if facts.quantization is None:
        return "as trained"
    return "nf4" if onto == "as trained" else "16-bit"
