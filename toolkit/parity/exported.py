"""The weights of an export by the names that the base calls them, as float32: of a model folder or of a GGUF file.

A GGUF's tensors have other names, and for some architectures another order or an offset. What the converter did is undone
here, so that a tensor can be laid beside the one that it was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from toolkit.gguf_file import GGUFTensor, read_gguf
from toolkit.safetensors_file import model_files, read_header

_PERMUTED = ("llama",)
"""Architectures whose query and key rows llama.cpp keeps in another order than transformers."""
_NORM_PLUS_ONE = ("gemma", "gemma2", "gemma3")
"""Architectures whose norms multiply by 1 + weight in transformers and by the weight in llama.cpp."""
KNOWN = (*_PERMUTED, *_NORM_PLUS_ONE, "qwen2", "qwen3", "phi3")
"""Architectures whose tensors are otherwise the same in both; tests compare each with its source."""


class Exported(Protocol):
    """An export's weights."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name (a tied head is none)."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in transformers' order: [out, in]."""

    def type(self, name: str) -> str:
        """How it is stored: F32, F16, BF16, Q8_0, Q4_K, …"""

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        """float32, as the base spells it; `rows`: only those, int64 [chosen]."""


class FolderWeights:
    """A model folder's safetensors."""

    def __init__(self, folder: Path) -> None:
        self._files = model_files(folder)
        self._entries = {n: e for path in set(self._files.values()) for n, e in read_header(path).items()}

    def has(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

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
        self._names = _name_map(self.architecture, int(self.setting("block_count") or 0))
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def setting(self, key: str) -> Any:
        """A value of the architecture's own metadata (`llama.block_count` is `block_count`); None when it is not there."""
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def stored(self, name: str) -> GGUFTensor | None:
        """The tensor in the file that holds a tensor of the base."""
        found = self._names.get_name(name, try_suffixes=(".weight", ".bias")) if self._names else None
        return self._tensors.get(found) if found else None

    def has(self, name: str) -> bool:
        return self.stored(name) is not None

    def has_stored(self, name: str) -> bool:
        """Whether the file has a tensor of llama.cpp's name."""
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self._stored(name).shape[::-1]

    def type(self, name: str) -> str:
        return self._stored(name).type

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        tensor = self._stored(name)
        wanted = torch.arange(tensor.shape[-1]) if rows is None else rows
        kind = name.split(".")[-2]
        if self.architecture in _PERMUTED and kind in ("q_proj", "k_proj"):
            heads = self.setting("attention.head_count_kv" if kind == "k_proj" else "attention.head_count")
            wanted = unpermuted(torch.arange(tensor.shape[-1]), int(heads))[wanted]
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
