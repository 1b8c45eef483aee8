"""GGUF files by their header: metadata and tensor list, checked against the file's size before anything loads them.

llama.cpp aborts the process on some damaged files, and gguf-py takes seconds for a large vocabulary; this reads 100 ms.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 2 and 3, little endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import DataError

STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UNQUANTIZED = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class GGUFTensor:
    """Shape in ggml's order: the row length first."""

    name: str
    shape: tuple[int, ...]
    type: str
    """As ggml spells it: F32, F16, BF16, Q8_0, Q4_K, …"""
    offset: int
    bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a file says of itself."""

    metadata: dict[str, Any]
    tensors: list[GGUFTensor]
    data_begin: int
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Key → where its entry in the metadata (key, type and value) begins and ends, in bytes from the file's start."""
    list_end: int = 0
    """Where the list of tensors ends: from there to `data_begin` there is only padding."""

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))


def read_gguf(path: Path) -> GGUFHeader:
    """Read a GGUF file's header, and check that all its tensors lie within the file.

    Raises:
        DataError: no GGUF file, damaged, or truncated; with the bytes expected and found.
    """
    hint = "Make it again: tune2ollama convert, or get it again from where it came from."
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise DataError(f"{path} is no GGUF file: it does not start with GGUF", hint)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _Reader(data).header()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "Check the path and its permissions.") from error
    except (struct.error, KeyError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is damaged or truncated within its header ({size} bytes found): {error}", hint
        ) from error
    expected = max((header.data_begin + t.offset + t.bytes for t in header.tensors), default=header.data_begin)
    if size < expected:
        raise DataError(f"{path} is truncated: {expected} bytes expected, {size} found", hint)
    return header


def entry_places(path: Path) -> dict[str, tuple[int, int]]:
    """Where a file's metadata entries stand, as `GGUFHeader.places`; their values are passed over, which is quick.

    Raises:
        DataError: no GGUF file, or damaged.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).entry_places()
    except (OSError, struct.error, KeyError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no GGUF file, or damaged: {error}", "Make it again.") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 4

    def number(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.data, self.place)[0]
        self.place += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.number("Q")
        if length > len(self.data) - self.place:
            raise ValueError(f"a text of {length} bytes at byte {self.place}")
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner == _ARRAY:
            raise ValueError(f"a list of lists at byte {self.place}, which llama.cpp does not read")
        if count > len(self.data) - self.place:
            raise ValueError(f"a list of {count} values at byte {self.place}")
        if inner in _NUMBERS:
            values = struct.unpack_from(f"<{count}{_NUMBERS[inner]}", self.data, self.place)
            self.place += struct.calcsize(f"<{count}{_NUMBERS[inner]}")
            return list(values)
        return self._strings(count) if inner == STRING else [self.value(inner) for _ in range(count)]

    def _strings(self, count: int) -> list[str]:
        """A vocabulary has a hundred thousand: without a call for each."""
        data, end, place, length = self.data, len(self.data), self.place, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            begin = place + 8
            place = begin + length(data, place)[0]
            if place > end:
                raise ValueError(f"a text of {place - begin} bytes at byte {begin}")
            found.append(data[begin:place].decode("utf-8"))
        self.place = place
        return found

    def skip(self, kind: int) -> None:
        """Pass over a value."""
        inner, count = (self.number("I"), self.number("Q")) if kind == _ARRAY else (kind, 1)
        if inner != STRING:
            self.place += count * struct.calcsize(f"<{_NUMBERS[inner]}")
            return
        data, place, length = self.data, self.place, struct.Struct("<Q").unpack_from
        for _ in range(count):
            place += 8 + length(data, place)[0]
        self.place = place

    def entry_places(self) -> dict[str, tuple[int, int]]:
        """Key → where its entry begins and ends."""
        if self.data[:4] != b"GGUF" or self.number("I") not in {2, 3}:
            raise ValueError("it does not start with GGUF and a version that is known")
        _, count = self.number("Q"), self.number("Q")
        places: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            begin = self.place
            key = self.string()
            self.skip(self.number("I"))
            places[key] = (begin, self.place)
        return places

    def header(self) -> GGUFHeader:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        version = self.number("I")
        if version not in {2, 3}:
            raise ValueError(f"version {version}")
        tensor_count, value_count = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        places: dict[str, tuple[int, int]] = {}
        for _ in range(value_count):
            begin = self.place
            key = self.string()
            metadata[key] = self.value(self.number("I"))
            places[key] = (begin, self.place)
        tensors = []
        for _ in range(tensor_count):
            name = self.string()
            shape = tuple(self.number("Q") for _ in range(self.number("I")))
            kind = GGMLQuantizationType(self.number("I"))
            block, block_bytes = GGML_QUANT_SIZES[kind]
            size = math.prod(shape) // block * block_bytes
            tensors.append(GGUFTensor(name, shape, kind.name, self.number("Q"), size))
        alignment = metadata.get("general.alignment", 32)
        if (
            isinstance(alignment, bool)
            or not isinstance(alignment, int)
            or alignment < 1
            or alignment & (alignment - 1)
        ):
            raise ValueError(f"general.alignment is {str(alignment)[:40]!r}, and a power of two is needed")
        begin = -(-self.place // alignment) * alignment if tensors else self.place  # a vocabulary alone is not padded
        return GGUFHeader(metadata, tensors, begin, places, self.place)
