"""The head of a GGUF file made from parts: metadata entries and the list of tensors, and where each tensor's data will be.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little endian).
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.models.gguf_file import entry_places

ALIGNMENT = 32
"""What the converter and llama.cpp's quantizer write, whatever a file's `general.alignment` says."""
_VERSION = 3


@dataclass(frozen=True)
class HeadTensor:
    """A tensor as the list names it."""

    name: str
    shape: tuple[int, ...]
    """In ggml's order: the row length first."""
    type: str
    """As ggml spells it in capitals: F32, F16, BF16, Q8_0, Q4_K, …"""

    @property
    def rows(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        """Of one row's data."""
        block, size = block_of(self.type)
        return self.shape[0] // block * size

    @property
    def bytes(self) -> int:
        """Of its data, without padding."""
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Head:
    """A file's head and what follows from it."""

    bytes: bytes
    """Up to the first tensor's data."""
    places: dict[str, int]
    """Tensor → where its data begins, in bytes from the file's start."""
    size: int
    """Of the whole file, the last tensor's padding included."""


@functools.cache
def _kinds() -> Any:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGMLQuantizationType, GGML_QUANT_SIZES


def type_number(name: str) -> int:
    """ggml's number of a tensor's type."""
    return int(_kinds()[0][name])


def block_of(name: str) -> tuple[int, int]:
    """(values, bytes) of what a type stores together."""
    block, size = _kinds()[1][_kinds()[0][name]]
    return int(block), int(size)


def entries_of(gguf: Path) -> dict[str, bytes]:
    """A file's metadata: key → the whole entry (key, type and value) as it stands in the file.

    Raises:
        DataError: no GGUF, or damaged.
    """
    places = entry_places(gguf)
    with gguf.open("rb") as stream:
        head = stream.read(max((end for _, end in places.values()), default=0))
    return {key: head[begin:end] for key, (begin, end) in places.items()}


def head_of(entries: Mapping[str, bytes], tensors: Sequence[HeadTensor]) -> Head:
    """Put a head together; the tensors' data follows in the order of the list."""
    parts = [b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), len(entries)), *entries.values()]
    offsets, end = {}, 0
    for tensor in tensors:
        name = tensor.name.encode()
        parts.append(struct.pack("<Q", len(name)) + name + struct.pack("<I", len(tensor.shape)))
        parts.append(struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape))
        parts.append(struct.pack("<IQ", type_number(tensor.type), end))
        offsets[tensor.name] = end
        end += _padded(tensor.bytes)
    text = b"".join(parts)
    text += b"\0" * (_padded(len(text)) - len(text))
    return Head(text, {name: len(text) + offset for name, offset in offsets.items()}, len(text) + end)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
