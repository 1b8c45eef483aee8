"""Copy a GGUF file with texts of its metadata changed, added or taken away; its tensors stay byte for byte.

gguf-py writes a file anew, which takes half a minute for a large vocabulary and may spell other values differently; here
everything but the named texts is copied. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from toolkit.models.gguf_file import STRING, GGUFHeader, read_gguf
from toolkit.run.artifacts import new_file

Texts = Mapping[str, str | int | None]
"""Key → its new text or (unsigned) number; None: the key is taken away."""
_UINT32, _ARRAY, _VERSION = 4, 9, 3
_COUNT_AT = 16  # after "GGUF", the version (4 bytes) and the number of tensors (8 bytes)
_CHUNK = 1 << 24


def copy_with_texts(
    gguf: Path,
    out: Path,
    texts: Texts,
    header: GGUFHeader | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Path:
    """Copy a GGUF file with other texts in its metadata. A key that is there keeps its place; new ones come last.

    Args:
        out: the new file; written whole, or not at all.
        header: of `gguf`, where it was read before: that takes a second for a large vocabulary.
        tick: is told the bytes of each piece that was written.

    Raises:
        DataError: no GGUF, or damaged.
    """
    with new_file(out) as partial, partial.open("wb") as sink:
        for piece in bytes_with_texts(gguf, texts, header):
            sink.write(piece)
            tick(len(piece))
    return out


def bytes_with_texts(gguf: Path, texts: Texts, header: GGUFHeader | None = None) -> Iterator[bytes]:
    """The bytes of such a copy, in pieces."""
    header = header or read_gguf(gguf)
    with gguf.open("rb") as source:
        head = _head(source.read(header.list_end), header, texts)
        alignment = int(header.metadata.get("general.alignment", 32))
        yield head + (b"\0" * (-len(head) % alignment) if header.tensors else b"")
        source.seek(header.data_begin)
        while chunk := source.read(_CHUNK):
            yield chunk


def vocabulary_alone(gguf: Path, out: Path, texts: Texts, header: GGUFHeader | None = None) -> Path:
    """Write a GGUF file's metadata with other texts and without its tensors: llama.cpp reads that as a vocabulary.

    Raises:
        DataError: no GGUF, or damaged.
    """
    header = header or read_gguf(gguf)
    with gguf.open("rb") as source, new_file(out) as partial:
        entries = _entries(source.read(header.list_end), header, texts)
        partial.write_bytes(b"GGUF" + struct.pack("<IQQ", _VERSION, 0, len(entries)) + b"".join(entries))
    return out


def _head(old: bytes, header: GGUFHeader, texts: Texts) -> bytes:
    entries = _entries(old, header, texts)
    tensors_begin = max((end for _, end in header.places.values()), default=_COUNT_AT + 8)
    return b"".join([old[:_COUNT_AT], struct.pack("<Q", len(entries)), *entries, old[tensors_begin:]])


def _entries(old: bytes, header: GGUFHeader, texts: Texts) -> list[bytes]:
    entries = []
    for key, (begin, end) in header.places.items():
        if key not in texts:
            entries.append(old[begin:end])
        elif (text := texts[key]) is not None:
            entries.append(entry_bytes(key, text))
    return entries + [
        entry_bytes(key, text) for key, text in texts.items() if key not in header.places and text is not None
    ]


def entry_bytes(key: str, value: str | int | list[str]) -> bytes:
    """A metadata entry: a text, an unsigned number of 32 bits, or a list of texts."""
    if isinstance(value, list):
        texts = b"".join(map(_string, value))
        return _string(key) + struct.pack("<IIQ", _ARRAY, STRING, len(value)) + texts
    if isinstance(value, int):
        return _string(key) + struct.pack("<II", _UINT32, value)
    return _string(key) + struct.pack("<I", STRING) + _string(value)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
