"""Pictures of rows: where their bytes are (sources), whether they can be learnt from (checking), where they go (album).

Pillow is imported where a picture is opened, never before: rows of text need none.
"""

from __future__ import annotations

from toolkit.data.images.album import Album
from toolkit.data.images.checking import size_upright, upright
from toolkit.data.images.refused import Refused
from toolkit.data.images.sources import InWorkbook, Picture, Shelf, is_picture, opened, place_of, read

__all__ = [
    "Album",
    "InWorkbook",
    "Picture",
    "Refused",
    "Shelf",
    "is_picture",
    "opened",
    "place_of",
    "read",
    "size_upright",
    "upright",
]
