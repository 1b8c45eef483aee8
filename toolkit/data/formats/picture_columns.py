"""Which columns of a file hold pictures: told from what is in them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from toolkit.data.formats.cells import parsed
from toolkit.data.images.sources import is_picture

_NAMES = ("image", "images")
"""Columns that hold pictures where a text of the row marks their place, whatever their files are called."""
_WRITTEN = "<image>"


def picture_columns(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    image: str | Literal[False] | None,
    texts: Collection[str],
) -> tuple[str, ...]:
    """The columns, in their order.

    Args:
        image: `Columns.image`.
        texts: names that columns of texts have; only bytes make one of these a column of pictures.
    """
    if image is not None:
        return (image,) if image and image in columns else ()
    return tuple(column for column in columns if _holds_pictures(column, rows, column.strip().casefold() in texts))


def _holds_pictures(column: str, rows: Sequence[Mapping[str, Any]], named_as_text: bool) -> bool:
    held = [(parsed(row[column]), row) for row in rows if row.get(column) not in (None, "", [])]
    if named_as_text:
        held = [(value, row) for value, row in held if not isinstance(value, str)]
    if column.strip().casefold() in _NAMES and any(_WRITTEN in text for _, row in held for text in _texts(row)):
        return True
    return bool(held) and 2 * sum(is_picture(value) for value, _ in held) > len(held)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
