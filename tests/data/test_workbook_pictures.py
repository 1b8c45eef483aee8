"""Pictures in workbooks: found by their cell or their anchor, and named with it where they belong to no row."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook
from openpyxl.drawing.image import Image as Drawn
from openpyxl.drawing.spreadsheet_drawing import AnchorMarker, OneCellAnchor, TwoCellAnchor
from openpyxl.drawing.xdr import XDRPositiveSize2D
from PIL import Image

from data.car_insurance.workbook import KINDS, Picture, write_workbook
from tests.data.test_pictures import png as bomb
from tests.data.test_prepare import lines, prepare, recipe
from toolkit.data.images import InWorkbook, read
from toolkit.data.readers import Dropped, Row
from toolkit.data.readers.workbook import workbook
from toolkit.errors import DataError

PIXEL = 9525
ACROSS = "a picture that lies across rows"


def png(shade: int, size: tuple[int, int] = (40, 30)) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, (shade, 100, 200)).save(made, "PNG")
    return made.getvalue()


def shade_of(picture: Any) -> int:
    assert isinstance(picture, InWorkbook)
    pixel = Image.open(io.BytesIO(read(picture))).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def rows_of(file: Path, notes: list[str] | None = None) -> dict[int, Row | Dropped]:
    found = notes if notes is not None else []
    return {row.line: row for records in workbook(file, file.name, None, None, found) for row in records}


def reasons(file: Path) -> dict[int, tuple[str, str]]:
    return {line: (row.reason, row.text) for line, row in rows_of(file).items() if isinstance(row, Dropped)}


def shades(file: Path) -> dict[int, dict[str, int]]:
    """Sheet row → column → the shade of its picture."""
    return {
        line: {column: shade_of(held) for column, held in row.values.items() if isinstance(held, InWorkbook)}
        for line, row in rows_of(file).items()
        if isinstance(row, Row)
    }


class Book:
    """A workbook whose rows are 60 pixels high, with floating pictures."""

    def __init__(self, rows: int = 6, header: tuple[str, ...] = ("photo", "question", "answer")) -> None:
        self.book = Workbook()
        self.sheet = self.book.active
        self.sheet.append(header)
        for number in range(2, rows + 2):
            self.sheet.append([None] * (len(header) - 2) + [f"What is shown on {number}?", f"Shade {number}."])
            self.sheet.row_dimensions[number].height = 45

    def drawn(self, shade: int) -> Drawn:
        return Drawn(io.BytesIO(png(shade)))

    def one(self, shade: int, row: int, down: int = 0, height: int = 50, column: int = 1) -> Book:
        """Anchored at its upper left corner, so many pixels below the row's upper edge."""
        picture = self.drawn(shade)
        start = AnchorMarker(col=column - 1, row=row - 1, rowOff=down * PIXEL)
        picture.anchor = OneCellAnchor(_from=start, ext=XDRPositiveSize2D(40 * PIXEL, height * PIXEL))
        self.sheet.add_image(picture)
        return self

    def two(self, shade: int, row: int, down: int, last: int, end: int, column: int = 1) -> Book:
        """Anchored at two corners."""
        picture = self.drawn(shade)
        start = AnchorMarker(col=column - 1, row=row - 1, rowOff=down * PIXEL)
        picture.anchor = TwoCellAnchor(_from=start, to=AnchorMarker(col=column, row=last - 1, rowOff=end * PIXEL))
        self.sheet.add_image(picture)
        return self

    def saved(self, path: Path) -> Path:
        self.book.save(path)
        return path


