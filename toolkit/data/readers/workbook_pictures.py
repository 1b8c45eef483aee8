"""Pictures of a workbook, each with the cell that it belongs to: floating, placed in a cell (Excel), or by DISPIMG (WPS).

ECMA-376 part 1: 18.3.1 (cells), 20.5 (anchors); [MS-XLSX] 2.6 (rich values). A picture is found by its anchor or by its cell,
never by its order. What leads to no picture is a fault of its row.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from openpyxl.utils.cell import coordinate_to_tuple, get_column_letter

from toolkit.data.images.sources import InWorkbook
from toolkit.data.readers.anchors import Anchored, Grid, anchored
from toolkit.data.readers.package import LINKED, NAMES, Package

FROM_WEB = "a picture from the web (IMAGE), which is never fetched"
NO_PART = "a cell that names a picture which the workbook does not hold"
TWO_IN_ONE = "two pictures in one cell"

_MAY_HOLD = ("xl/media/", "xl/drawings/drawing", "xl/richData/", "xl/cellimages")
_RICH_VALUE = "XLRICHVALUE"
_DISPIMG = re.compile(r"DISPIMG\s*\(\s*\"([^\"]+)\"", re.IGNORECASE)
Cell = tuple[int, int]
"""Sheet row and column, from 1."""


class _Leads(NamedTuple):
    """Where a cell's value or name leads; neither: to something else than a picture."""

    part: str = ""
    fault: str = ""


@dataclass
class SheetPictures:
    """What pictures a sheet has."""

    cells: dict[Cell, InWorkbook] = field(default_factory=dict)
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Sheet row → (reason, where): pictures that belong to no row for certain, or cannot be had."""
    holders: set[Cell] = field(default_factory=set)
    """Cells whose own value stands for a picture: #VALUE!, or the text of a formula."""
    notes: list[str] = field(default_factory=list)
    """Pictures that belong to no cell."""


def has_pictures(file: Path) -> bool:
    """Whether a workbook may hold pictures, or lead to some."""
    with zipfile.ZipFile(file) as packed:
        return any(name.startswith(_MAY_HOLD) for name in packed.namelist())


def sheet_pictures(file: Path) -> dict[str, SheetPictures]:
    """Sheet's title → its pictures.

    Raises:
        KeyError, ElementTree.ParseError, zipfile.BadZipFile: a damaged workbook.
    """
    with zipfile.ZipFile(file) as packed:
        package = Package(packed)
        in_cells = _in_cells(package)
        by_name = _by_name(package)
        return {
            title: _Sheet(file, package, title, part).read(in_cells, by_name)
            for title, part in package.sheets().items()
        }


class _Sheet:
    """Finds a sheet's pictures."""

    def __init__(self, file: Path, package: Package, title: str, part: str) -> None:
        self.file, self.package, self.title, self.part = file, package, title, part
        self.found = SheetPictures()

    def read(self, in_cells: list[_Leads], by_name: dict[str, _Leads]) -> SheetPictures:
        grid = Grid()
        for element in self.package.elements(self.part, "c", "row", "sheetFormatPr", "mergeCell"):
            if element.tag.endswith("}c"):
                self._cell(element, in_cells, by_name)
            else:
                grid.learn(element)
        for relation in self.package.relations(self.part).values():
            if relation.kind.endswith("/drawing") and not relation.external:
                pictures = list(anchored(self.package, relation.target, grid))
                for picture in pictures:
                    self._floating(picture)
                if reaching := [picture.place for picture in pictures if picture.reaches]:
                    self.found.notes.append(
                        f"{len(reaching):,} pictures reach below their rows; each goes with the row of its upper left corner, "
                        f"the first with {reaching[0]}"
                    )
        for (row, column), last in grid.merged.items():
            if (shown := self.found.cells.get((row, column))) is not None:
                self.found.cells.update({(below, column): shown for below in range(row + 1, last + 1)})
        return self.found

    def _cell(self, cell: ElementTree.Element, in_cells: list[_Leads], by_name: dict[str, _Leads]) -> None:
        place = cell.get("r", "")
        texts = [inner.text or "" for inner in cell if inner.tag.endswith(("}f", "}v"))]
        called = next((found for text in texts if (found := _DISPIMG.search(text))), None)
        number = int(cell.get("vm", 0))
        if called is not None:
            self._put(place, by_name.get(called[1], _Leads(fault=NO_PART)))
        elif 0 < number <= len(in_cells) and any(in_cells[number - 1]):
            self._put(place, in_cells[number - 1])

    def _put(self, place: str, found: _Leads) -> None:
        at = coordinate_to_tuple(place)
        self.found.holders.add(at)
        if found.part:
            self._take(at, found.part)
        else:
            self._fault(at[0], found.fault, f"cell {place}")

    def _floating(self, picture: Anchored) -> None:
        if picture.cell is None and not picture.rows:
            self.found.notes.append(f"not read: {picture.fault}: {picture.place}")
        elif picture.cell is None or picture.fault:
            for row in picture.rows:
                self._fault(row, picture.fault, picture.place)
        else:
            self._take(picture.cell, picture.part)

    def _take(self, at: Cell, part: str) -> None:
        place = f"cell {get_column_letter(at[1])}{at[0]}"
        if at in self.found.cells:
            self._fault(at[0], TWO_IN_ONE, place)
        else:
            self.found.cells[at] = InWorkbook(self.file, part, f"sheet {self.title}, {place}")

    def _fault(self, row: int, reason: str, where: str) -> None:
        self.found.faults.setdefault(row, (reason, f"sheet {self.title}, {where}"))


