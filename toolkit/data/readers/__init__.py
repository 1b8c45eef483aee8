"""From a file, a folder of files or a data set of the hub to rows that know their file and line.

A file each: delimited (CSV, TSV), json_text, workbook (XLSX), columnar (Parquet, Arrow folders), hub_dataset, compressed (gz,
zst); header finds column names, files says what is read, table is what all of them give.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from toolkit.data.encodings import decode
from toolkit.data.readers.columnar import parquet_rows, saved_rows
from toolkit.data.readers.compressed import unpacked
from toolkit.data.readers.delimited import delimited
from toolkit.data.readers.files import TEXTS, find_files, kind_of, left_out
from toolkit.data.readers.hub_dataset import HUB, hub_rows
from toolkit.data.readers.json_text import json_rows
from toolkit.data.readers.table import Dropped, Records, Row, Table
from toolkit.data.readers.workbook import workbook
from toolkit.errors import DataError
from toolkit.recipe.rows import Reading

__all__ = ["Dropped", "Row", "Table", "find_files", "left_out", "places", "read_file"]


def places(reading: Reading) -> list[tuple[str, Path | None]]:
    """What is read: (name for messages, file or folder; None: a data set of the hub). Raises as `find_files`."""
    if reading.path.startswith(HUB):
        return [(reading.path, None)]
    return [(name, file) for name, file in find_files(Path(reading.path))]


def read_file(file: Path | None, name: str, table: Table, reading: Reading, at_most: int | None = None) -> None:
    """Add one file's rows to `table`, all or the first `at_most`.

    Raises:
        UsageError: the path does not exist, or a library is missing.
        DataError: naming file and line: empty, header only, bytes that do not decode, NUL, an unclosed quote, …
    """
    before = len(table.rows) + len(table.dropped)
    columns: dict[str, dict[str, None]] = {}
    for records in _records(file, name, table, reading):
        for record in itertools.islice(records, at_most):
            held = columns.setdefault(record.file, {})
            if isinstance(record, Dropped):
                table.dropped.append(record)
            else:
                held.update(dict.fromkeys(record.values))
                table.rows.append(record)
    table.columns.update({held: list(names) for held, names in columns.items()})
    if len(table.rows) + len(table.dropped) == before:
        raise DataError(
            f"{name} has no rows, at most a header", "Export it with its rows, or take it out of data.path."
        )


def _records(file: Path | None, name: str, table: Table, reading: Reading) -> list[Records]:
    if file is None:
        table.encodings[name] = "hub"
        return [hub_rows(reading.path, table.notes)]
    if file.is_dir():
        table.encodings[name] = "arrow"
        return [saved_rows(file, name, table.notes)]
    kind = kind_of(file)
    if kind in (".xlsx", ".xlsm", ".xls", ".parquet"):
        table.encodings[name] = kind[1:]
        if kind == ".parquet":
            return [parquet_rows(file, name)]
        return workbook(file, name, reading.sheet, reading.header, table.notes)
    raw = unpacked(file, name)
    decoded = decode(raw, name, reading.encoding)
    if not decoded.text.strip():
        raise DataError(f"{name} is empty ({len(raw):,} bytes)", "Export it again, or take it out of data.path.")
    table.encodings[name] = decoded.encoding
    if kind in (".csv", ".tsv"):
        return [delimited(decoded.text, name, reading.header, kind == ".tsv")]
    if kind in TEXTS:
        return [_paragraphs(decoded.text, name)]
    return [json_rows(decoded.text, name, table.notes)]


def _paragraphs(text: str, name: str) -> Records:
    """Blocks of a text between empty lines."""
    counted, line = 0, 1
    for block in re.finditer(r"(?:[^\n]*\S[^\n]*(?:\n|$))+", text):
        line, counted = line + text.count("\n", counted, block.start()), block.start()
        yield Row(name, line, {"text": block[0].strip()})