def edited(file: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The workbook with parts changed, or left out where None comes back."""
    with zipfile.ZipFile(file) as packed:
        parts = {name: change(name, packed.read(name)) for name in packed.namelist()}
    with zipfile.ZipFile(file, "w") as packed:
        for name, held in parts.items():
            if held is not None:
                packed.writestr(name, held)
    return file


def three_kinds(path: Path, count: int = 9) -> Path:
    rows = [
        (Picture(png(10 + n), (40, 30), KINDS[n % 3]), f"What is shown on {n}?", f"Shade {n}.") for n in range(count)
    ]
    write_workbook(path, ("photo", "question", "answer"), rows)
    return path


def test_all_three_kinds_go_with_their_row(tmp_path: Path) -> None:
    found = shades(three_kinds(tmp_path / "x.xlsx"))
    assert found == {line: {"photo": 8 + line} for line in range(2, 11)}
    first = rows_of(tmp_path / "x.xlsx")[2]
    assert isinstance(first, Row) and list(first.values) == ["photo", "question", "answer"]
    assert first.values["photo"].place == "sheet photos, cell A2"


def test_pictures_are_found_by_anchor_whatever_their_order(tmp_path: Path) -> None:
    book = Book()
    for row in (5, 2, 7, 3, 4, 6):
        book.one(10 * row, row) if row % 2 else book.two(10 * row, row, 4, row, 56)
    assert shades(book.saved(tmp_path / "x.xlsx")) == {row: {"photo": 10 * row} for row in range(2, 8)}


def test_a_picture_a_little_beside_its_row_is_taken_by_where_most_of_it_lies(tmp_path: Path) -> None:
    book = Book().two(30, 2, 55, 3, 50).one(40, 3, 56, 50).one(20, 2, 0, 200)
    assert shades(book.saved(tmp_path / "x.xlsx")) == {
        2: {"photo": 20},
        3: {"photo": 30},
        4: {"photo": 40},
        5: {},
        6: {},
        7: {},
    }


def test_a_picture_across_rows_is_named_and_its_rows_are_dropped(tmp_path: Path) -> None:
    book = Book().two(20, 2, 0, 3, 50).two(50, 5, 0, 5, 60).one(60, 6, 30, 60)
    file = book.saved(tmp_path / "x.xlsx")
    assert reasons(file) == {
        2: (ACROSS, "sheet Sheet, cells A2 to A3"), 3: (ACROSS, "sheet Sheet, cells A2 to A3"),
        6: (ACROSS, "sheet Sheet, cells A6 to A7"), 7: (ACROSS, "sheet Sheet, cells A6 to A7"),
    }  # fmt: skip
    assert shades(file) == {4: {}, 5: {"photo": 50}}


def test_pictures_that_openpyxl_puts_into_rows_of_the_usual_height(tmp_path: Path) -> None:
    book = Book(4)
    for row in range(2, 6):
        book.sheet.row_dimensions[row].height = None
        book.one(10 * row, row, height=200)
    notes: list[str] = []
    file = book.saved(tmp_path / "x.xlsx")
    assert len(rows_of(file, notes)) == 4
    assert shades(file) == {row: {"photo": 10 * row} for row in range(2, 6)}
    told = "4 pictures reach below their rows; each goes with the row of its upper left corner, the first with cell A2"
    assert notes == [f"x.xlsx: {told}"]


def test_a_picture_that_reaches_below_the_last_row_makes_no_rows(tmp_path: Path) -> None:
    book = Book(2).two(20, 2, 0, 9, 20).two(30, 20, 0, 22, 20)
    found = reasons(book.saved(tmp_path / "x.xlsx"))
    assert {row: reason for row, (reason, _) in found.items()} == {2: ACROSS, 3: ACROSS, 20: ACROSS}


def test_a_picture_over_merged_cells_goes_with_all_their_rows(tmp_path: Path) -> None:
    book = Book().two(20, 2, 0, 4, 50)
    book.sheet.merge_cells("A2:A4")
    assert shades(book.saved(tmp_path / "x.xlsx")) == {
        2: {"photo": 20},
        3: {"photo": 20},
        4: {"photo": 20},
        5: {},
        6: {},
        7: {},
    }


def test_two_columns_of_pictures_give_two_and_two_in_a_cell_none(tmp_path: Path) -> None:
    book = Book(4, ("front", "back", "question", "answer"))
    for row in (2, 3, 4):
        book.one(10 * row + 1, row, column=2).one(10 * row, row)
    book.one(99, 3)
    file = book.saved(tmp_path / "x.xlsx")
    assert shades(file) == {2: {"front": 20, "back": 21}, 4: {"front": 40, "back": 41}, 5: {}}
    assert reasons(file) == {3: ("two pictures in one cell", "sheet Sheet, cell A3")}


def test_pictures_without_words_above_the_rows_or_in_a_column_without_a_name(tmp_path: Path) -> None:
    book = Book(3, ("", "question", "answer")).one(5, 1).one(20, 2).one(90, 9)
    notes: list[str] = []
    found = rows_of(book.saved(tmp_path / "x.xlsx"), notes)
    assert isinstance(found[2], Row) and shade_of(found[2].values["A"]) == 20
    assert found[9] == Dropped("x.xlsx", 9, "a picture on a row without words", "sheet Sheet, cell A9")
    assert "x.xlsx: a picture above the rows is not read: sheet Sheet, cell A1" in notes


def test_a_picture_over_words_keeps_both(tmp_path: Path) -> None:
    book = Book(3).one(20, 2, column=2).one(30, 3, column=2).one(40, 4, column=2)
    first = rows_of(book.saved(tmp_path / "x.xlsx"))[2]
    assert isinstance(first, Row) and first.values["question"] == "What is shown on 2?"
    assert shade_of(first.values["question (picture)"]) == 20


def test_what_leads_to_no_picture_is_named_with_its_cell(tmp_path: Path) -> None:
    def change(name: str, held: bytes) -> bytes | None:
        if name == "xl/_rels/cellimages.xml.rels":  # cell A4
            return held.replace(
                b'Target="media/image3.png"', b'Target="https://example.com/a.png" TargetMode="External"'
            )
        if name == "xl/drawings/_rels/drawing1.xml.rels":  # cell A2
            return held.replace(b'Target="../media/image1.png"', b'Target="file:///c:/a.png" TargetMode="External"')
        if name == "xl/drawings/drawing1.xml":  # cell A8
            return held.replace(b'<a:blip r:embed="rId3"/>', b'<a:blip r:embed="rId3"/><a:srcRect l="10000"/>')
        if name == "xl/richData/rdrichvalue.xml":  # cell A6
            return held.replace(b"<v>1</v><v>5</v>", b"<v>77</v><v>5</v>")
        if name == "xl/worksheets/sheet1.xml":  # cell A7
            return held.replace(b"00000002", b"00000009")
        return held

    file = edited(three_kinds(tmp_path / "x.xlsx"), change)
    linked, none = (
        "a picture that is linked, not in the workbook",
        "a cell that names a picture which the workbook does not hold",
    )
    assert reasons(file) == {
        2: (linked, "sheet photos, cell A2"), 4: (linked, "sheet photos, cell A4"), 6: (none, "sheet photos, cell A6"),
        7: (none, "sheet photos, cell A7"),
        8: ("a picture that was cropped, turned or mirrored in the workbook", "sheet photos, cell A8"),
    }  # fmt: skip
    assert set(shades(file)) == {3, 5, 9, 10}


def test_a_picture_of_the_web_is_not_fetched(tmp_path: Path) -> None:
    def change(name: str, held: bytes) -> bytes:
        return held.replace(b"_localImage", b"_webimage") if name.endswith("structure.xml") else held

    found = reasons(edited(three_kinds(tmp_path / "x.xlsx"), change))
    assert found == {
        row: ("a picture from the web (IMAGE), which is never fetched", f"sheet photos, cell A{row}")
        for row in (3, 6, 9)
    }


def test_an_error_value_that_is_no_picture_is_still_one(tmp_path: Path) -> None:
    def change(name: str, held: bytes) -> bytes:
        return held.replace(b' vm="2"', b"") if name.endswith("sheet1.xml") else held

    found = reasons(edited(three_kinds(tmp_path / "x.xlsx"), change))
    assert found == {6: ("an error value in a cell", "sheet photos, cell A6: #VALUE!")}


def test_linked_pictures_are_named_where_the_workbook_holds_none(tmp_path: Path) -> None:
    def change(name: str, held: bytes) -> bytes | None:
        linked = held.replace(b'Target="/xl/media/image1.png"', b'Target="http://x/a.png" TargetMode="External"')
        return None if name.startswith("xl/media/") else linked

    file = edited(Book(3).one(20, 2).saved(tmp_path / "x.xlsx"), change)
    assert reasons(file) == {2: ("a picture that is linked, not in the workbook", "sheet Sheet, cell A2")}


def test_entities_that_grow_without_end_stop_the_reading(tmp_path: Path) -> None:
    grown = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    laughs = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "ha">{grown}]><x>&e11;</x>'.encode()
    file = edited(
        Book(3).one(20, 2).saved(tmp_path / "x.xlsx"),
        lambda name, held: laughs if name.endswith("drawing1.xml") else held,
    )
    with pytest.raises(DataError, match=r"x\.xlsx is no XLSX workbook that can be read"):
        rows_of(file)


def test_damaged_pictures_cost_their_rows_and_no_others(tmp_path: Path) -> None:
    def change(name: str, held: bytes) -> bytes | None:
        changed = {
            "xl/media/image2.png": held[:60],
            "xl/media/image4.png": bomb(60_000, 60_000),
            "xl/media/image9.png": b"%!PS-Adobe-3.0 EPSF-3.0",
        }
        return None if name == "xl/media/image6.png" else changed.get(name, held)

    file = edited(three_kinds(tmp_path / "x.xlsx", 30), change)
    facts = prepare(recipe(file, validation=0.1, test=0.1), tmp_path / "out")
    assert (facts.read, facts.kept, facts.pictures) == (30, 26, 26)
    dropped = {row["line"]: (row["reason"], row["text"]) for row in lines(tmp_path / "out", "dropped.jsonl")}
    assert {line: reason for line, (reason, _) in dropped.items()} == {
        3: "a picture that is cut off or damaged", 5: "a picture of more than 100 million pixels",
        7: "a picture that is linked, not in the workbook", 10: "a picture's file of a kind that is not read: EPS",
    }  # fmt: skip
    assert all(f"cell A{line}" in text for line, (_, text) in dropped.items())


@pytest.mark.parametrize(
    "formula", ["=[1]Sheet1!A1", "='[1]a b'!A1&\"x\"", "=cmd|' /C calc'!A0", '=WEBSERVICE("https://example.com")']
)
def test_a_formula_that_reaches_outside_is_named_even_where_its_value_was_saved(tmp_path: Path, formula: str) -> None:
    book = Book(4)
    book.sheet["C3"] = formula
    file = book.saved(tmp_path / "x.xlsx")
    edited(file, lambda _, held: held.replace(b"</f><v/>", b"</f><v>12</v>").replace(b"</f><v></v>", b"</f><v>12</v>"))
    assert reasons(file) == {3: ("a formula that reaches outside the workbook", f"sheet Sheet, cell C3: {formula}")}


def test_pictures_do_not_count_for_what_a_workbook_unpacks_to(tmp_path: Path) -> None:
    file = three_kinds(tmp_path / "x.xlsx", 3)
    with (
        zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed,
        packed.open("xl/media/zeros.png", "w", force_zip64=True) as zeros,
    ):
        for _ in range(1025):
            zeros.write(bytes(1 << 20))
    assert len(shades(file)) == 3
    with (
        zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed,
        packed.open("xl/zeros.xml", "w", force_zip64=True) as zeros,
    ):
        for _ in range(1025):
            zeros.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"unpacks to 1\.0 GiB"):
        rows_of(file)
