"""The chat templates that an Ollama knows: Jinja texts that it recognises, and the Go templates and stop words it puts in place.

They are Ollama's, so none is kept here: they are read from the installed program, which carries them verbatim (`go:embed`), or
from the source of its Go module where that was downloaded.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

_INDEX = b'[\n  {\n    "template": "'
_LARGEST_INDEX = 1 << 20
_ELF_POINTER = "<QQ"
_RELATIVE = (
    8,
    1027,
)  # R_X86_64_RELATIVE, R_AARCH64_RELATIVE: pointers of a position-independent program are in its relocations


@dataclass(frozen=True)
class KnownTemplate:
    """One entry of Ollama's list; several entries share a name, and with it the Go template."""

    name: str
    jinja: str
    """The text that a GGUF's template is compared with."""
    go: str | None = None
    """The Go template that replaces it; None: not found in this program."""
    stops: tuple[str, ...] | None = None
    """Stop words that come along; None: not found."""


def known_templates(binary: Path | None, version: str) -> tuple[KnownTemplate, ...] | None:
    """What this Ollama knows, from its program, else from the source of its version; None when neither tells.

    Args:
        binary: the `ollama` program; links are followed.
    """
    found = _from_program(binary) if binary is not None else None
    return found or _from_source(_module_cache() / f"github.com/ollama/ollama@v{version}" / "template")


def _module_cache() -> Path:
    chosen = os.environ.get("GOMODCACHE", "")
    if not chosen and shutil.which("go"):
        asked = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=False)
        chosen = asked.stdout.strip()
    return Path(chosen) if chosen else Path.home() / "go" / "pkg" / "mod"


def _from_source(folder: Path) -> tuple[KnownTemplate, ...] | None:
    try:
        listed = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.is_file() else None

    return tuple(_entry(row, read(f"{row['name']}.gotmpl"), read(f"{row['name']}.json")) for row in listed)


def _entry(row: dict[str, str], go: bytes | None, parameters: bytes | None) -> KnownTemplate:
    stops: tuple[str, ...] | None = None
    if parameters is not None:
        stops = tuple(json.loads(parameters).get("stop") or ())
    text = None if go is None else go.decode("utf-8").replace("\r\n", "\n")
    return KnownTemplate(row["name"], row["template"], text, stops)


def _from_program(binary: Path) -> tuple[KnownTemplate, ...] | None:
    try:
        with binary.resolve().open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(_INDEX)
            if at < 0:
                return None
            text = data[at : at + _LARGEST_INDEX].decode("utf-8", "replace")
            listed = json.JSONDecoder().raw_decode(text)[0]
            files = _Embedded(data)
            return tuple(
                _entry(row, files.find(f"{row['name']}.gotmpl"), files.find(f"{row['name']}.json")) for row in listed
            )
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


class _Embedded:
    """Files that `go:embed` put into an ELF program: a table of (name, length, data, length, hash), found by a file's name.

    Layout: https://pkg.go.dev/embed and `type file struct` in Go's embed package.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._segments: list[tuple[int, int, int]] = []  # place in the file, address, bytes
        self._seen: dict[str, bytes | None] = {}
        if data[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian
            return
        (table,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        for i in range(count):
            kind, _, place, address, _, length = struct.unpack_from("<IIQQQQ", data, table + i * size)
            if kind == 1:
                self._segments.append((place, address, length))

    def find(self, name: str) -> bytes | None:
        """The file's content, or None."""
        if name not in self._seen:
            self._seen[name] = self._find(name.encode())
        return self._seen[name]

    def _find(self, name: bytes) -> bytes | None:
        at = self._data.find(name)
        while at >= 0:
            address = self._address(at)
            content = None if address is None else self._named_at(address, len(name))
            if content is not None:
                return content
            at = self._data.find(name, at + 1)
        return None

    def _named_at(self, address: int, length: int) -> bytes | None:
        """The content whose table row begins with this pointer and length."""
        at = self._data.find(struct.pack(_ELF_POINTER, address, length))
        if at >= 0:
            place, size = struct.unpack_from(_ELF_POINTER, self._data, at + 16)
            return self._content(place, size)
        for kind in _RELATIVE:
            at = self._data.find(struct.pack(_ELF_POINTER, kind, address))
            if at < 8:
                continue
            (row,) = struct.unpack_from("<Q", self._data, at - 8)
            there = self._data.find(struct.pack(_ELF_POINTER, row + 16, kind))
            begin = self._place(row)
            if there < 0 or begin is None or struct.unpack_from("<Q", self._data, begin + 8)[0] != length:
                continue
            (place,) = struct.unpack_from("<Q", self._data, there + 16)
            return self._content(place, struct.unpack_from("<Q", self._data, begin + 24)[0])
        return None

    def _content(self, address: int, size: int) -> bytes | None:
        place = self._place(address)
        return None if place is None or size > _LARGEST_INDEX else self._data[place : place + size]

    def _address(self, place: int) -> int | None:
        return next((a + place - p for p, a, size in self._segments if p <= place < p + size), None)

    def _place(self, address: int) -> int | None:
        return next((p + address - a for p, a, size in self._segments if a <= address < a + size), None)
