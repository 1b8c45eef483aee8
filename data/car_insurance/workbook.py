"""Writes a workbook with pictures, in the three ways in which spreadsheet programs keep them.

floating: anchored over a cell (ECMA-376, part 1, 20.5). in cell: "place in cell" of Excel, an error value whose metadata
leads to a picture ([MS-XLSX], 2.6.215 and 2.3.2.1). dispimg: WPS, a formula with the name of a picture in `xl/cellimages.xml`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.sax.saxutils import escape, quoteattr

Kind = Literal["floating", "in cell", "dispimg"]
KINDS: tuple[Kind, ...] = ("floating", "in cell", "dispimg")

_EMU = 9525
"""English metric units of a pixel at 96 dots an inch."""
_SHOWN = 120
"""Pixels: the height at which a floating picture is shown."""
_MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_DRAWING = "http://schemas.openxmlformats.org/drawingml/2006"
_RICH = "http://schemas.microsoft.com/office/spreadsheetml"
_MICROSOFT = "http://schemas.microsoft.com/office"
_PICTURE_NAMES = f'xmlns:xdr="{_DRAWING}/spreadsheetDrawing" xmlns:a="{_DRAWING}/main" xmlns:r="{_OFFICE}"'
_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_SHEET_TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml."
_TYPES = {
    "xl/workbook.xml": f"{_SHEET_TYPE}sheet.main+xml",
    "xl/worksheets/sheet1.xml": f"{_SHEET_TYPE}worksheet+xml",
    "xl/styles.xml": f"{_SHEET_TYPE}styles+xml",
    "xl/metadata.xml": f"{_SHEET_TYPE}sheetMetadata+xml",
    "xl/drawings/drawing1.xml": "application/vnd.openxmlformats-officedocument.drawing+xml",
    "xl/richData/rdrichvalue.xml": "application/vnd.ms-excel.rdrichvalue+xml",
    "xl/richData/rdrichvaluestructure.xml": "application/vnd.ms-excel.rdrichvaluestructure+xml",
    "xl/richData/richValueRel.xml": "application/vnd.ms-excel.richvaluerel+xml",
    "xl/cellimages.xml": "application/vnd.wps-officedocument.cellimage+xml",
}
_OF_WORKBOOK = (
    (f"{_OFFICE}/worksheet", "worksheets/sheet1.xml"),
    (f"{_OFFICE}/styles", "styles.xml"),
    (f"{_OFFICE}/sheetMetadata", "metadata.xml"),
    (f"{_MICROSOFT}/2017/06/relationships/rdRichValue", "richData/rdrichvalue.xml"),
    (f"{_MICROSOFT}/2017/06/relationships/rdRichValueStructure", "richData/rdrichvaluestructure.xml"),
    (f"{_MICROSOFT}/2022/10/relationships/richValueRel", "richData/richValueRel.xml"),
    ("http://www.wps.cn/officeDocument/2020/cellImage", "cellimages.xml"),
)


class Picture(NamedTuple):
    """A cell that holds a picture."""

    png: bytes
    size: tuple[int, int]
    """Width and height in pixels."""
    kind: Kind


Cell = str | Picture


def write_workbook(file: Path, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Write a sheet called photos. The same cells give the same bytes, where the packing is the same."""
    placed = [(cell, row, column) for row, cells in enumerate(rows, 2) for column, cell in enumerate(cells)
              if isinstance(cell, Picture)]  # fmt: skip
    of_kind = {kind: [at for at in placed if at[0].kind == kind] for kind in KINDS}
    name_of = {(row, column): f"image{number}.png" for number, (_, row, column) in enumerate(placed, 1)}

    def media(kind: Kind, up: str) -> str:
        return _relations((f"{_OFFICE}/image", f"{up}media/{name_of[row, column]}") for _, row, column in of_kind[kind])

    parts = {
        "[Content_Types].xml": _content_types(),
        "_rels/.rels": _relations([(f"{_OFFICE}/officeDocument", "xl/workbook.xml")]),
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>'
        '<sheet name="photos" sheetId="1" r:id="rId1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": _relations(_OF_WORKBOOK),
        "xl/styles.xml": _STYLES,
        "xl/worksheets/sheet1.xml": _sheet(header, rows),
        "xl/worksheets/_rels/sheet1.xml.rels": _relations([(f"{_OFFICE}/drawing", "../drawings/drawing1.xml")]),
        "xl/drawings/drawing1.xml": _drawing(of_kind["floating"]),
        "xl/drawings/_rels/drawing1.xml.rels": media("floating", "../"),
        "xl/richData/_rels/richValueRel.xml.rels": media("in cell", "../"),
        "xl/_rels/cellimages.xml.rels": media("dispimg", ""),
        "xl/cellimages.xml": _cell_images(len(of_kind["dispimg"])),
        **_rich_values(len(of_kind["in cell"])),
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in parts.items():
            packed.writestr(zipfile.ZipInfo(name), _HEAD + text, zipfile.ZIP_DEFLATED)
        for picture, row, column in placed:
            packed.writestr(zipfile.ZipInfo(f"xl/media/{name_of[row, column]}"), picture.png, zipfile.ZIP_STORED)


_STYLES = (
    f'<styleSheet xmlns="{_MAIN}"><fonts count="1"><font><sz val="11"/><name val="Calibri"/></font></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill>'
    '</fills><borders count="1"><border/></borders><cellStyleXfs count="1"><xf/></cellStyleXfs>'
    '<cellXfs count="1"><xf xfId="0"/></cellXfs>'
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>'
)


def _content_types() -> str:
    parts = "".join(f'<Override PartName="/{name}" ContentType="{kind}"/>' for name, kind in _TYPES.items())
    return (
        f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="xml" ContentType="application/xml"/>'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="png" ContentType="image/png"/>{parts}</Types>'
    )


def _relations(targets: Iterable[tuple[str, str]]) -> str:
    made = (
        f'<Relationship Id="rId{number}" Type="{kind}" Target="{target}"/>'
        for number, (kind, target) in enumerate(targets, 1)
    )
    return f'<Relationships xmlns="{_PACKAGE}/relationships">{"".join(made)}</Relationships>'


def _sheet(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    counts = dict.fromkeys(KINDS, 0)
    made = ['<row r="1">' + "".join(_text_cell(f"{_letter(c)}1", text) for c, text in enumerate(header)) + "</row>"]
    for row, cells in enumerate(rows, 2):
        made.append(f'<row r="{row}" ht="{0.75 * _SHOWN + 6}" customHeight="1">')
        for column, cell in enumerate(cells):
            place = f"{_letter(column)}{row}"
            if isinstance(cell, str):
                made.append(_text_cell(place, cell))
                continue
            counts[cell.kind] += 1
            if cell.kind == "in cell":
                made.append(f'<c r="{place}" t="e" vm="{counts[cell.kind]}"><v>#VALUE!</v></c>')
            elif cell.kind == "dispimg":
                call = f'DISPIMG("{_name(counts[cell.kind])}",1)'
                made.append(f'<c r="{place}" t="str"><f>_xlfn.{escape(call)}</f><v>={escape(call)}</v></c>')
        made.append("</row>")
    widths = "".join(f'<col min="{n}" max="{n}" width="28" customWidth="1"/>' for n in range(1, len(header) + 1))
    return (
        f'<worksheet xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><cols>{widths}</cols><sheetData>{"".join(made)}</sheetData>'
        '<drawing r:id="rId1"/></worksheet>'
    )


def _text_cell(place: str, text: str) -> str:
    return f'<c r="{place}" t="inlineStr"><is><t>{escape(text)}</t></is></c>'


def _letter(column: int) -> str:
    return chr(ord("A") + column)


def _drawing(placed: Sequence[tuple[Picture, int, int]]) -> str:
    """The anchors, those of one cell and those of two in turn; last rows first, since nothing says that they are in order."""
    made = []
    for number, (picture, row, column) in reversed(list(enumerate(placed, 1))):
        width, height = round(picture.size[0] * _SHOWN / picture.size[1]) * _EMU, _SHOWN * _EMU
        start = _corner("from", column, row - 1, 4 * _EMU, 4 * _EMU)
        if number % 2:
            body = f'{start}<xdr:ext cx="{width}" cy="{height}"/>'
            kind, mode = "oneCellAnchor", ""
        else:
            body = start + _corner("to", column, row - 1, 4 * _EMU + width, 4 * _EMU + height)
            kind, mode = "twoCellAnchor", ' editAs="oneCell"'
        shown = _picture(number, f"Picture {number}", (width, height))
        made.append(f"<xdr:{kind}{mode}>{body}{shown}<xdr:clientData/></xdr:{kind}>")
    return f"<xdr:wsDr {_PICTURE_NAMES}>{''.join(made)}</xdr:wsDr>"


def _corner(name: str, column: int, row: int, right: int, down: int) -> str:
    return (
        f"<xdr:{name}><xdr:col>{column}</xdr:col><xdr:colOff>{right}</xdr:colOff>"
        f"<xdr:row>{row}</xdr:row><xdr:rowOff>{down}</xdr:rowOff></xdr:{name}>"
    )


def _picture(number: int, name: str, size: tuple[int, int]) -> str:
    return (
        f"<xdr:pic><xdr:nvPicPr><xdr:cNvPr id={quoteattr(str(number + 1))} name={quoteattr(name)}/><xdr:cNvPicPr/>"
        f'</xdr:nvPicPr><xdr:blipFill><a:blip r:embed="rId{number}"/><a:stretch><a:fillRect/></a:stretch></xdr:blipFill>'
        f'<xdr:spPr><a:xfrm><a:off x="0" y="0"/><a:ext cx="{size[0]}" cy="{size[1]}"/></a:xfrm>'
        '<a:prstGeom prst="rect"><a:avLst/></a:prstGeom></xdr:spPr></xdr:pic>'
    )


def _name(number: int) -> str:
    return f"ID_{number:032X}"


def _cell_images(count: int) -> str:
    size = (_SHOWN * _EMU, _SHOWN * _EMU)
    made = (f"<etc:cellImage>{_picture(n, _name(n), size)}</etc:cellImage>" for n in range(1, count + 1))
    names = f'{_PICTURE_NAMES} xmlns:etc="http://www.wps.cn/officeDocument/2017/etCustomData"'
    return f"<etc:cellImages {names}>{''.join(made)}</etc:cellImages>"


def _rich_values(count: int) -> dict[str, str]:
    """From a cell's `vm` through metadata, rich value and relation to a picture."""
    blocks = "".join(
        f'<bk><extLst><ext uri="{{3e2802c4-a4d2-4d8b-9148-e3be6c30e623}}"><xlrd:rvb i="{n}"/></ext></extLst></bk>'
        for n in range(count)
    )
    values = "".join(f'<bk><rc t="1" v="{n}"/></bk>' for n in range(count))
    rich = "".join(f'<rv s="0"><v>{n}</v><v>5</v></rv>' for n in range(count))
    relations = "".join(f'<rel r:id="rId{n}"/>' for n in range(1, count + 1))
    return {
        "xl/metadata.xml": f'<metadata xmlns="{_MAIN}" xmlns:xlrd="{_RICH}/2017/richdata"><metadataTypes count="1">'
        '<metadataType name="XLRICHVALUE" minSupportedVersion="120000" copy="1" pasteAll="1" pasteValues="1" merge="1" '
        'splitFirst="1" rowColShift="1" clearFormats="1" clearComments="1" assign="1" coerce="1"/></metadataTypes>'
        f'<futureMetadata name="XLRICHVALUE" count="{count}">{blocks}</futureMetadata>'
        f'<valueMetadata count="{count}">{values}</valueMetadata></metadata>',
        "xl/richData/rdrichvalue.xml": f'<rvData xmlns="{_RICH}/2017/richdata" count="{count}">{rich}</rvData>',
        "xl/richData/rdrichvaluestructure.xml": f'<rvStructures xmlns="{_RICH}/2017/richdata" count="1">'
        '<s t="_localImage"><k n="_rvRel:LocalImageIdentifier" t="i"/><k n="CalcOrigin" t="i"/></s></rvStructures>',
        "xl/richData/richValueRel.xml": f'<richValueRels xmlns="{_RICH}/2022/richvaluerel" xmlns:r="{_OFFICE}">'
        f"{relations}</richValueRels>",
    }
