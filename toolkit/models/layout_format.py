"""How a layout says what a tensor of a GGUF is made of, and that tensor made; see `toolkit.models.layout`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def made_of(told: Mapping[str, Any], load: Callable[[str], Array], kept: Mapping[str, Array]) -> Array:
    """A tensor of the GGUF, in transformers' order of the axes.

    Args:
        told: of the tensor in layout.json.
        load: a source's values by its name.
        kept: the arrays of layout.npz.
    """
    shape = tuple(told["shape"])
    if "constant" in told:
        return kept[told["constant"]].reshape(shape)
    parts = [_part(part, load(part["source"]), shape, kept) for part in told["parts"]]
    return valued(told["value"], parts[0] if len(parts) == 1 else np.concatenate(parts))


def valued(value: Any, array: Array) -> Array:
    """What the converter does to values: [a, b] is a * v + b, "-exp" is -exp(v)."""
    if value == "-exp":
        return np.asarray(-np.exp(array))
    a, b = value
    if (a, b) == (1.0, 0.0):
        return array
    scaled = array if a == 1.0 else array * np.float32(a)
    return np.asarray(scaled if b == 0.0 else scaled + np.float32(b), dtype=array.dtype)  # -0 stays -0


def _part(part: Mapping[str, Any], source: Array, shape: tuple[int, ...], kept: Mapping[str, Array]) -> Array:
    slab = (part["end"] - part["begin"], *shape[1:]) if shape else ()
    index = part["index"]
    plain = [i["axis"] == number and not i["key"] for number, i in enumerate(index)]
    if all(plain) and source.shape == slab:
        return source
    if len(index) == len(slab) and index[0]["axis"] == 0 and all(plain[1:]):
        return source[kept[index[0]["key"]]]  # other rows, or in another order
    places = []
    for number, i in enumerate(index):
        array = kept[i["key"]] if i["key"] else np.arange(source.shape[number])
        axis = i["axis"]
        places.append(array.reshape(slab if axis < 0 else [-1 if n == axis else 1 for n in range(len(slab))]))
    found = source[tuple(places)] if places else source
    return np.broadcast_to(found, slab) if found.size != math.prod(slab) else found.reshape(slab)
