"""An export's weights as float32: of a model folder, or of a GGUF file, each by its own names.

What a GGUF's tensors are made of, the layout tells (`toolkit.models.layout`): it makes the expected tensor, and nothing here is
turned back.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from toolkit.export.ggml import widened
from toolkit.export.imatrix_file import read_imatrix
from toolkit.models.gguf_file import GGUFTensor, read_gguf
from toolkit.models.layout import Layout
from toolkit.models.safetensors_file import model_entries, model_files


class Exported(Protocol):
    """An export's weights."""

    layout: Layout | None
    """What its tensors are made of; None: they are the model's own, by their own names."""

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name (a tied head is none)."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape in transformers' order: [out, in]."""

    def others(self, names: Iterable[str]) -> list[str]:
        """Tensors besides these."""

    def type(self, name: str) -> str:
        """How it is stored: F32, F16, BF16, Q8_0, Q4_K, …"""

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        """float32; `rows`: only those of the tensor seen as a matrix [rows, row length], int64 [chosen]."""

    def importance(self, name: str) -> npt.NDArray[np.float32] | None:
        """What the rounding's errors were weighed with, float32 [matrices, row length]; None: with nothing that is known."""


class FolderWeights:
    """A model folder's safetensors."""

    layout: Layout | None = None

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
        return (found if rows is None else found.reshape(-1, found.shape[-1])[rows]).float()

    def importance(self, name: str) -> None:
        return None


class GGUFWeights:
    """A GGUF file's tensors.

    Args:
        layout: of the model that it should be; needed where its tensors are laid beside the model's.
        imatrix: the importance matrix that it was quantized with, where that is known.

    Raises:
        DataError: damaged or truncated.
    """

    def __init__(self, path: Path, layout: Layout | None = None, imatrix: Path | None = None) -> None:
        self.path = path
        self._matrix = read_imatrix(imatrix) if imatrix is not None else None
        self.layout = layout
        self.header = read_gguf(path)
        self._tensors = {tensor.name: tensor for tensor in self.header.tensors}
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")

    def has(self, name: str) -> bool:
        return name in self._tensors

    def others(self, names: Iterable[str]) -> list[str]:
        return sorted(self._tensors.keys() - set(names))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape[::-1]

    def type(self, name: str) -> str:
        return self._tensors[name].type

    def load(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        tensor = self._tensors[name]
        if rows is None or len(tensor.shape) < 2:
            values = torch.from_numpy(self.values(tensor))
            return values if rows is None else values[rows]
        chosen = self.raw(tensor)[rows.numpy()]
        return torch.from_numpy(widened(chosen, tensor.type)).reshape(len(rows), tensor.shape[0])

    def importance(self, name: str) -> npt.NDArray[np.float32] | None:
        return None if self._matrix is None else self._matrix.of(name, self._tensors[name].shape[0])

    def raw(self, tensor: GGUFTensor) -> npt.NDArray[np.uint8]:
        """A stored tensor's bytes, uint8 [rows, bytes a row]."""
        begin = self.header.data_begin + tensor.offset
        rows = int(np.prod(tensor.shape[1:], dtype=np.int64))
        found: Any = self._bytes[begin : begin + tensor.bytes].reshape(rows, -1)
        return cast("npt.NDArray[np.uint8]", found)

    def values(self, tensor: GGUFTensor) -> npt.NDArray[np.float32]:
        """A stored tensor, dequantized: float32, in transformers' order of the axes."""
        return widened(self.raw(tensor).copy(), tensor.type).reshape(tensor.shape[::-1])
