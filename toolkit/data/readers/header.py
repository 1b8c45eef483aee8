"""Where a table's header is: on a line that is named, on the first one, or nowhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

from toolkit.errors import DataError

_SENTENCE = re.compile(r"[.?!。？！…]\s*$")
_ALPHA = re.compile(r"[^\W\d_]{2}")
"""Two letters: a date may hold a T, an amount a unit's letter."""
_LONGEST_NAME = 60
_WORDS = 7


def looks_like_a_row(cells: Sequence[str], below: Sequence[Sequence[str]]) -> bool:
    """Whether a first line holds a question or a sentence where column names would stand.

    Forms write their questions there: words above a column of dates or numbers are a name all the same.

    Args:
        below: some of the next lines.
    """
    columns = list(zip(*below, strict=False))
    if any(_ALPHA.search(name) and not _ALPHA.search("".join(held)) for name, held in zip(cells, columns) if any(held)):
        return False
    return any(
        (_SENTENCE.search(cell) and len(cell) > 8) or len(cell) > _LONGEST_NAME or len(cell.split()) > _WORDS
        for cell in cells
    )


def names_of(cells: Sequence[str], place: str) -> list[str]:
    """Column names without outer space.

    Raises:
        DataError: the same twice.
    """
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{place}: the column {twice!r} is there twice", "Rename one of them.")
    return names


def by_position(count: int) -> list[str]:
    """Names of columns without a header: 1, 2, …"""
    return [str(number) for number in range(1, count + 1)]


class NoHeader(DataError):
    """A table's first line looks like a row."""


def no_header(place: str, cells: Sequence[str]) -> NoHeader:
    """A first line that looks like a row."""
    shown = " | ".join(cell if len(cell) <= 40 else cell[:40] + "…" for cell in cells[:3])
    return NoHeader(
        f"{place}: its first line looks like a row, not like column names: {shown}",
        "If there is no header, read the columns by position: --set data.header=false "
        "(data.columns.prompt and data.columns.completion are then '1', '2', …). If it is one: --set data.header=true",
    )
