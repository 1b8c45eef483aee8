"""The commonest adapters on the commonest bases, merged without torch: LoRA and rsLoRA on linear layers of float weights.

W + (B A) s, as PEFT's `merge` computes it (Hu et al., arXiv:2106.09685; rsLoRA: arXiv:2312.03732), row by row: no row needs
another, so no tensor is in memory. What is taken here comes out bit for bit as through PEFT; everything else is refused, and
goes through `toolkit.models.merged`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.export.ggml import Floats, rounded, widened
from toolkit.models.adapter_files import PREFIX, read_config, start_of, weights_file
from toolkit.models.nf4 import NF4Rows, maxima
from toolkit.models.safetensors_file import Entry, read_header
from toolkit.models.structure import Structure

LARGEST_RANK = 128
"""Up to here a product's sum over the rank is made in one go by every BLAS; beyond it they cut it in pieces of their own."""
_TAKEN = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode", "r",
    "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights", "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Keys of adapter_config.json that say nothing against it, whatever they say."""

SLAB = 1 << 19
"""Elements that are worked on at a time: 2 MiB of float32."""
Rows = slice | npt.NDArray[np.int32]


@dataclass(frozen=True)
class Factors:
    """What a LoRA adds to a weight: (B A) s."""

    a: Floats
    """[rank, columns]"""
    b: Floats
    """[rows, rank]"""
    scaling: np.float32


def slabs(rows: int, length: int) -> Iterator[tuple[int, int]]:
    """Where to cut a matrix: (first row, row after the last)."""
    step = max(1, SLAB // max(length, 1))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def plain_factors(folder: Path, structure: Structure, entries: Mapping[str, Entry]) -> dict[str, Factors] | None:
    """What an adapter adds to which weights; None: it is none of the plain ones, or does not fit (PEFT says how).

    Args:
        entries: the base's tensors by name.
    """
    config = read_config(folder)
    if structure.renamed or config["peft_type"] != "LORA" or start_of(config) or not _says_nothing_more(config):
        return None
    path = weights_file(folder)
    pairs: dict[str, dict[str, Entry]] = {}
    for name, entry in read_header(path).items():
        module, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if not name.startswith(PREFIX) or part not in ("A.weight", "B.weight") or entry.dtype != "F32":
            return None
        pairs.setdefault(f"{module}.weight", {})[part[0]] = entry
    if not pairs or set(pairs) != _targets(config["target_modules"], structure):
        return None
    found: dict[str, Factors] = {}
    rank, alpha = config["r"], config["lora_alpha"]
    scaling = np.float32(alpha / math.sqrt(rank) if config["use_rslora"] else alpha / rank)
    for name, pair in pairs.items():
        if name not in entries or set(pair) != {"A", "B"} or rank > LARGEST_RANK:
            return None
        rows, columns = entries[name].shape
        if (pair["A"].shape, pair["B"].shape) != ((rank, columns), (rows, rank)):
            return None
        found[name] = Factors(mapped(path, pair["A"]), mapped(path, pair["B"]), scaling)
    return found


def _says_nothing_more(config: Mapping[str, Any]) -> bool:
    return all(key in _TAKEN or not value or (key, value) == ("bias", "none") for key, value in config.items())


def _targets(named: Any, structure: Structure) -> set[str]:
    """The linear layers that a list of endings means, as PEFT reads it; none of a pattern."""
    if not isinstance(named, list):
        return set()
    modules = (name.removesuffix(".weight") for name in structure.linear)
    ends = tuple(f".{end}" for end in named)
    return {f"{module}.weight" for module in modules if module in named or module.endswith(ends)}


_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def mapped(path: Path, entry: Entry) -> Any:
    """A tensor of a safetensors file as it lies there, memory-mapped; bfloat16 as uint16."""
    if not math.prod(entry.shape):
        return np.zeros(entry.shape, _NUMPY[entry.dtype])
    return np.memmap(path, _NUMPY[entry.dtype], "r", entry.begin, entry.shape)


def as_float32(stored: Any, dtype: str) -> Floats:
    """Rows of a file as float32; the file's own memory where they are that."""
    if dtype == "F32":
        return np.asarray(stored)
    return widened(np.ascontiguousarray(stored).view(np.uint8), dtype)


class PlainRows:
    """A base's tensors with what an adapter adds, row by row.

    Args:
        files, entries: the base's tensors.
        factors: what is added to which.
        base_dtype: the type that the base was loaded in for training.
        dtype: the type that is merged into: float32, bfloat16 or float16.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        entries: Mapping[str, Entry],
        factors: Mapping[str, Factors],
        base_dtype: str,
        dtype: str,
    ) -> None:
        self._files, self._entries, self._factors = files, entries, factors
        self.base_dtype, self.dtype = base_dtype, dtype
        self.nf4: NF4Rows | None = None
        """Rounds those of `quantized`; None where torch has to."""
        self.quantized: frozenset[str] = frozenset()

    def holds(self, name: str) -> bool:
        """Whether the base has this tensor, of a type of numbers that is read here."""
        return name in self._files and self._entries[name].dtype in _NUMPY

    def rows(self, name: str, rows: Rows) -> Floats:
        """Rows of a tensor seen as a matrix [rows, row length], merged: float32 that `dtype` can hold."""
        values, computed_in = self.as_trained_on(name, rows), self.base_dtype
        if self.nf4 is not None and name in self.quantized:
            values, computed_in = self.nf4.rows(name, values, rows), "float32"
        factors = self._factors.get(name)
        if factors is not None:
            values = rounded(values + (factors.b[rows] @ factors.a) * factors.scaling, computed_in)
        return values if self.dtype == computed_in else rounded(values, self.dtype)

    def as_trained_on(self, name: str, rows: Rows) -> Floats:
        """The same rows of the base, rounded to what it was loaded in."""
        entry = self._entries[name]
        stored = mapped(self._files[name], entry)
        matrix = stored.reshape(-1, entry.shape[-1]) if entry.shape else stored.reshape(1, 1)
        values = as_float32(matrix[rows], entry.dtype)
        return values if DTYPES[entry.dtype] == self.base_dtype else rounded(values, self.base_dtype)

    def largest(self, name: str, blocksize: int) -> Floats:
        """`toolkit.models.nf4.maxima` of a matrix as it was loaded; a part of it is in memory at a time."""
        rows, columns = self._entries[name].shape
        return np.concatenate([maxima(self.as_trained_on(name, slice(*s)), blocksize) for s in slabs(rows, columns)])

    def merged_onto(self, name: str, base: Floats) -> Floats:
        """A whole matrix with what the adapter adds, where the base's values are given: NF4's. float32."""
        factors = self._factors.get(name)
        found = base if factors is None else base + (factors.b @ factors.a) * factors.scaling
        return rounded(found, self.dtype)
