"""To which cell a floating picture belongs: that of its anchor, where the picture lies over one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

from openpyxl.utils.cell import get_column_letter, range_boundaries

from toolkit.data.readers.package import LINKED, NAMES, Package

ACROSS = "a picture that lies across rows"
NO_CELL = "a picture that is anchored to no cell"
CHANGED = "a picture that was cropped, turned or mirrored in the workbook"
_POINT = 12_700
"""English metric units (ECMA-376 part 1, 20.1.2.1)."""
_USUAL_HEIGHT = 15.0
"""Points of a row that nothing is said of."""
_MOST = 0.75
"""Of a picture's height: where so much lies over one row, it belongs there."""


class Grid:
    """Heights and merged cells of a sheet."""

    def __init__(self) -> None:
        self._usual = _USUAL_HEIGHT
        self._heights: dict[int, float] = {}
        self.merged: dict[tuple[int, int], int] = {}
        """(first row, first column) → last row, of cells that are merged downwards; from 1."""

    def learn(self, element: ElementTree.Element) -> None:
        """Take in a row, a merged range or the sheet's usual height."""
        if element.tag.endswith("}mergeCell"):
            left, top, _, bottom = range_boundaries(element.get("ref", "A1"))
            if bottom > top:
                self.merged[top, left] = bottom
        elif element.tag.endswith("}row"):
            if element.get("ht") is not None and element.get("r") is not None:
                self._heights[int(element.get("r", 0))] = float(element.get("ht", 0))
        elif element.get("defaultRowHeight") is not None:
            self._usual = float(element.get("defaultRowHeight", _USUAL_HEIGHT))

    def height(self, row: int) -> int:
        """Of a row, in English metric units."""
        return round(self._heights.get(row, self._usual) * _POINT)

    def first_of(self, row: int, column: int) -> int:
        """The row where the merged cells begin that a cell is one of; its own, where it is none."""
        return next((top for (top, left), last in self.merged.items() if left == column and top <= row <= last), row)


class Anchored(NamedTuple):
    """A floating picture."""

    part: str
    cell: tuple[int, int] | None
    """Row and column, from 1; None: none for certain."""
    rows: tuple[int, ...]
    """Over which it lies; empty: it is anchored to no cell."""
    place: str
    """For people."""
    fault: str
    """Why it cannot be used; empty: it can."""
    reaches: bool = False
    """It belongs to the row of its upper left corner, and lies over others too."""


def anchored(package: Package, drawing: str, grid: Grid) -> Iterator[Anchored]:
    """The pictures of a drawing, those in groups too."""
    relations = package.relations(drawing)
    anchors = (element for element in package.tree(drawing).iter() if element.tag.endswith("Anchor"))
    for anchor in anchors:
        for picture in anchor.iter(f"{NAMES['xdr']}pic"):
            part = package.picture(picture, relations)
            start = anchor.find(f"{NAMES['xdr']}from")
            if start is None:
                name = next((inner.get("name", "") for inner in picture.iter(f"{NAMES['xdr']}cNvPr")), "")
                yield Anchored(part or "", None, (), name, NO_CELL)
                continue
            row, column = _number(start, "row") + 1, _number(start, "col") + 1
            rows = _rows(anchor, start, row, grid)
            firsts = {grid.first_of(number, column) for number in rows}
            most = max(rows, key=lambda number: rows[number])
            reaches = _is_pinned(anchor, start) and rows.get(row, 0) < _MOST
            if _is_pinned(anchor, start):
                most = row
            elif len(firsts) > 1 and rows[most] < _MOST:
                over = [number for number, share in rows.items() if 2 * share >= rows[most]]
                yield Anchored(part or "", None, tuple(over), _place(column, over), ACROSS)
                continue
            fault = LINKED if part is None else CHANGED if _is_changed(picture) else ""
            at = (grid.first_of(most, column), column)
            yield Anchored(part or "", at, (at[0],), _place(column, [at[0]]), fault, reaches)


def _is_pinned(anchor: ElementTree.Element, start: ElementTree.Element) -> bool:
    """Whether its only anchor is the upper left corner of a cell: then its size says nothing, whatever it covers."""
    return anchor.tag == f"{NAMES['xdr']}oneCellAnchor" and _number(start, "rowOff") == 0


def _rows(anchor: ElementTree.Element, start: ElementTree.Element, row: int, grid: Grid) -> dict[int, float]:
    """Each row over which a picture lies → the share of its height that does."""
    above = min(_number(start, "rowOff"), grid.height(row))
    end, size = anchor.find(f"{NAMES['xdr']}to"), anchor.find(f"{NAMES['xdr']}ext")
    covered: dict[int, int] = {}
    if end is not None:
        last = max(row, _number(end, "row") + 1)
        covered = {number: grid.height(number) for number in range(row, min(last, row + 5000))}
        covered[last] = min(_number(end, "rowOff"), grid.height(last))
        covered[row] = max(0, covered[row] - above)
    else:
        left = max(1, int(size.get("cy", 1))) if size is not None else 1
        number, room = row, max(0, grid.height(row) - above)
        while left > 0 and number < row + 5000:
            covered[number] = min(left, room)
            left, number = left - covered[number], number + 1
            room = grid.height(number)
    total = sum(covered.values())
    return {number: part / total for number, part in covered.items() if part} if total else {row: 1.0}


def _is_changed(picture: ElementTree.Element) -> bool:
    crop = next(picture.iter(f"{NAMES['a']}srcRect"), None)
    frame = next(picture.iter(f"{NAMES['a']}xfrm"), None)
    cropped = crop is not None and any(int(crop.get(side, 0)) for side in "ltrb")
    return cropped or (
        frame is not None and any(frame.get(name) not in (None, "0", "false") for name in ("rot", "flipH", "flipV"))
    )


def _number(corner: ElementTree.Element, name: str) -> int:
    found = corner.find(f"{NAMES['xdr']}{name}")
    return int(float(found.text or 0)) if found is not None else 0


def _place(column: int, rows: Sequence[int]) -> str:
    letter = get_column_letter(column)
    return f"cell {letter}{min(rows)}" if len(rows) == 1 else f"cells {letter}{min(rows)} to {letter}{max(rows)}"
