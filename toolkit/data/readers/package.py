"""The parts of an XLSX file and how they lead to each other (ECMA-376 part 2, open packaging conventions)."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from xml.etree import ElementTree

LINKED = "a picture that is linked, not in the workbook"
_WORKBOOK = "xl/workbook.xml"
NAMES = {
    "main": "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}",
    "r": "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}",
    "rel": "{http://schemas.openxmlformats.org/package/2006/relationships}",
    "xdr": "{http://schemas.openxmlformats.org/drawingml/2006/spreadsheetDrawing}",
    "a": "{http://schemas.openxmlformats.org/drawingml/2006/main}",
    "rich": "{http://schemas.microsoft.com/office/spreadsheetml/2017/richdata}",
}


class Relation(NamedTuple):
    """Where a part leads."""

    kind: str
    target: str
    """A part's name; of an external one an address."""
    external: bool


class Package:
    """An opened workbook's parts. Entities in its XML are bounded by expat (2.4.1 and later)."""

    def __init__(self, packed: zipfile.ZipFile) -> None:
        self._packed = packed
        self._parts = set(packed.namelist())
        start = next((r.target for r in self.relations("").values() if r.kind.endswith("/officeDocument")), _WORKBOOK)
        self._workbook = start
        self._of_workbook = self.relations(start)

    def tree(self, part: str) -> ElementTree.Element:
        """A part's XML. Raises KeyError, ParseError."""
        return ElementTree.fromstring(self._packed.read(part))  # noqa: S314 - expat bounds what entities may become

    def elements(self, part: str, *names: str) -> Iterator[ElementTree.Element]:
        """The elements of these names, whatever their namespace, one after the other; what was seen is let go."""
        ends = tuple(f"}}{name}" for name in names)
        with self._packed.open(part) as stream:
            for _, element in ElementTree.iterparse(stream, ("end",)):  # noqa: S314 - as above
                if element.tag.endswith(ends):
                    yield element
                if element.tag.endswith("}row"):
                    element.clear()

    def relations(self, part: str) -> dict[str, Relation]:
        """Id → where it leads."""
        folder, name = posixpath.split(part)
        listed = posixpath.join(folder, "_rels", f"{name}.rels")
        if listed not in self._parts:
            return {}
        made = {}
        for element in self.tree(listed).iter(f"{NAMES['rel']}Relationship"):
            target, external = element.get("Target", ""), element.get("TargetMode") == "External"
            if not external:
                target = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
            made[element.get("Id", "")] = Relation(element.get("Type", ""), target, external)
        return made

    def of_workbook(self, kind: str) -> str | None:
        """The part to which the workbook has a relation whose kind ends so."""
        found = (r.target for r in self._of_workbook.values() if r.kind.endswith(kind) and not r.external)
        return next((part for part in found if part in self._parts), None)

    def sheets(self) -> dict[str, str]:
        """Title → part, of the sheets that hold cells."""
        made = {}
        for sheet in self.tree(self._workbook).iter(f"{NAMES['main']}sheet"):
            relation = self._of_workbook.get(sheet.get(f"{NAMES['r']}id", ""))
            if relation is not None and relation.target in self._parts and relation.kind.endswith("/worksheet"):
                made[sheet.get("name", "")] = relation.target
        return made

    def picture(self, element: ElementTree.Element, relations: Mapping[str, Relation]) -> str | None:
        """The part that a picture's element shows; None: it is linked, or not there."""
        for blip in element.iter(f"{NAMES['a']}blip"):
            relation = relations.get(blip.get(f"{NAMES['r']}embed", ""))
            if relation is not None and not relation.external and relation.target in self._parts:
                return relation.target
        return None
