"""Rows as they were read, before anybody knows what their columns mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SAVE_AS_CSV = "Save it as CSV in UTF-8 with a header line."


@dataclass(frozen=True)
class Row:
    """One record."""

    file: str
    """Relative to the data path; a single file's own name; of a workbook with several sheets, `name[sheet]`."""
    line: int
    """Physical line where the record starts, from 1 (XLSX: sheet row; Parquet, Arrow, columns in JSON, and a JSON list on one
    line: row number)."""
    values: dict[str, Any]
    source: str = ""
    """The name of its source, where a recipe mixes several."""


@dataclass(frozen=True)
class Dropped:
    """A record that is not kept, and why."""

    file: str
    line: int
    reason: str
    text: str


Records = Iterator[Row | Dropped]


@dataclass
class Table:
    """All that was read."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    """Records that are no rows: a wrong number of fields, a line that is no JSON object."""
    encodings: dict[str, str] = field(default_factory=dict)
    """File → its encoding, or its kind where it is no text."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """File → its columns, in the file's order."""
    notes: list[str] = field(default_factory=list)
    """What was found and not read, and what was chosen; for people."""
