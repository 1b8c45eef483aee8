"""XLSX workbooks: the sheet that holds the rows and its header are found, or asked for by name."""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from toolkit.data.images.sources import InWorkbook
from toolkit.data.readers.header import by_position, looks_like_a_row, names_of, no_header
from toolkit.data.readers.table import SAVE_AS_CSV, Dropped, Records, Row
from toolkit.errors import DataError, UsageError
from toolkit.recipe.section import nearest

if TYPE_CHECKING:
    from toolkit.data.readers.workbook_pictures import SheetPictures

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""Begins files of Office before 2007, and the container of a workbook with a password ([MS-CFB], 2.2)."""
_MOST_BYTES = 1 << 30
_HEADER_WITHIN = 20
REACHES_OUT = "a formula that reaches outside the workbook"
ALONE = "a picture on a row without words"
_OUTSIDE = re.compile(r"(?<![\w\]])'?\[\d+\]|\w\s*\|\s*'|\b(?:WEBSERVICE|RTD|CALL|REGISTER\.ID)\s*\(", re.IGNORECASE)
"""In a formula: another workbook (18.17.2.3 of ECMA-376 part 1 numbers them), a program (DDE, `=cmd|'/C calc'!A0`), the web."""
_LEFT_TO_US = ("xl/media/", "xl/drawings/")
"""Parts that are not given to openpyxl: it opens every picture, and one that is damaged would end it."""
_NO_DRAWING = b'<wsDr xmlns="http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing"/>'
FORMULA = "a formula whose value was not saved"
ERROR_VALUE = "an error value in a cell"
_EMPTY_BOOK = f"{SAVE_AS_CSV[:-1]}, or look into the workbook: is it the right one?"


@dataclass(frozen=True)
class Sheet:
    """A sheet's filled rows."""

    title: str
    rows: list[tuple[int, list[str]]]
    """Sheet row → its cells, as texts; merged cells filled downwards."""
    faults: dict[int, tuple[str, str]]
    """Sheet row → (reason, what is there): cells that show nothing, or an error, and pictures that cannot be used."""
    pictures: dict[int, dict[int, InWorkbook]] = field(default_factory=dict)
    """Sheet row → column (from 0) → the picture in that cell."""
    notes: list[str] = field(default_factory=list)

    def header_at(self, header: bool | int | None) -> int | None:
        """The index in `rows` of the header; None: there is none.

        Found: the first row that fills as many cells as the rows below it do, with each text once.
        """
        if header is False or not self.rows:
            return None
        if header is True:
            return 0
        if header is not None:
            return next((i for i, (number, _) in enumerate(self.rows) if number >= header), None)
        filled = [sum(map(bool, cells)) for _, cells in self.rows]
        typical = median(filled[:200])
        for index, (_, cells) in enumerate(self.rows[:_HEADER_WITHIN]):
            texts = [cell for cell in cells if cell]
            if len(texts) >= max(typical, min(2, max(filled))) and len(set(texts)) == len(texts):
                return index
        return 0


def workbook(file: Path, name: str, sheet: str | None, header: bool | int | None, notes: list[str]) -> list[Records]:
    """The rows of the chosen sheets, one after the other.

    Args:
        sheet, header: see `Reading`.
        notes: gets a line about the sheets that are not read.

    Raises:
        UsageError: no sheet of this name.
        DataError: a workbook with a password, of an old kind, too large when unpacked, damaged, or empty.
    """
    _check(file, name)
    sheets = _sheets(file, name)
    if sheet is not None:
        chosen = [s for s in sheets if s.title == sheet]
        if not chosen:
            titles = [s.title for s in sheets]
            raise UsageError(
                f"{name}: no sheet {sheet!r}{nearest(sheet, titles)}; it has: {', '.join(titles)}",
                "Say which it is: --set data.sheet=…",
            )
    else:
        chosen = _with_most_rows(sheets, header)
    filled = [s for s in chosen if s.rows]
    if not filled:
        raise DataError(f"{name} is empty: no sheet has cells", _EMPTY_BOOK)
    if others := [s for s in sheets if s not in chosen]:
        told = ", ".join(f"{s.title} ({len(s.rows):,} rows)" for s in others)
        read = ", ".join(s.title for s in chosen)
        notes.append(f"{name}: of its sheets {read} is read; not read: {told} (choose with --set data.sheet=…)")
    return [_records(s, f"{name}[{s.title}]" if len(sheets) > 1 else name, header, notes) for s in filled]