def _by_name(package: Package) -> dict[str, _Leads]:
    """The name that DISPIMG calls → its picture."""
    part = package.of_workbook("/cellImage")
    if part is None:
        return {}
    relations = package.relations(part)
    made = {}
    for picture in package.tree(part).iter(f"{NAMES['xdr']}pic"):
        name = next((inner.get("name", "") for inner in picture.iter(f"{NAMES['xdr']}cNvPr")), "")
        part = package.picture(picture, relations)
        made[name] = _Leads(fault=LINKED) if part is None else _Leads(part)
    return made


def _in_cells(package: Package) -> list[_Leads]:
    """For each number that a cell's `vm` may have, from 1: its picture."""
    metadata, values = package.of_workbook("/sheetMetadata"), package.of_workbook("/rdRichValue")
    if metadata is None or values is None:
        return []
    rich = list(_rich_values(package, values))
    tree = package.tree(metadata)
    kinds = [kind.get("name") for kind in tree.iter(f"{NAMES['main']}metadataType")]
    future = [block for block in tree.iter(f"{NAMES['main']}futureMetadata") if block.get("name") == _RICH_VALUE]
    places = [int(value.get("i", -1)) for block in future for value in block.iter(f"{NAMES['rich']}rvb")]
    made = []
    for block in tree.iterfind(f"{NAMES['main']}valueMetadata/{NAMES['main']}bk"):
        found = _Leads()
        for record in block.iter(f"{NAMES['main']}rc"):
            kind, value = int(record.get("t", 0)), int(record.get("v", -1))
            if 0 < kind <= len(kinds) and kinds[kind - 1] == _RICH_VALUE and 0 <= value < len(places):
                at = places[value]
                found = rich[at] if 0 <= at < len(rich) else _Leads(fault=NO_PART)
        made.append(found)
    return made


def _rich_values(package: Package, part: str) -> Iterator[_Leads]:
    """For each rich value its picture."""
    structures = package.of_workbook("/rdRichValueStructure")
    holder = package.of_workbook("/richValueRel")
    targets = list(_targets(package, holder)) if holder is not None else []
    shapes = []
    for structure in package.tree(structures).iter(f"{NAMES['rich']}s") if structures is not None else ():
        shapes.append((structure.get("t", ""), [key.get("n", "") for key in structure.iter(f"{NAMES['rich']}k")]))
    for value in package.tree(part).iter(f"{NAMES['rich']}rv"):
        at = int(value.get("s", -1))
        kind, keys = shapes[at] if 0 <= at < len(shapes) else ("", [])
        held = dict(zip(keys, (inner.text or "" for inner in value.iter(f"{NAMES['rich']}v"))))
        number = held.get("_rvRel:LocalImageIdentifier", "")
        if kind == "_webimage":
            yield _Leads(fault=FROM_WEB)
        elif number.isdigit():
            yield targets[int(number)] if int(number) < len(targets) else _Leads(fault=NO_PART)
        else:
            yield _Leads()


def _targets(package: Package, holder: str) -> Iterator[_Leads]:
    relations = package.relations(holder)
    for element in package.tree(holder).iter():
        if element.tag.endswith("}rel"):
            relation = relations.get(element.get(f"{NAMES['r']}id", ""))
            if relation is None:
                yield _Leads(fault=NO_PART)
            else:
                yield _Leads(fault=LINKED) if relation.external else _Leads(relation.target)
