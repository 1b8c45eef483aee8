"""What transformers knows of a base's parameters, asked once and kept: its import takes seconds, an export needs five facts.

Imports no torch where the answer is in the cache.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from toolkit.models.safetensors_file import model_files
from toolkit.run.artifacts import file_sha256, text_sha256, write_json
from toolkit.run.places import cache_home

_BUILD = 1
"""Raise it when the same question gets another answer."""


@dataclass(frozen=True)
class Structure:
    """A base's parameters, by their names in memory."""

    embedding: str
    head: str
    """The output head's weight, also where it is the embedding itself."""
    tied_head: str | None
    """The head's name, where it is the embedding itself."""
    linear: list[str]
    """Weights of linear layers but the output head: those that are rounded to NF4 for QLoRA."""
    renamed: bool
    """Whether the files call any parameter otherwise than the model in memory does, or hold one in parts."""


def structure_of(folder: Path) -> Structure:
    """The structure of the model in a folder, from the cache or asked now.

    Raises:
        DataError: damaged weights, or an architecture that transformers does not know.
    """
    names = sorted(model_files(folder))
    asked = [_BUILD, version("transformers"), version("torch"), file_sha256(folder / "config.json"), names]
    kept = cache_home() / "structures" / f"{text_sha256(json.dumps(asked))[:40]}.json"
    if kept.is_file():
        return Structure(**json.loads(kept.read_text(encoding="utf-8")))
    found = _ask(folder)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, asdict(found))
    return found


def _ask(folder: Path) -> Structure:
    from toolkit.models.weights import TrainedWeights, quantized_names

    weights = TrainedWeights(folder, "float32", None)
    renamed = any(weights.spelled.sources(weights.spelled.parameter(name)) != [name] for name in model_files(folder))
    linear = sorted(quantized_names(weights.structure()))
    return Structure(weights.embedding, weights.head, weights.tied_head, linear, renamed)