def _check(file: Path, name: str) -> None:
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
        if head == _OLE:
            if "EncryptedPackage".encode("utf-16-le") in file.read_bytes():
                raise DataError(
                    f"{name} is locked with a password",
                    "Open it in a spreadsheet program and save it without a password.",
                )
            raise DataError(
                f"{name} is a workbook of the old kind (XLS)",
                "Open it in a spreadsheet program and save it as XLSX, or as CSV in UTF-8.",
            )
        if head[:2] != b"PK":
            raise DataError(
                f"{name} is no XLSX workbook that can be read: it begins with {head[:4]!r}",
                "Is it text with another ending? Then rename it to .csv. Else: " + SAVE_AS_CSV,
            )
        with zipfile.ZipFile(file) as packed:
            # Pictures are read one by one, and only so much of each.
            entries = [entry for entry in packed.infolist() if not entry.filename.startswith(_LEFT_TO_US[0])]
            size = sum(entry.file_size for entry in entries)
    except zipfile.BadZipFile as error:
        raise DataError(f"{name} is no XLSX workbook that can be read: {error}", SAVE_AS_CSV) from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}", f"Look at it: ls -l {file}") from error
    if size > _MOST_BYTES:
        raise DataError(
            f"{name} unpacks to {size / 2**30:.1f} GiB, which no table of texts does: it may be made to fill memory",
            "If you trust it, save its sheet as CSV in UTF-8.",
        )


def _sheets(file: Path, name: str) -> list[Sheet]:
    from openpyxl import load_workbook

    from toolkit.data.readers.workbook_pictures import has_pictures, sheet_pictures

    try:
        book = load_workbook(_without_pictures(file), data_only=True)
        # The formulas themselves: `data_only` gives the values that were saved.
        asked = load_workbook(_without_pictures(file)) if _has_formulas(file) else None
        pictures = sheet_pictures(file) if has_pictures(file) else {}
        return [
            _sheet(sheet, asked[sheet.title] if asked is not None else None, pictures.get(sheet.title))
            for sheet in book.worksheets
        ]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # openpyxl passes on whatever zipfile and the XML parser raise
        raise DataError(f"{name} is no XLSX workbook that can be read: {error}", SAVE_AS_CSV) from error


def _without_pictures(file: Path) -> Path | io.BytesIO:
    with zipfile.ZipFile(file) as packed:
        entries = packed.infolist()
        if not any(entry.filename.startswith(_LEFT_TO_US) for entry in entries):
            return file
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as copy:
            for entry in entries:
                if not entry.filename.startswith(_LEFT_TO_US):
                    copy.writestr(entry.filename, packed.read(entry))
                elif entry.filename.startswith("xl/drawings/drawing"):
                    copy.writestr(entry.filename, _NO_DRAWING)
    made.seek(0)
    return made


def _has_formulas(file: Path) -> bool:
    with zipfile.ZipFile(file) as packed:
        sheets = [n for n in packed.namelist() if n.startswith("xl/worksheets/") and n.endswith(".xml")]
        return any(b"<f>" in (xml := packed.read(n)) or b"<f " in xml for n in sheets)


def _sheet(sheet: Any, formulas: Any, pictures: SheetPictures | None) -> Sheet:
    from toolkit.data.readers.anchors import ACROSS

    fill = _merged(sheet)
    rows: list[tuple[int, list[str]]] = []
    faults = dict(pictures.faults) if pictures else {}
    held: dict[int, dict[int, InWorkbook]] = {}
    for (number, column), picture in sorted(pictures.cells.items()) if pictures else ():
        held.setdefault(number, {})[column - 1] = picture
    holders = pictures.holders if pictures else set[tuple[int, int]]()
    for number, cells in enumerate(sheet.iter_rows(), 1):
        texts = []
        for place, cell in enumerate(cells, 1):
            if (number, place) in holders:
                texts.append("")
                continue
            value = fill.get((number, place), cell.value)
            asked = formulas.cell(number, place).value if formulas is not None else None
            where = f"sheet {sheet.title}, cell {cell.coordinate}"
            if isinstance(asked, str) and asked.startswith("=") and _OUTSIDE.search(asked):
                faults[number] = (REACHES_OUT, f"{where}: {asked}")
            elif isinstance(asked, str) and asked.startswith("=") and value is None:
                faults[number] = (FORMULA, f"{where}: {asked}")
            elif getattr(cell, "data_type", "") == "e":
                faults[number] = (ERROR_VALUE, f"{where}: {value}")
            texts.append(_text(value))
        if any(texts) or number in faults:
            rows.append((number, texts))
    filled = {number for number, _ in rows}
    for number in sorted({*held, *faults} - filled):
        if number not in held and faults[number][0] == ACROSS and number - 1 in {*filled, *faults}:
            continue  # of a picture that reaches down from a row which is listed for it
        lonely = next(iter(held[number].values())).place if number in held else ""
        faults.setdefault(number, (ALONE, lonely))
        rows.append((number, []))
    return Sheet(sheet.title, sorted(rows), faults, held, pictures.notes if pictures else [])


