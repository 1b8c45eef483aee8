"""From a file, or a folder of files, to rows that know their file and line.

CSV follows RFC 4180 (quoted cells may hold line ends); JSON Lines, JSON lists, XLSX (first sheet) and Parquet besides.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.data.encodings import decode
from toolkit.errors import DataError, UsageError
from toolkit.recipe.schema import nearest

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".xlsx", ".parquet")
_SAVE_AS_CSV = "Save it as CSV in UTF-8 with a header line."


@dataclass(frozen=True)
class Row:
    """One record."""

    file: str
    """Relative to the data path; a single file's own name."""
    line: int
    """Physical line where the record starts, from 1 (XLSX: sheet row; Parquet: row number)."""
    values: dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """A record that is not kept, and why."""

    file: str
    line: int
    reason: str
    text: str


@dataclass
class Table:
    """All that was read."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    """Records that are no rows: a wrong number of fields, a line that is no JSON object."""
    encodings: dict[str, str] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    """File → its columns, in the file's order."""


def find_files(path: Path) -> list[tuple[str, Path]]:
    """The data files at `path`, sorted by name, as (name relative to `path`, path). Hidden files are left out.

    Raises:
        UsageError: `path` does not exist.
        DataError: an extension that cannot be read, or a folder without data files.
    """
    known = ", ".join(EXTENSIONS)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p.relative_to(path)))
        files = [(p.relative_to(path).as_posix(), p) for p in inside if p.suffix.lower() in EXTENSIONS]
        if not files:
            others = sorted({p.suffix or p.name for p in inside})
            found = f"only {', '.join(others[:8])}" if others else "nothing"
            raise DataError(f"{path} holds no data files, {found}; known: {known}", "Point data.path at your rows.")
        return files
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"there is no {path}{nearest(path.name, beside)}", "Correct data.path (--set data.path=…).")
    if path.suffix.lower() not in EXTENSIONS:
        raise DataError(f"{path}: {path.suffix or 'no'} extension is not one that is read: {known}", _SAVE_AS_CSV)
    return [(path.name, path)]


def _is_hidden(relative: Path) -> bool:
    # "~$table.xlsx" is the lock that a running spreadsheet leaves.
    return any(part.startswith((".", "~$")) for part in relative.parts)


def read_table(path: Path, encoding: str | None = None) -> Table:
    """Read every row of a file or folder.

    Args:
        path: a file, or a folder whose files are read in the order of their names, its folders too.
        encoding: of the text files that have no byte-order mark and are not UTF-8; None tells it from their bytes.

    Raises:
        UsageError: the path does not exist.
        DataError: naming file and line: empty, header only, bytes that do not decode, NUL, an unclosed quote, …
    """
    table = Table()
    for name, file in find_files(path):
        read_file(file, name, table, encoding)
    return table


def read_file(file: Path, name: str, table: Table, encoding: str | None = None, at_most: int | None = None) -> None:
    """Add one file's rows to `table`, all or the first `at_most`. Raises as `read_table`."""
    before = len(table.rows) + len(table.dropped)
    suffix = file.suffix.lower()
    if suffix in (".xlsx", ".parquet"):
        records = _xlsx(file, name) if suffix == ".xlsx" else _parquet(file, name)
        table.encodings[name] = suffix[1:]
    else:
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise DataError(f"{name} cannot be read: {error.strerror}", f"Look at it: ls -l {file}") from error
        decoded = decode(raw, name, encoding)
        if not decoded.text.strip():
            raise DataError(f"{name} is empty ({len(raw):,} bytes)", "Export it again, or take it out of data.path.")
        table.encodings[name] = decoded.encoding
        if suffix in (".csv", ".tsv"):
            records = _csv(decoded.text, name, suffix == ".tsv")
        elif decoded.text.lstrip().startswith("["):
            records = _json_list(decoded.text, name)
        else:
            records = _json_lines(decoded.text, name)
    columns: dict[str, None] = {}
    for record in itertools.islice(records, at_most):
        if isinstance(record, Dropped):
            table.dropped.append(record)
        else:
            columns.update(dict.fromkeys(record.values))
            table.rows.append(record)
    table.columns[name] = list(columns)
    if len(table.rows) + len(table.dropped) == before:
        raise DataError(
            f"{name} has no rows, at most a header", "Export it with its rows, or take it out of data.path."
        )


