"""From what a row says of a picture to its bytes: a file beside the rows, a part of a workbook, bytes in the row itself."""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from toolkit.data.images.refused import Refused

MARK = "\ufffc"
"""Stands in a turn's text where a picture is (Unicode's object replacement character); texts of rows lose theirs."""

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".svg", ".eps",
    ".psd", ".wmf", ".emf", ".ico", ".jp2",
)  # fmt: skip
"""Of names that mean a picture, whether or not its kind is read."""
MOST_BYTES = 64 << 20
"""Of a picture's file."""

URL = "a picture at a web address, which is never fetched"
OUTSIDE = "a picture outside the data folder"
MISSING = "a picture's file that is not there"
TOO_MANY_BYTES = f"a picture of more than {MOST_BYTES >> 20} MiB"
BAD_BASE64 = "a picture's data: address that is no picture in base64"
NO_REFERENCE = "a picture that is neither a file's name nor bytes"
LEFT_BEHIND = "a picture that stayed in its workbook (DISPIMG): read the workbook itself"
UNREADABLE = "a picture that cannot be read"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_DATA = re.compile(r"data:image/[\w.+-]+(?:;[\w=.-]+)*;base64,", re.IGNORECASE)
_BARE = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{100,}")
"""How JPEG, PNG, GIF and WebP begin in base64."""
_DISPIMG = re.compile(r"=?(?:_xlfn\.)?DISPIMG\s*\(", re.IGNORECASE)
_KEYS = ("bytes", "path", "image", "url", "image_url", "file_name")


@dataclass(frozen=True)
class InWorkbook:
    """A picture inside a workbook."""

    file: Path
    part: str
    """Its name in the package, such as xl/media/image1.png."""
    place: str
    """For people: sheet and cell."""


@dataclass(frozen=True)
class Picture:
    """A picture of a turn. Two with the same name show the same."""

    source: Any = field(default=None, compare=False)
    """What the row says of it, later where its bytes are (see `Shelf.find`); None: the next one of the row's own column."""
    name: str = ""
    """Where the album has it, relative to the dataset's folder: images/….png; empty before it is checked."""


@dataclass(frozen=True)
class Shelf:
    """Where the names that a file of rows gives to pictures lead."""

    folders: tuple[Path, ...] = ()
    """The file's own folder and the data folder: names are looked for there, and what lies outside the last is never read. Empty:
    the rows lie in no folder, so their pictures have to be in them."""

    def find(self, reference: Any) -> Path | InWorkbook | bytes:
        """Where a picture's bytes are. Raises Refused."""
        if isinstance(reference, bytes | InWorkbook):
            return reference
        if not isinstance(reference, str) or not reference.strip():
            raise Refused(NO_REFERENCE, repr(reference)[:60])
        name = reference.strip()
        if name.lower().startswith("data:") or _BARE.fullmatch(name):
            return _inline(name)
        if _DISPIMG.match(name):
            raise Refused(LEFT_BEHIND, name[:80])
        if name.lower().startswith("file://"):
            name = unquote(name[len("file://") :])
        elif "://" in name or (_SCHEME.match(name) and not re.match(r"[A-Za-z]:[\\/]", name)):
            raise Refused(URL, name[:200])
        return self._file(name)

    def _file(self, name: str) -> Path:
        outside = False
        # A name that Windows wrote.
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            for folder in dict.fromkeys(self.folders):
                try:
                    path = (folder / spelled).resolve()
                    inside, there = path.is_relative_to(self.folders[-1].resolve()), path.is_file()
                except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
                    continue
                if inside and there:
                    return path
                outside |= not inside
        raise Refused(OUTSIDE if outside else MISSING, name[:200])


def reference_of(value: Any) -> Any:
    """What says where a picture is, out of the objects that people wrap it in: {bytes, path}, {url}, {image}."""
    for _ in range(3):
        if not isinstance(value, dict):
            break
        value = next((value[key] for key in _KEYS if value.get(key)), None)
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


def is_picture(value: Any) -> bool:
    """Whether a cell's value looks like a picture or a list of them: by its kind, or by its name's ending."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(is_picture, value))
    value = reference_of(value)
    if isinstance(value, str):
        text = value.strip()
        if _DATA.match(text) or _BARE.fullmatch(text) or _DISPIMG.match(text):
            return True
        return "\n" not in text and len(text) < 500 and text.partition("?")[0].lower().endswith(ENDINGS)
    return isinstance(value, bytes | InWorkbook)


def place_of(reference: Any) -> str:
    """Which picture it is, for people."""
    if isinstance(reference, InWorkbook):
        return reference.place
    if isinstance(reference, Path):
        return "/".join(reference.parts[-2:])
    if isinstance(reference, bytes):
        return f"{len(reference):,} bytes in the row"
    return str(reference)[:80]


def read(source: Path | InWorkbook | bytes) -> bytes:
    """A picture's file. Raises Refused."""
    with opened(source) as stream:
        raw = stream.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise Refused(TOO_MANY_BYTES, place_of(source))
    return raw


@contextlib.contextmanager
def opened(source: Path | InWorkbook | bytes) -> Iterator[IO[bytes]]:
    """A picture's file, of which no more is read than whoever asks reads. Raises Refused."""
    try:
        if isinstance(source, InWorkbook):
            with _opened(source.file, source.file.stat().st_mtime_ns).open(source.part) as stream:
                yield stream
        elif isinstance(source, Path):
            with source.open("rb") as stream:
                yield stream
        else:
            yield io.BytesIO(source)
    except KeyError as error:
        raise Refused(MISSING, place_of(source)) from error
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise Refused(UNREADABLE, f"{place_of(source)}: {error}") from error


@functools.lru_cache(maxsize=1)
def _opened(file: Path, _changed: int) -> zipfile.ZipFile:
    # To open a workbook takes longer the more pictures it has; they are read one after the other.
    return zipfile.ZipFile(file)


def _inline(address: str) -> bytes:
    start = _DATA.match(address)
    if start is None and not _BARE.fullmatch(address):
        raise Refused(BAD_BASE64, address[:40])
    if len(address) > MOST_BYTES * 4 // 3 + 200:
        raise Refused(TOO_MANY_BYTES, address[:40])
    try:
        return base64.b64decode("".join(address[start.end() if start else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(BAD_BASE64, f"{address[:40]}: {error}") from error
