"""The tuned model's tensors as numpy arrays, by the names of its files: without torch where that gives the same bytes."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from toolkit.export.ggml import SIXTEEN, Floats
from toolkit.export.plain import DTYPES as TORCH_NAMES
from toolkit.export.plain import PlainRows, Rows, plain_factors
from toolkit.models.bases import cached_sha256
from toolkit.models.nf4 import NF4Rows, ask
from toolkit.models.safetensors_file import Entry, commonest_dtype, model_entries, model_files
from toolkit.models.structure import structure_of
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, Quantization
from toolkit.run.hardware import read_hardware

if TYPE_CHECKING:
    from toolkit.models.merged import MergedWeights

LOSSLESS_BELOW = 1_000_000_000
"""Models with fewer parameters are written as float32 where 16 bits would round what was trained."""
Onto = Literal["as trained", "16-bit"]


class Values:
    """Reads base and adapter, and merges as it reads.

    Args:
        adapter: any kind that has a merge; of method lora or qlora.
        onto: what is merged onto; see `toolkit.recipe.schema.Merge`.
        dtype: the type that is merged into, as torch calls it; "": as `merge` chooses it.

    Raises:
        DataError: the adapter is damaged or does not fit the base.
        UsageError: a kind of adapter that has no merge.
    """

    def __init__(self, adapter: Artifact[AdapterFacts], onto: Onto, dtype: str = "") -> None:
        facts = adapter.facts
        self._adapter, self._onto = adapter, onto
        self.folder = Path(facts.base.folder)
        files = model_files(self.folder)
        entries = model_entries(files)
        structure = structure_of(self.folder)
        nf4 = facts.quantization is not None and onto == "as trained"
        plain = facts.vocabulary is None and not facts.stacked
        factors = plain_factors(adapter.folder, structure, entries) if plain else None
        self._general = factors is None
        self.quantization = facts.quantization if nf4 else None
        self._quantized = set(structure.linear) if nf4 else set()
        if factors is None:
            self.names = self._merged.names()
            self._entries = {name: self._merged.entry(name) for name in self.names}
            self.tied_head, self.head = self._merged.tied_head, self._merged.head
            self.vocabulary = self._merged.vocabulary
        else:
            self.names = [name for name in files if name != structure.tied_head]
            self._entries = entries
            self.tied_head, self.head, self.vocabulary = structure.tied_head, structure.head, None
        self._changed = set(factors or ())
        self._untouched: dict[str, bool] = {}
        self.dtype = dtype or output_dtype(self.entries(), self.quantization is not None, facts.base_dtype)
        self._rows = PlainRows(files, entries, factors or {}, facts.base_dtype, self.dtype)
        if self.quantization is not None and not self._general and not read_hardware().cards:
            self._round_rows(self.quantization, files)  # on a card, bitsandbytes rounds with another routine

    @functools.cached_property
    def _merged(self) -> MergedWeights:
        from toolkit.models.merged import merged_weights

        return merged_weights(self._adapter, self._onto)

    def _round_rows(self, quantization: Quantization, files: Mapping[str, Path]) -> None:
        size = quantization.blocksize
        names = sorted(name for name in self._quantized if name in files and self._entries[name].shape[1] % size == 0)

        def largest(name: str) -> Floats:
            return self._rows.largest(name, size)

        sums = {cached_sha256(path) for path in files.values()}
        told = ask(sums, names, largest, self._rows.base_dtype, quantization)
        self._rows.nf4, self._rows.quantized = NF4Rows(told, largest, size), frozenset(names)

    @property
    def without_torch(self) -> bool:
        """Whether torch has no part in it."""
        return not self._general and self._quantized <= self._rows.quantized

    def entries(self) -> list[Entry]:
        """Every tensor of the tuned model: its shape, and the type of the base's file."""
        return [self._entries[name] for name in self.names]

    def entry(self, name: str) -> Entry:
        return self._entries[name]

    def has(self, name: str) -> bool:
        """Whether the tuned model has a tensor of this name."""
        return name in self.names

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return self._merged.is_merged(name) if self._general else name in self._changed

    def by_rows(self, name: str) -> bool:
        """Whether `rows` gives this tensor."""
        if not self._rows.holds(name) or name in self._quantized - self._rows.quantized:
            return False
        if not self._general:
            return True
        if name not in self._untouched:  # a bias is merged to find out whether anything changes
            self._untouched[name] = self.vocabulary is None and not self._merged.is_merged(name)
        return self._untouched[name]

    def rows(self, name: str, rows: Rows) -> Floats:
        """Rows of a tensor seen as a matrix [rows, row length], merged: float32."""
        return self._rows.rows(name, rows)

    def whole(self, name: str) -> Floats:
        """A whole merged tensor in its own shape: float32."""
        shape = self.entry(name).shape
        if self.by_rows(name):
            return self.rows(name, slice(None)).reshape(shape)
        if self._general:
            from toolkit.models.weights import TORCH_DTYPES

            found: Any = self._merged.load(name).to(TORCH_DTYPES[self.dtype]).float().contiguous()
            return np.asarray(found.detach().numpy())
        quantization = cast(Quantization, self.quantization)
        return self._rows.merged_onto(name, self._nf4(name, quantization))

    def _nf4(self, name: str, quantization: Quantization) -> Floats:
        """A matrix as NF4 holds it, float32."""
        import torch

        from toolkit.models.weights import TORCH_DTYPES, round_to_nf4

        values = self._rows.as_trained_on(name, slice(None))
        loaded = torch.from_numpy(np.array(values)).to(TORCH_DTYPES[self._rows.base_dtype])
        return np.asarray(round_to_nf4(loaded, quantization).numpy())


def output_dtype(entries: list[Entry], quantized: bool, base_dtype: str) -> str:
    """float32 for a small model that 16 bits would round (quantized, or trained on a float32 base); else the base's type.

    The base's type is what it was loaded in, if that was 16 bits, and otherwise what most of its bytes are stored in.

    Args:
        quantized: whether it is merged onto NF4.
    """
    small = sum(math.prod(entry.shape) for entry in entries) < LOSSLESS_BELOW
    if small and (quantized or base_dtype == "float32"):
        return "float32"
    if base_dtype in SIXTEEN:
        return base_dtype
    stored = commonest_dtype(entries)
    return stored if stored in TORCH_NAMES.values() else "float32"
