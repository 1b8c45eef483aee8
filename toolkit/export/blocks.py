"""Which rows of which sources make a tensor of a GGUF, where it can be made row by row: then none is whole in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.export.ggml import Floats
from toolkit.export.plain import Rows
from toolkit.models.layout_format import Array, made_of, valued


@dataclass(frozen=True)
class Block:
    """Rows of a tensor that are rows of one source; both seen as matrices [rows, row length]."""

    begin: int
    rows: int
    source: str
    order: Array | None
    """Which rows of the source; None: from its first on."""

    def part(self, start: int, end: int) -> Rows:
        """The source's rows for rows start … end of this block."""
        return slice(start, end) if self.order is None else self.order[start:end]


def blocks_of(
    told: Mapping[str, Any], shape_of: Callable[[str], tuple[int, ...]], kept: Mapping[str, Array]
) -> list[Block] | None:
    """A tensor's blocks, in order; None: its parts are not rows of their sources, or it is a vector.

    Args:
        told: of the tensor in layout.json.
        shape_of: a source's shape.
        kept: the arrays of layout.npz.
    """
    shape = tuple(told["shape"])
    if "constant" in told or len(shape) < 2 or told["value"] == "-exp":
        return None
    rows_each = math.prod(shape[1:-1])
    found = []
    for part in told["parts"]:
        source, slab = shape_of(part["source"]), (part["end"] - part["begin"], *shape[1:])
        axes, keys = [i["axis"] for i in part["index"]], [i["key"] for i in part["index"]]
        in_a_row = axes == sorted(set(axes)) and math.prod(source) == math.prod(slab) and source[-1] == slab[-1]
        if in_a_row and not any(keys) and axes[-1:] == [len(shape) - 1]:
            order = None
        elif axes == [0, 1] and len(shape) == 2 and keys[0] and not keys[1] and source[1] == slab[1]:
            order = kept[keys[0]]
        else:
            return None
        found.append(Block(part["begin"] * rows_each, slab[0] * rows_each, part["source"], order))
    return found


def changed(told: Mapping[str, Any], values: Floats, dtype: str) -> Floats:
    """What the converter does to values, in the type that it reads them in: float16 where the merged model is stored so."""
    if dtype != "float16" or told["value"] == [1.0, 0.0]:
        return np.asarray(valued(told["value"], values), np.float32)
    return np.asarray(valued(told["value"], values.astype(np.float16)), np.float32)


def whole(told: Mapping[str, Any], load: Callable[[str], Floats], kept: Mapping[str, Array], dtype: str) -> Floats:
    """A tensor that is not made row by row, in transformers' order of the axes: float32.

    Args:
        load: a source's values by its name.
        dtype: the type of the merged model, as torch calls it.
    """
    if told.get("value") == "-exp":  # torch's exponential differs from numpy's in the last bit
        import torch

        plain: Any = made_of({**told, "value": [1.0, 0.0]}, load, kept)
        return np.asarray((-torch.exp(torch.from_numpy(plain))).numpy())
    if "constant" in told:
        return np.asarray(made_of(told, load, kept), np.float32)
    plain = made_of({**told, "value": [1.0, 0.0]}, load, kept)
    return changed(told, np.ascontiguousarray(plain, np.float32), dtype)
