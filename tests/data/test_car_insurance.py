"""The sample workbook: drawn by its script, and read whole."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from data.car_insurance.draw import WORKBOOK, Sample, draw, samples
from data.car_insurance.workbook import KINDS
from tests.data.test_prepare import lines, prepare, recipe


@pytest.fixture(scope="module")
def found() -> list[Sample]:
    return list(samples())


def contents(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures are the same but for what versions of Pillow draw differently at edges."""
    return one.size == other.size and max(ImageStat.Stat(ImageChops.difference(one, other)).mean) < 1


def test_the_script_draws_the_workbook_that_is_there(tmp_path: Path) -> None:
    draw(tmp_path / "x.xlsx")
    made, there = contents(tmp_path / "x.xlsx"), contents(WORKBOOK)
    assert made.keys() == there.keys() and WORKBOOK.stat().st_size < 3 << 20
    for name, held in made.items():
        if name.endswith(".png"):
            assert alike(Image.open(io.BytesIO(held)), Image.open(io.BytesIO(there[name]))), name
        else:
            assert held == there[name], name


def test_it_holds_what_the_readme_says(found: list[Sample]) -> None:
    asked = Counter(sample.question for sample in found)
    assert (len(found), asked["Which warning light is on?"], asked["哪个警告灯亮了?"]) == (240, 80, 80)
    lights = Counter(sample.answer for sample in found if sample.question.startswith(("Which", "哪个")))
    assert len(lights) == 8 and set(lights.values()) == {20}
    assert len({sample.image.tobytes() for sample in found}) == 240
    sizes = [sample.image.size for sample in found]
    assert max(map(max, sizes)) == 420 and min(map(min, sizes)) == 196
    assert 0.2 < sum(height > width for width, height in sizes) / 240 < 0.4
    assert "`car_insurance.xlsx` | 240 | 160 |" in (WORKBOOK.parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_row_has_the_picture_that_was_drawn_for_it(tmp_path: Path, found: list[Sample]) -> None:
    facts = prepare(recipe(WORKBOOK, validation=0.1, test=0.1), tmp_path / "out")
    assert (facts.kept, facts.pictures, facts.dropped, facts.repaired) == (240, 240, {}, {})
    for side in facts.rows:
        for row in lines(tmp_path / "out", f"{side}.jsonl"):
            sample = found[row["source"]["line"] - 2]
            shown, asked = row["prompt"][1]["content"]
            assert (asked["text"], row["completion"][0]["content"]) == (sample.question, sample.answer)
            with Image.open(tmp_path / "out" / shown["image"]) as image:
                assert alike(image, sample.image)


def test_the_three_kinds_of_picture_take_turns() -> None:
    parts = contents(WORKBOOK)
    sheet, drawing = parts["xl/worksheets/sheet1.xml"].decode(), parts["xl/drawings/drawing1.xml"].decode()
    assert len(KINDS) == 3 and sheet.count(' vm="') == sheet.count("<f>_xlfn.DISPIMG") == 80
    assert drawing.count("<xdr:oneCellAnchor>") == drawing.count("<xdr:twoCellAnchor ") == 40
