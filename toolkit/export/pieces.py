"""Where the rows of a converted GGUF file come from: base and adapter, or the file itself. A piece at a time, in any order."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from toolkit.errors import DataError
from toolkit.export.blocks import Block, blocks_of, changed, whole
from toolkit.export.ggml import Bytes, Floats, stored
from toolkit.export.plain import slabs
from toolkit.export.planned import Planned
from toolkit.export.values import Values
from toolkit.models.gguf_file import GGUFHeader
from toolkit.models.gguf_head import HeadTensor
from toolkit.models.layout import Layout


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor."""

    name: str
    """Of the tensor."""
    first: int
    """Number of the first row."""
    make: Callable[[], Bytes]
    """Gives them as the converted file stores them: uint8 [rows, bytes a row]."""


def merged_pieces(values: Values, layout: Layout, converted: Planned) -> Iterator[Piece]:
    """All pieces of base and adapter: merged, and laid as the converter lays them.

    A tensor that is not made row by row is made while the pieces are counted off, before its own.
    """
    for name, tensor in converted.tensors.items():
        told, length = layout.tensors[name], tensor.shape[0]
        blocks = blocks_of(told, lambda source: values.entry(source).shape, layout.arrays)
        if blocks is not None and all(values.by_rows(block.source) for block in blocks):
            for block in blocks:
                for start, end in slabs(block.rows, length):
                    rows = functools.partial(_merged, values, told, block, start, end)
                    yield Piece(name, block.begin + start, functools.partial(_stored, rows, tensor.type))
            continue
        made = whole(told, values.whole, layout.arrays, values.dtype)
        matrix = np.ascontiguousarray(made, np.float32).reshape(-1, length)
        for start, end in slabs(len(matrix), length):
            yield Piece(name, start, functools.partial(stored, matrix[start:end], tensor.type))


def _merged(values: Values, told: dict[str, Any], block: Block, start: int, end: int) -> Floats:
    return changed(told, values.rows(block.source, block.part(start, end)), values.dtype)


def _stored(rows: Callable[[], Floats], kind: str) -> Bytes:
    return stored(rows(), kind)


@contextmanager
def pieces_of_file(path: Path, header: GGUFHeader) -> Iterator[Iterator[Piece]]:
    """All pieces of a converted file that is there; they are read while it is open."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _pieces(path, header, descriptor)
    finally:
        os.close(descriptor)


def _pieces(path: Path, header: GGUFHeader, descriptor: int) -> Iterator[Piece]:
    for told in header.tensors:
        tensor, begin = HeadTensor(told.name, told.shape, told.type), header.data_begin + told.offset
        for start, end in slabs(tensor.rows, tensor.shape[0]):
            place, shape = begin + start * tensor.row_bytes, (end - start, tensor.row_bytes)
            yield Piece(told.name, start, functools.partial(_read, path, descriptor, place, shape))


def _read(path: Path, descriptor: int, place: int, shape: tuple[int, int]) -> Bytes:
    raw = np.empty(shape, np.uint8)
    left = memoryview(cast(Any, raw.data)).cast("B")
    while left:
        count = os.preadv(descriptor, [left], place)
        if not count:
            raise DataError(f"{path} ends at byte {place}, while it is read", "Make it again.")
        left, place = left[count:], place + count
    return raw