def _merged(sheet: Any) -> dict[tuple[int, int], Any]:
    """(row, column) → the value of the cell above that it is merged with. What is merged sideways is a heading, and stays one."""
    fill = {}
    for merged in sheet.merged_cells.ranges:
        value = sheet.cell(merged.min_row, merged.min_col).value
        for number in range(merged.min_row + 1, merged.max_row + 1):
            fill[number, merged.min_col] = value
    return fill


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return str(value).strip()


def _with_most_rows(sheets: Sequence[Sheet], header: bool | int | None) -> list[Sheet]:
    """The sheet with the most rows of at least two cells, and those with the same columns."""

    def columns(sheet: Sheet) -> list[str]:
        at = sheet.header_at(header)
        return [cell.casefold() for cell in sheet.rows[at][1] if cell] if at is not None else []

    def rows(sheet: Sheet) -> int:
        return sum(sum(map(bool, cells)) > 1 for _, cells in sheet.rows)

    most = max(sheets, key=lambda s: (rows(s), len(s.rows)))
    return [s for s in sheets if s is most or (columns(s) and columns(s) == columns(most))]


def _records(sheet: Sheet, name: str, header: bool | int | None, notes: list[str]) -> Records:
    at = sheet.header_at(header)
    if at is None:
        names = by_position(max(len(cells) for _, cells in sheet.rows))
        body = sheet.rows
    else:
        number, cells = sheet.rows[at]
        if header is None and looks_like_a_row(cells, [held for _, held in sheet.rows[at + 1 : at + 6] if held]):
            raise no_header(f"{name}:{number}", [cell for cell in cells if cell])
        names = names_of(cells, f"{name}:{number}")
        body = sheet.rows[at + 1 :]
        if above := [" ".join(filter(None, c))[:40] for _, c in sheet.rows[:at] if c]:
            notes.append(f"{name}: its header is row {number}; above it, not read: {'; '.join(above[:3])}")
    notes += [f"{name}: {note}" for note in sheet.notes]
    numbers = {number for number, _ in body}
    for number, pictures in sheet.pictures.items():
        if number not in numbers:
            notes.append(f"{name}: a picture above the rows is not read: {next(iter(pictures.values())).place}")
    columns = _picture_columns(sheet, names, body)
    width = max([len(names), *(place + 1 for place in columns)])
    for number, cells in body:
        if number in sheet.faults:
            reason, text = sheet.faults[number]
            yield Dropped(name, number, reason, text)
            continue
        values: dict[str, Any] = {}
        for place in range(width):
            if place < min(len(names), len(cells)) and names[place] and cells[place]:
                values[names[place]] = cells[place]
            if place in columns:
                empty = values.get(columns[place], "")  # said, so that columns keep their order
                values[columns[place]] = sheet.pictures.get(number, {}).get(place, empty)
        yield Row(name, number, values)


def _picture_columns(sheet: Sheet, names: Sequence[str], body: Sequence[tuple[int, list[str]]]) -> dict[int, str]:
    """Columns that hold pictures → what they are called: a name of its own where pictures lie over words, else the header's."""
    found: dict[int, str] = {}
    for number, cells in body:
        for place in sheet.pictures.get(number, ()):
            from openpyxl.utils.cell import get_column_letter

            name = (names[place] if place < len(names) else "") or get_column_letter(place + 1)
            over_words = place < len(cells) and bool(cells[place])
            found[place] = f"{name} (picture)" if over_words else found.get(place, name)
    return dict(sorted(found.items()))
