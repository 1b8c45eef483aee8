"""Files of importance matrices, as llama.cpp's `llama-imatrix` writes them: GGUF, for each weight the sums of the squares of what
it was multiplied with, and how many inputs that were (tools/imatrix/imatrix.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.errors import DataError
from toolkit.models.gguf_file import read_gguf
from toolkit.models.gguf_head import HeadTensor, head_of
from toolkit.models.gguf_metadata import entry_bytes
from toolkit.run.artifacts import new_file

IMATRIX_FILE = "imatrix.gguf"
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass
class Importance:
    """What a weight was multiplied with."""

    sums: npt.NDArray[np.float64]
    """Of the squares, [matrices, columns]: one matrix, or one for each expert."""
    counts: npt.NDArray[np.int64]
    """How many inputs, [matrices]."""

    def means(self) -> npt.NDArray[np.float32]:
        """Mean squares, [matrices, columns]; 1 for an expert that nothing was sent to, as llama.cpp's own reader has it."""
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), 1.0).astype(np.float32)


Matrix = Mapping[str, Importance]
"""Tensor → its importance."""


def write_imatrix(matrix: Matrix, path: Path, told: str, sequences: int, chunk: int) -> None:
    """Write a matrix as llama.cpp's `llama-imatrix` does (GGUF, `general.type` imatrix).

    Args:
        told: what was read; named in the file, and in the files that are quantized with it.
        sequences: how many.
        chunk: tokens of each at most.
    """
    entries = {
        "general.type": entry_bytes("general.type", "imatrix"),
        "imatrix.datasets": entry_bytes("imatrix.datasets", [told]),
        "imatrix.chunk_count": entry_bytes("imatrix.chunk_count", sequences),
        "imatrix.chunk_size": entry_bytes("imatrix.chunk_size", chunk),
    }
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for name, importance in matrix.items():
        arrays[name + _SUMS] = importance.sums.astype(np.float32)
        arrays[name + _COUNTS] = importance.counts.astype(np.float32)[:, None]
    head = head_of(entries, [HeadTensor(name, values.shape[::-1], "F32") for name, values in arrays.items()])
    with new_file(path) as partial, partial.open("wb") as stream:
        stream.write(head.bytes)
        for name, values in arrays.items():
            stream.seek(head.places[name])
            stream.write(values.tobytes())
        stream.truncate(head.size)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix from a file."""

    means: dict[str, npt.NDArray[np.float32]]
    """Tensor → mean squares, flat, as llama.cpp takes them."""
    file: str
    """Its name, without folders."""
    dataset: str
    """What was read for it."""
    sequences: int

    def of(self, name: str, columns: int) -> npt.NDArray[np.float32] | None:
        """Mean squares of a tensor's columns, [matrices, columns]; None: there are none."""
        found = self.means.get(name)
        return None if found is None else found.reshape(-1, columns)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises DataError where it is no matrix of this model: llama.cpp would round without it, and hardly say so.

        Args:
            shapes: of all tensors, the row length first.
        """
        fits = {
            name
            for name, shape in shapes.items()
            if len(shape) > 1
            and (means := self.means.get(name)) is not None
            and means.size == shape[0] * int(np.prod(shape[2:], dtype=np.int64))
        }
        if foreign := sorted(name for name in self.means if name not in fits):
            raise DataError(
                f"{self.file} is no importance matrix of this model: {len(foreign)} of its {len(self.means)} tensors are not "
                f"there or of another size, {foreign[0]} first",
                "Let the run measure one: export.imatrix: true",
            )


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, ours or one of `llama-imatrix`.

    Raises:
        DataError: the file is none.
    """
    header = read_gguf(path)
    if header.metadata.get("general.type") != "imatrix":
        raise DataError(f"{path} is no importance matrix", "Name a file that llama-imatrix wrote (GGUF).")
    data = np.memmap(path, np.uint8, "r", header.data_begin)
    values = {t.name: data[t.offset : t.offset + t.bytes].view(np.float32) for t in header.tensors if t.type == "F32"}
    names = [name.removesuffix(_SUMS) for name in values if name.endswith(_SUMS)]
    lacking = [name for name in names if name + _COUNTS not in values]
    if lacking or not names:
        raise DataError(
            f"{path} lacks {lacking[0] + _COUNTS if lacking else 'all sums'}", "It is damaged; make it anew."
        )
    means = {}
    for name in names:
        counts = values[name + _COUNTS].astype(np.int64).ravel()
        sums = values[name + _SUMS].astype(np.float64).reshape(len(counts), -1)
        means[name] = Importance(sums, counts).means().ravel()
        if not np.isfinite(means[name]).all():
            raise DataError(f"{path} holds what is no number for {name}", "It is damaged; make it anew.")
    datasets = header.metadata.get("imatrix.datasets") or ["unknown"]
    return Imatrix(means, path.name, str(datasets[0]), int(header.metadata.get("imatrix.chunk_count", 0)))
