"""Where the pictures of a dataset go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from toolkit.data.images.checking import upright
from toolkit.data.images.refused import Refused
from toolkit.data.images.sources import InWorkbook, place_of, read

FOLDER = "images"
_QUICK = 1
"""zlib's level: a photo takes a fifth of the time of the usual level, and a tenth more room."""


class Kept(NamedTuple):
    """A picture in an album."""

    name: str
    """images/ and 16 letters of the SHA-256 over its size and its RGB bytes: the same picture has the same name."""
    repairs: tuple[str, ...]


class Album:
    """Pictures that were checked, each once.

    Args:
        folder: an existing folder, in which they are written as PNG under images/; None: they are only checked.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._seen: dict[bytes, Kept | Refused] = {}

    def add(self, source: Path | InWorkbook | bytes) -> Kept:
        """Check a picture, and write it. Raises Refused, with its place."""
        place = place_of(source)
        raw = read(source)
        digest = hashlib.sha256(raw).digest()
        if digest not in self._seen:
            try:
                self._seen[digest] = self._kept(raw)
            except Refused as error:
                self._seen[digest] = error
        found = self._seen[digest]
        if isinstance(found, Refused):
            raise Refused(found.reason, ": ".join(filter(None, (place, found.detail))))
        return found

    def _kept(self, raw: bytes) -> Kept:
        image, repairs = upright(raw)
        shown = f"{image.width}×{image.height} ".encode() + image.tobytes()
        name = f"{FOLDER}/{hashlib.sha256(shown).hexdigest()[:16]}.png"
        if self.folder is not None and not (path := self.folder / name).exists():
            path.parent.mkdir(exist_ok=True)
            image.save(path, "PNG", compress_level=_QUICK)
        return Kept(name, repairs)

    def keep_only(self, names: Iterable[str]) -> None:
        """Remove the written pictures of rows that were dropped."""
        if self.folder is None:
            return
        wanted = set(names)
        for path in (self.folder / FOLDER).glob("*.png"):
            if f"{FOLDER}/{path.name}" not in wanted:
                path.unlink()