def _delimiter(header: str) -> str:
    """Spreadsheets write ';' or a tab where the comma is the decimal sign."""
    outside = re.sub(r'"[^"]*"', "", header)
    return max(",;\t", key=outside.count)


def _header(cells: list[str], name: str, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    twice = next((c for c in header if c and header.count(c) > 1), None)
    if twice is not None:
        raise DataError(f"{name}:{line}: the column {twice!r} is there twice", "Rename one of them.")
    return header


def _csv(text: str, name: str, tabs: bool) -> Iterator[Row | Dropped]:
    first = text.lstrip("\r\n").partition("\n")[0]
    # newline="" leaves the line ends inside quoted cells as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else _delimiter(first), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(cells, name, line)
            elif len(cells) == len(header):
                yield Row(name, line, {c: v for c, v in zip(header, cells) if c})
            else:
                reason = f"{len(cells)} fields where the header has {len(header)}"
                yield Dropped(name, line, "wrong number of fields", f"{reason}: {','.join(cells)}")
    except csv.Error as error:
        raise _bad_quotes(text, name, start, reader.line_num, str(error)) from error


def _quote_opens(text: str, start: int) -> int:
    """The line, from `start` on, where the last quote opens that nothing closes."""
    inside, opened = False, start
    for number, line in enumerate(text.split("\n")[start - 1 :], start):
        inside ^= line.count('"') % 2 == 1
        if inside and line.count('"') % 2:
            opened = number
    return opened


def _bad_quotes(text: str, name: str, start: int, line: int, error: str) -> DataError:
    if "field larger" in error:
        what = f"a cell has more than {csv.field_size_limit():,} characters; a quote is likely not closed"
    elif "unexpected end" in error:
        start = _quote_opens(text, start)
        what = f"a quote opens here and is not closed by the end of the file (line {line})"
    else:
        what = f"at line {line} a quote closes inside a cell"
    return DataError(f"{name}:{start}: {what}", 'Close it; a quote inside a quoted cell is written twice: "".')


def _json_lines(text: str, name: str) -> Iterator[Row | Dropped]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            yield Row(name, number, value)
        else:
            yield Dropped(name, number, "not a JSON object", line)


def _json_list(text: str, name: str) -> Iterator[Row | Dropped]:
    decoder = json.JSONDecoder()
    space = re.compile(r"[\s,]*")
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        position = space.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            wrong = line + text.count("\n", counted, getattr(error, "pos", position))
            message = getattr(error, "msg", "nested too deep")
            raise DataError(f"{name}:{wrong}: not JSON: {message}", "Mend it, or save one object a line.") from error
        if isinstance(value, dict):
            yield Row(name, line, value)
        else:
            yield Dropped(name, line, "not a JSON object", json.dumps(value, ensure_ascii=False))


def _xlsx(file: Path, name: str) -> Iterator[Row | Dropped]:
    from openpyxl import load_workbook

    try:
        book = load_workbook(file, read_only=True, data_only=True)
        header: list[str] | None = None
        for number, cells in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
            values = ["" if cell is None else str(cell) for cell in cells]
            if not any(values):
                continue
            if header is None:
                header = _header(values, name, number)
            else:
                yield Row(name, number, {c: v for c, v in zip(header, values) if c})
        book.close()
    except DataError:
        raise
    except Exception as error:  # openpyxl passes on whatever zipfile and the XML parser raise
        raise DataError(f"{name} is no XLSX workbook that can be read: {error}", _SAVE_AS_CSV) from error
    if header is None:
        raise DataError(f"{name} is empty: its first sheet has no cells", _SAVE_AS_CSV)


def _parquet(file: Path, name: str) -> Iterator[Row | Dropped]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{name}: Parquet needs pyarrow", "Install it: pip install 'tune2ollama[train]'") from error
    try:
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(name, number, values)
    except (OSError, ValueError) as error:  # pyarrow's errors are children of these
        raise DataError(f"{name} is no Parquet file that can be read: {error}", _SAVE_AS_CSV) from error
