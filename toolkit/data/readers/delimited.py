"""CSV and TSV as RFC 4180 has them (quoted cells may hold line ends), with the delimiters that spreadsheets write."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator

from toolkit.data.readers.header import by_position, looks_like_a_row, names_of, no_header
from toolkit.data.readers.table import Dropped, Records, Row
from toolkit.errors import DataError

LONGEST_CELL = 1_000_000
"""Characters; a quote that is not closed swallows the rest of the file."""
_DELIMITERS = ",;\t|"
_LOOKED_AT = 50
_TOO_MANY = 50
_FIRST_LINES = 6
"""They tell whether the first is a header."""
WRONG_FIELDS = "wrong number of fields"
_FIELDS_HINT = (
    'Put cells that hold the delimiter into quotes ("…"), or export the table again: a spreadsheet program quotes them by '
    "itself. If there is another header: --set data.header=LINE"
)


def delimited(text: str, name: str, header: bool | int | None = None, tabs: bool = False) -> Records:
    """The rows of a table.

    Args:
        header: see `Reading.header`.
        tabs: whether cells are parted by tabs, whatever else is there.

    Raises:
        DataError: an open quote, a cell without end, a first line that is a row; most rows with another number of fields.
    """
    csv.field_size_limit(LONGEST_CELL)
    said, text, skipped = _said_delimiter(text)
    delimiter = "\t" if tabs else said or _delimiter(text)
    names: list[str] | None = None
    wrong: list[Dropped] = []
    right = 0
    lines = _lines(text, name, delimiter, skipped)
    first = list(itertools.islice(lines, _FIRST_LINES))
    for line, cells in itertools.chain(first, lines):
        if names is None:
            if header is not None and header is not True and header is not False and line < header:
                continue
            if header is None and looks_like_a_row(cells, [held for number, held in first if number > line]):
                raise no_header(f"{name}:{line}", cells)
            if header is not False:
                names = names_of(cells, f"{name}:{line}")
                continue
            names = by_position(len(cells))
        cells = _trimmed(cells, len(names))
        if len(cells) == len(names):
            right += 1
            yield Row(name, line, {column: cell for column, cell in zip(names, cells) if column})
        else:
            reason = f"{len(cells)} fields where the header has {len(names)}"
            wrong.append(Dropped(name, line, WRONG_FIELDS, f"{reason}: {delimiter.join(cells)}"))
            if len(wrong) < _TOO_MANY or right:  # else nothing of the file fits, and it is read on for the counts only
                yield wrong[-1]
    if wrong and (right == 0 or len(wrong) > max(right, 10)):
        worst = wrong[0]
        raise DataError(
            f"{name}:{worst.line}: {len(wrong):,} of {len(wrong) + right:,} rows have another number of fields than the "
            f"header, as here: {worst.text[:100]}{'…' if len(worst.text) > 100 else ''}; most likely a {delimiter!r} inside "
            "cells that nobody quoted",
            _FIELDS_HINT,
        )


def _trimmed(cells: list[str], count: int) -> list[str]:
    """Without empty cells beyond the header: some programs end every row with a delimiter."""
    return cells[:count] if len(cells) > count and not any(cells[count:]) else cells


def _said_delimiter(text: str) -> tuple[str, str, int]:
    """A first line `sep=;`, as Excel reads and writes it: the delimiter, the rest, and how many lines were taken."""
    first, _, rest = text.partition("\n")
    said = first.strip()
    return (said[4], rest, 1) if said.lower().startswith("sep=") and len(said) == 5 else ("", text, 0)


def _delimiter(text: str) -> str:
    """The one that parts the first lines into the same number of cells, most often; then into the most."""
    head = "".join(line + "\n" for line in text.lstrip("\r\n").split("\n", _LOOKED_AT)[:_LOOKED_AT])

    def fitness(delimiter: str) -> tuple[float, int]:
        try:
            counts = [len(cells) for cells in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter) if cells]
        except csv.Error:
            return 0.0, 0
        if not counts or counts[0] < 2:
            return 0.0, 0
        return 1.0 + sum(count == counts[0] for count in counts[1:]) / len(counts), counts[0]

    return max(_DELIMITERS, key=fitness)


def _lines(text: str, name: str, delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    # newline="" leaves the line ends inside quoted cells as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if any(cells):
                yield line + skipped, cells
    except csv.Error as error:
        raise _bad_quotes(text, name, start, reader.line_num, str(error), skipped) from error


def _bad_quotes(text: str, name: str, start: int, line: int, error: str, skipped: int) -> DataError:
    hint = 'Close it; a quote inside a quoted cell is written twice: "".'
    if "field larger" in error:
        long = next((part for part in itertools.islice(text.split("\n"), start - 1, None)), "")
        if len(long) > LONGEST_CELL:
            what = f"a line of {len(long):,} characters; no cell may have more than {LONGEST_CELL:,}"
            hint = "Take it out, or part it into rows; a cell as long as that is no text to learn an answer from."
        else:
            what = f"a cell has more than {LONGEST_CELL:,} characters; a quote is likely not closed"
    elif "unexpected end" in error:
        start = _quote_opens(text, start)
        what = f"a quote opens here and is not closed by the end of the file (line {line + skipped})"
    else:
        what = f"at line {line + skipped} a quote closes inside a cell"
    return DataError(f"{name}:{start + skipped}: {what}", hint)


def _quote_opens(text: str, start: int) -> int:
    """The line, from `start` on, where the last quote opens that nothing closes."""
    inside, opened = False, start
    for number, line in enumerate(text.split("\n")[start - 1 :], start):
        inside ^= line.count('"') % 2 == 1
        if inside and line.count('"') % 2:
            opened = number
    return opened
