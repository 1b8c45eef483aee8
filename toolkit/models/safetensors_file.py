"""safetensors files read by their header and written tensor by tensor, so that one tensor is in memory at a time.

Format (https://github.com/huggingface/safetensors#format): eight bytes, little endian, that give the header's length; the
header, JSON: name → {dtype, shape, data_offsets}, padded with spaces; then the tensors' bytes without gaps.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import MAKE_ROOM, DataError, ResourceError
from toolkit.models.json_file import parse_object

INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""torch's name → the format's."""
_LARGEST_HEADER = 100_000_000
_TORCH_WRITER = ("PytorchStreamWriter failed", "] . unexpected pos", "iostream error")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type as safetensors spells it, its shape, and where its bytes are in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def bytes(self) -> int:
        """Size of the tensor's data."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name, without reading their data.

    Raises:
        DataError: the file is truncated, longer than its header says, or no safetensors file.
    """
    hint = f"Get {path.name} again: it was not copied whole."
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= _LARGEST_HEADER:
                raise DataError(f"{path} is no safetensors file: its first 8 bytes give no header length", hint)
            if size < 8 + length:
                raise DataError(f"{path} is truncated: its header needs {8 + length} bytes, the file has {size}", hint)
            header = parse_object(stream.read(length))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", "Check the path and its permissions.") from error
    except ValueError as error:
        raise DataError(f"{path} is no safetensors file: its header is not JSON ({error})", hint) from error
    try:
        entries = _entries(header, 8 + length)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: the header is damaged ({error})", hint) from error
    expected = max((e.end for e in entries.values()), default=8 + length)
    if size != expected:
        word = "truncated" if size < expected else "longer than it says"
        raise DataError(f"{path} is {word}: its header promises {expected} bytes, the file has {size}", hint)
    return entries


def _entries(header: dict[str, Any], data: int) -> dict[str, Entry]:
    entries = {}
    for name, known in header.items():
        if name == "__metadata__":
            continue
        begin, end = known["data_offsets"]
        entry = Entry(name, known["dtype"], tuple(known["shape"]), data + begin, data + end)
        if entry.bytes != end - begin or begin < 0:
            raise ValueError(f"{name}: {entry.shape} of {entry.dtype} does not take {end - begin} bytes")
        entries[name] = entry
    return entries


_EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""Type → (integers of its size, the exponent's bits): all of them set mean NaN or infinity (IEEE 754)."""


def first_not_finite(path: Path, header: Mapping[str, Entry]) -> str | None:
    """The first tensor of a file that holds NaN or infinity, told from the bits; None: all are numbers."""
    import numpy

    for name, entry in sorted(header.items(), key=lambda item: item[1].begin):
        if entry.dtype in _EXPONENTS and entry.bytes:
            kind, mask = _EXPONENTS[entry.dtype]
            # A piece at a time: an embedding of a gigabyte is not to be there three times.
            values = numpy.memmap(path, kind, "r", entry.begin, (entry.bytes // numpy.dtype(kind).itemsize,))
            for start in range(0, len(values), 1 << 22):
                if ((values[start : start + (1 << 22)] & mask) == mask).any():
                    return name
    return None


def commonest_dtype(entries: Iterable[Entry]) -> str:
    """The type that most bytes are stored in, as torch calls it; one that is not in `DTYPES` as the format does."""
    stored: Counter[str] = Counter()
    for entry in entries:
        stored[entry.dtype] += entry.bytes
    names = {dtype: name for name, dtype in DTYPES.items()}
    found = stored.most_common(1)[0][0]
    return names.get(found, found)


def model_files(folder: Path) -> dict[str, Path]:
    """Tensor name → the file of a model folder that holds it; every file's header checked.

    Raises:
        DataError: no safetensors weights, a shard that is missing or truncated, or an index that does not fit its shards.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise DataError(
                f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}", "Name a folder with a whole model."
            )
        return dict.fromkeys(read_header(path), path)
    try:
        names: dict[str, str] = parse_object(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(names.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{index} is damaged: {error}", "Get it again from where the model came from.") from error
    if any("/" in shard or "\\" in shard or shard.startswith(".") for shard in shards):
        raise DataError(f"{index} names files outside its folder", "Get the model from a source that you trust.")
    held: dict[str, set[str]] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise DataError(f"{folder / shard} is missing; {index.name} names it", f"Get {shard} and put it there.")
        held[shard] = set(read_header(folder / shard))
    for name, shard in names.items():
        if name not in held[shard]:
            raise DataError(
                f"{folder / shard} does not hold {name}, as {index.name} says", "Get the whole model again."
            )
    return {name: folder / shard for name, shard in names.items()}


def model_entries(files: Mapping[str, Path]) -> dict[str, Entry]:
    """Tensor name → its entry, over the files of a model; see `model_files`."""
    return {name: entry for path in set(files.values()) for name, entry in read_header(path).items()}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk (or quota, or file size limit) into a ResourceError that names the file or folder."""
    try:
        yield
    except Exception as error:
        reason = no_space(error)
        if not reason:
            raise
        raise ResourceError(
            f"no space to write {path}: {reason}",
            f"{MAKE_ROOM}; then run again.",
        ) from error


def no_space(error: Exception) -> str:
    """Why nothing more could be written; empty for any other error.

    safetensors and tokenizers, written in Rust, raise errors of their own that hold the system's number only in their text;
    torch's writer loses even that.
    """
    if isinstance(error, OSError):
        return str(error.strerror) if error.errno in _NO_SPACE else ""
    text = str(error)
    number = re.search(r"os error (\d+)|Os \{ code: (\d+)", text)
    if number and int(number[1] or number[2]) in _NO_SPACE:
        return os.strerror(int(number[1] or number[2]))
    if isinstance(error, RuntimeError) and any(known in text for known in _TORCH_WRITER):
        return "torch could not write to the end of a file"
    return ""


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the filesystem has no hard links.

    Raises:
        ResourceError: the disk is full.
    """
    try:
        os.link(source.resolve(), target)
    except OSError:  # another filesystem, or one without hard links
        with writing(target):
            shutil.copyfile(source, target)


def plan_shards(entries: list[Entry], largest: int) -> dict[str, list[Entry]]:
    """File name → its tensors, in order, each file's data up to `largest` bytes (a larger tensor gets its own file)."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.bytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def write_model(
    folder: Path, entries: list[Entry], load: Callable[[Entry], memoryview], largest: int = 4_000_000_000
) -> None:
    """Write a model's weights as one file or as shards with an index.

    Args:
        entries: name, dtype and shape of each tensor, in the order they are written.
        load: gives the bytes of one tensor (little endian, row major); called once per tensor, in order.
        largest: bytes of data per file.

    Raises:
        ResourceError: the disk is full.
    """
    shards = plan_shards(entries, largest)
    for name, shard in shards.items():
        with writing(folder / name):
            _write_file(folder / name, shard, load)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(e.bytes for e in entries)},
            "weight_map": {e.name: name for name, shard in shards.items() for e in shard},
        }
        with writing(folder / INDEX_FILE):
            (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, entries: list[Entry], load: Callable[[Entry], memoryview]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [place, place + entry.bytes],
        }
        place += entry.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for entry in entries:
            data = load(entry)
            if data.nbytes != entry.bytes:
                raise ValueError(f"{entry.name}: {data.nbytes} bytes for {entry.shape} of {entry.dtype}")
            stream.write(data)
