"""A recipe's stages one after the other in this process: nine processes that import torch anew take longer than what they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.parity_chain import finished
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.stages import call_stage, stages_of


def run_here(recipe: Recipe, folder: Path, upto: str = "report") -> dict[str, Artifact[Any]]:
    """What every stage left in `folder`; raises what a stage raises, and where the certificate does not pass."""
    have: dict[str, Artifact[Any]] = {}
    for stage in stages_of(recipe):
        out = folder / stage.name
        out.mkdir(parents=True)
        have[stage.name] = finished(out, call_stage(stage, recipe, have, out))
        if stage.name == "verify":
            assert have["verify"].facts.verdict == "pass", have["verify"].facts.message
        if stage.name == upto:
            break
    return have
