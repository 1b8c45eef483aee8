"""The weights of an export by the names that the base calls them, as float32: of a model folder or of a GGUF file.

A GGUF's tensors have other names, and for some architectures another order or an offset. What the converter did is undone
here, so that a tensor can be laid beside the one that it was made from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from toolkit.errors import DataError
from toolkit.models.gguf_file import GGUFTensor, read_gguf
from toolkit.models.safetensors_file import model_entries, model_files

_PERMUTED = ("llama",)
"""Architectures whose query and key rows llama.cpp keeps in another order than transformers."""
_NORM_PLUS_ONE = ("gemma", "gemma2", "gemma3")
"""Architectures whose norms multiply by 1 + weight in transformers and by the weight in llama.cpp."""
KNOWN = (*_PERMUTED, *_NORM_PLUS_ONE, "qwen2", "qwen3", "phi3")
"""Architectures whose tensors are otherwise the same in both; tests compare each with its source."""

CONVERTED_TO = {
    "llama": ("llama",), "mistral": ("llama", "mistral3"), "qwen2": ("qwen2",), "qwen3": ("qwen3",), "gemma": ("gemma",),
    "gemma2": ("gemma2",), "gemma3": ("gemma3",), "gemma3_text": ("gemma3",), "phi3": ("phi3",),
}  # fmt: skip
"""transformers' model_type → what llama.cpp's converter calls it (its `conversion/`), for those that are known here."""


class Exported(Protocol):
    """An export's weights."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name (a tied head is none)."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in transformers' order: [out, in]."""

    def others(self, names: Iterable[str]) -> list[str]:
        """Tensors that none of these names stands for, as the export calls them."""

    def type(self, name: str) -> str:
        """How it is stored: F32, F16, BF16, Q8_0, Q4_K, …"""

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        """float32, as the base spells it; `rows`: only those, int64 [chosen]."""


class FolderWeights:
    """A model folder's safetensors."""

    def __init__(self, folder: Path) -> None:
        self._files = model_files(folder)
        self._entries = model_entries(self._files)

    def has(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def others(self, names: Iterable[str]) -> list[str]:
        # Rotary frequencies follow from the configuration; old versions of transformers saved them.
        own = sorted(self._entries.keys() - set(names))
        return [name for name in own if not name.endswith("rotary_emb.inv_freq")]

    def type(self, name: str) -> str:
        return self._entries[name].dtype

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            found = cast(torch.Tensor, file.get_tensor(name))
        return (found if rows is None else found[rows]).float()


class GGUFWeights:
    """A GGUF file's tensors.

    Raises:
        DataError: damaged or truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_gguf(path)
        self.architecture = self.header.architecture
        self.known = self.architecture in KNOWN
        """Whether its tensors can be laid beside transformers' ones."""
        self._tensors = {tensor.name: tensor for tensor in self.header.tensors}
        self._names = _name_map(self.architecture, self._number("block_count", 0))
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def setting(self, key: str) -> Any:
        """A value of the architecture's own metadata (`llama.block_count` is `block_count`); None when it is not there."""
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def _number(self, key: str, otherwise: int, layer: int | None = None) -> int:
        """A whole number of the architecture's own metadata; some are lists with a number for each layer."""
        value = self.setting(key)
        if isinstance(value, list) and layer is not None and layer < len(value):
            value = value[layer]
        value = otherwise if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(
                f"{self.path}: {self.architecture}.{key} is {str(value)[:40]}, and a whole number is needed",
                "Convert it again: the file's metadata are damaged.",
            )
        return value

    def stored(self, name: str) -> GGUFTensor | None:
        """The tensor in the file that holds a tensor of the base."""
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias")) if self._names else None
        return self._tensors.get(found) if found else None

    def has(self, name: str) -> bool:
        return self.stored(name) is not None

    def others(self, names: Iterable[str]) -> list[str]:
        known = {tensor.name for name in names if (tensor := self.stored(name)) is not None}
        return sorted(self._tensors.keys() - known)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape[::-1]

    def type(self, name: str) -> str:
        return self._stored(name).type

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        tensor = self._stored(name)
        wanted = torch.arange(tensor.shape[-1]) if rows is None else rows
        kind = name.split(".")[-2]
        if self.architecture in _PERMUTED and kind in ("q_proj", "k_proj"):
            wanted = unpermuted(torch.arange(tensor.shape[-1]), self._heads(name, kind, tensor.shape[-1]))[wanted]
        if len(tensor.shape) == 1:
            values = torch.from_numpy(self.values(tensor))[wanted]
        else:
            raw = np.ascontiguousarray(self.raw(tensor)[wanted.numpy()])
            values = torch.from_numpy(dequantized(raw, tensor.type)).reshape(len(wanted), *tensor.shape[-2::-1])
        if self.architecture in _NORM_PLUS_ONE and name.endswith("norm.weight"):
            values = values - 1
        return values

    def raw(self, tensor: GGUFTensor) -> npt.NDArray[np.uint8]:
        """A stored tensor's bytes, uint8 [rows, bytes a row]."""
        begin = self.header.data_begin + tensor.offset
        rows = int(np.prod(tensor.shape[1:], dtype=np.int64))
        found: Any = self._bytes[begin : begin + tensor.bytes].reshape(rows, -1)
        return cast("npt.NDArray[np.uint8]", found)

    def values(self, tensor: GGUFTensor) -> npt.NDArray[np.float32]:
        """A stored tensor, dequantized: float32, in transformers' order of the axes."""
        return dequantized(self.raw(tensor).copy(), tensor.type).reshape(tensor.shape[::-1])

    def _heads(self, name: str, kind: str, rows: int) -> int:
        """Query or key heads of a layer; where a file names no key heads, llama.cpp takes as many as query heads."""
        found = re.search(r"\.layers\.(\d+)\.", name)
        layer = int(found[1]) if found else None
        heads = self._number("attention.head_count", 0, layer)
        if kind == "k_proj":
            heads = self._number("attention.head_count_kv", heads, layer)
        if heads == 0 or rows % (2 * heads):
            raise DataError(
                f"{self.path}: {heads} heads do not fit the {rows} rows of {name}",
                f"{self.architecture}.attention.head_count(_kv) is wrong there: convert it again.",
            )
        return heads

    def _stored(self, name: str) -> GGUFTensor:
        tensor = self.stored(name)
        if tensor is None:
            raise KeyError(name)
        return tensor


def dequantized(raw: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.float32]:
    """Rows of a stored type as float32 [rows, row length]; `raw` uint8 [rows, bytes a row]."""
    return np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]), dtype=np.float32)


def _name_map(architecture: str, blocks: int) -> Any:
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[architecture], blocks) if architecture in numbers else None


def unpermuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Bring query or key rows (weight, bias, or their numbers) from llama.cpp's order back into transformers'.

    llama.cpp rotates neighbouring pairs of a head's rows, transformers row i together with row i + half.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
