"""Rows with pictures, in the forms in which people keep them, through the whole first stage."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.data.test_prepare import lines, prepare, recipe
from tests.data.test_workbook_pictures import Book, png
from toolkit.data.formats.messages import NOT_THE_USERS
from toolkit.data.inspect import inspect
from toolkit.data.loading import load
from toolkit.errors import DataError, UsageError
from toolkit.recipe.init import recipe_to_look
from toolkit.recipe.schema import Recipe
from toolkit.report.inspected import as_json, write_page

ASKED = {"type": "text", "text": "What is it?"}


def photos(folder: Path, count: int) -> list[str]:
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"photos/{number}.png").write_bytes(png(number))
    return [f"photos/{number}.png" for number in range(count)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def prepared(path: Path, out: Path, **data: Any) -> list[dict[str, Any]]:
    """All rows, in the order of the file."""
    prepare(recipe(path, **{"validation": 0.1, "test": 0.1, **data}), out)
    found = [row for side in ("train", "validation", "test") for row in lines(out, f"{side}.jsonl")]
    return sorted(found, key=lambda row: int(row["source"]["line"]))


def told(out: Path, row: dict[str, Any]) -> list[Any]:
    """The user's turns; a picture as the shade of its first pixel."""
    said = []
    for turn in row["prompt"] + row["completion"]:
        if turn["role"] == "user":
            parts = (
                turn["content"] if isinstance(turn["content"], list) else [{"type": "text", "text": turn["content"]}]
            )
            said += [part["text"] if part["type"] == "text" else shade(out / part["image"]) for part in parts]
    return said


def shade(path: Path) -> int:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def address(number: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(number)).decode()


def conversation(number: int, *content: Any) -> list[dict[str, Any]]:
    said = [[*content], f"And {number}?"]
    return [
        turn
        for text in said
        for turn in ({"role": "user", "content": text}, {"role": "assistant", "content": f"It is {number}."})
    ]


FORMS: dict[str, Any] = {
    "a folder and a table": lambda i, name: {"photo": name, "question": "What is it?", "answer": f"It is {i}."},
    "TRL, an image": lambda i, name: {"image": name, "prompt": "What is it?", "completion": f"It is {i}."},
    "TRL, images and turns": lambda i, name: {
        "images": [name], "messages": conversation(i, {"type": "image"}, ASKED)
    },
    "TRL, turns on two sides": lambda i, name: {
        "images": [name], "prompt": [{"role": "user", "content": [{"type": "image"}, ASKED]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": f"It is {i}."}]}],
    },
    "parts with names": lambda i, name: {
        "messages": conversation(i, {"type": "image", "image": name, "text": None}, ASKED)
    },
    "ShareGPT": lambda i, name: {
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"It is {i}."}],
        "images": [name],
    },
    "LLaVA, names without an ending": lambda i, name: {
        "id": i, "image": name.removesuffix(".png"),
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"It is {i}."}],
    },
    "no mark": lambda i, name: {
        "images": name, "messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": f"{i}."}],
    },
    "Alpaca": lambda i, name: {"instruction": "<image>What is it?", "input": "", "output": f"It is {i}.", "images": [name]},
    "bytes in base64": lambda i, _: {
        "messages": conversation(i, {"type": "image_url", "image_url": {"url": address(i)}}, ASKED)
    },
    "bare base64 in a table": lambda i, _: {
        "img": address(i).partition(",")[2], "question": "What is it?", "answer": f"It is {i}.",
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_row(tmp_path: Path, form: str) -> None:
    names = photos(tmp_path / "in", 12)
    for name in names:
        Path(tmp_path / "in" / name.removesuffix(".png")).write_bytes((tmp_path / "in" / name).read_bytes())
    jsonl(tmp_path / "in/rows.jsonl", [FORMS[form](i, name) for i, name in enumerate(names)])
    rows = prepared(tmp_path / "in/rows.jsonl", tmp_path / "out")
    assert [told(tmp_path / "out", row)[:2] for row in rows] == [[i, "What is it?"] for i in range(12)]
    assert len(list((tmp_path / "out/images").iterdir())) == 12


def test_pictures_stand_where_the_row_has_them(tmp_path: Path) -> None:
    a, b, c = photos(tmp_path / "in", 3)
    answer = {"role": "assistant", "content": "Yes."}
    parts = [{"type": "text", "text": "Before "}, {"type": "image"}, {"type": "text", "text": " after"}]
    rows = [
        {"images": [a, b], "messages": [{"role": "user", "content": "Is <image> like <image> or not?"}, answer]},
        {"images": [c, a], "messages": [
            {"role": "user", "content": "<image>This?"}, answer, {"role": "user", "content": "And <image>?"}, answer
        ]},
        {"images": [b], "messages": [{"role": "user", "content": parts}, answer]},
        {"images": [], "messages": [{"role": "user", "content": "No picture here?"}, answer]},
        {"messages": [{"role": "user", "content": "Nor \ufffc here?"}, answer]},
    ]  # fmt: skip
    jsonl(tmp_path / "in/rows.jsonl", rows)
    out = tmp_path / "out"
    found = prepared(tmp_path / "in", out, validation=0, test=0.4)
    assert {row["source"]["line"]: told(out, row) for row in found} == {
        1: ["Is", 0, "like", 1, "or not?"], 2: [2, "This?", "And", 0, "?"], 3: ["Before", 1, "after"], 4: ["No picture here?"],
        5: ["Nor  here?"],
    }  # fmt: skip
    assert [isinstance(row["prompt"][-1]["content"], str) for row in found] == [False, False, False, True, True]


def marks(marked: int, given: int) -> str:
    return f"{marked} marks of pictures in the text and {given} pictures beside it"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": ["photos/0.png"], "user": "<image> or <image>?"}, marks(2, 1)),
        ({"images": ["photos/0.png", "photos/1.png"], "user": "<image>?"}, marks(1, 2)),
        ({"images": [], "user": "<image>\nWhat?"}, marks(1, 0)),
        ({"user": "<image>\nWhat?"}, marks(1, 0)),
        ({"images": ["photos/0.png"], "user": "What?", "assistant": "This: <image>"}, NOT_THE_USERS),
        ({"images": ["photos/0.png"], "user": "What?", "assistant": [{"type": "image"}]}, NOT_THE_USERS),
        ({"images": ["photos/1.png"], "user": [{"type": "image", "image": "photos/0.png"}, {"type": "text", "text": "?"}]},
         "pictures in the turns, and others beside them"),
        ({"images": ["photos/0.png"], "user": "<image>"}, "empty prompt"),
        ({"images": ["photos/0.png"], "user": "<|image_pad|>What?"}, "special token in the text"),
        ({"images": ["../0.png"], "user": "What?"}, "a picture outside the data folder"),
        ({"images": ["http://127.0.0.1/0.png"], "user": "What?"}, "a picture at a web address, which is never fetched"),
        ({"images": [{"path": "photos/none.png", "bytes": None}], "user": "What?"}, "a picture's file that is not there"),
        ({"images": [{"path": None, "bytes": None}], "user": "What?"}, "a picture that is neither a file's name nor bytes"),
        ({"images": [7], "user": "What?"}, "a picture that is neither a file's name nor bytes"),
        ({"images": ["rows.jsonl"], "user": "What?"}, "a file that is no picture"),
    ],
)  # fmt: skip
def test_a_row_whose_pictures_cannot_be_had_is_listed(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    names = photos(tmp_path / "in", 12)
    said = {"role": "user", "content": row.pop("user")}, {"role": "assistant", "content": row.pop("assistant", "Yes.")}
    good = [FORMS["ShareGPT"](i, name) for i, name in enumerate(names)]
    jsonl(tmp_path / "in/rows.jsonl", [{**row, "conversations": said}, *good])
    assert len(prepared(tmp_path / "in", tmp_path / "out")) == 12
    [dropped] = lines(tmp_path / "out", "dropped.jsonl")
    assert (dropped["file"], dropped["line"], dropped["reason"]) == ("rows.jsonl", 1, reason)


def test_a_table_row_without_its_picture_is_listed(tmp_path: Path) -> None:
    names = photos(tmp_path / "in", 12)
    table = "".join(f"What is it?,{name},It is {i}.\n" for i, name in enumerate(names))
    (tmp_path / "in/rows.csv").write_text(f"question,photo,answer\n{table}What is it?,,Nothing.\n")
    rows = prepared(tmp_path / "in", tmp_path / "out")
    assert told(tmp_path / "out", rows[3]) == ["What is it?", 3]  # the question stands before the picture
    [dropped] = lines(tmp_path / "out", "dropped.jsonl")
    assert (dropped["line"], dropped["reason"]) == (14, "no picture on the row")


def test_pictures_that_begin_far_down_are_found(tmp_path: Path) -> None:
    names = photos(tmp_path / "in", 200)
    table = "".join(f"{name if i >= 120 else ''},What is {i}?,It is {i}.\n" for i, name in enumerate(names))
    (tmp_path / "in/rows.csv").write_text(f"photo,question,answer\n{table}")
    facts = prepare(recipe(tmp_path / "in", validation=0.1, test=0.1), tmp_path / "out")
    assert (facts.pictures, facts.kept, facts.dropped) == (80, 80, {"no picture on the row": 120})


def test_the_column_can_be_named_or_left_unused(tmp_path: Path) -> None:
    names = photos(tmp_path / "in", 12)
    table = "".join(f"{name},photos/{11 - i}.png,What is {i}?,It is {i}.\n" for i, name in enumerate(names))
    (tmp_path / "in/rows.csv").write_text(f"front,back,question,answer\n{table}")
    both, one, none = (
        prepared(tmp_path / "in", tmp_path / str(i), columns={"image": column} if column is not None else {})
        for i, column in enumerate((None, "front", False))
    )
    assert told(tmp_path / "0", both[2]) == [2, 9, "What is 2?"]
    assert told(tmp_path / "1", one[2]) == [2, "What is 2?"]
    assert told(tmp_path / "2", none[2]) == ["What is 2?"]
    with pytest.raises(UsageError, match="no column 'fron'"):
        load(recipe(tmp_path / "in", columns={"image": "fron"}).data)  # type: ignore[arg-type]


def test_pictures_that_a_table_lost_when_it_was_exported_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('photo,question,answer\n"=DISPIMG(""ID_0A"",1)",What?,This.\n')
    with pytest.raises(DataError, match="a picture that stayed in its workbook"):
        prepared(tmp_path / "rows.csv", tmp_path / "out")


def test_each_of_several_sources_has_its_own_folder(tmp_path: Path) -> None:
    sources = []
    for name in ("one", "two"):
        jsonl(
            tmp_path / name / "rows.jsonl",
            [FORMS["ShareGPT"](i, path) for i, path in enumerate(photos(tmp_path / name, 9))],
        )
        sources.append({"path": str(tmp_path / name), "name": name})
    for number in range(9):
        (tmp_path / f"two/photos/{number}.png").write_bytes(png(100 + number))
    given = recipe(tmp_path, validation=0.1, test=0.1).model_dump()
    given["data"] = {**given["data"], "path": "", "sources": sources}
    facts = prepare(Recipe.model_validate(given), tmp_path / "out")
    rows = [row for side in facts.rows for row in lines(tmp_path / "out", f"{side}.jsonl")]
    assert len(rows) == 18
    for row in rows:
        more = 100 if row["source"]["name"] == "two" else 0
        assert told(tmp_path / "out", row)[0] == row["source"]["line"] - 1 + more


def test_when_no_picture_can_be_had_the_way_without_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image_url,question,answer\nhttps://example.com/a.png,What?,This.\n")
    with pytest.raises(
        DataError, match=r"1 a picture at a web address, which is never fetched, first at rows\.csv:2"
    ) as raised:
        prepared(tmp_path / "rows.csv", tmp_path / "never")
    assert "--set data.columns.image=false" in raised.value.hint


def test_the_same_question_of_other_pictures_is_no_duplicate_and_the_same_picture_is_on_one_side(
    tmp_path: Path,
) -> None:
    names = photos(tmp_path / "in", 60)
    rows = [
        f"{names[i % 60]},{question},It is {i % 3}." for i in range(150) for question in ("What is it?", "Is it red?")
    ][:240]
    rows += [f"{names[0]},What is it?,It is 0."]
    (tmp_path / "in/rows.csv").write_text("photo,question,answer\n" + "\n".join(rows) + "\n")
    facts = prepare(recipe(tmp_path / "in", validation=0.1, test=0.15), tmp_path / "out")
    assert facts.dropped == {"exact duplicate": 241 - facts.kept} and facts.kept == 120 == facts.pictures
    assert all(count > 2 for count in facts.rows.values()) and facts.resembling == {}
    sides = defaultdict(set)
    for side in ("train", "validation", "test"):
        for row in lines(tmp_path / "out", f"{side}.jsonl"):
            sides[row["prompt"][1]["content"][0]["image"]].add(side)
    assert len(sides) == 60 and all(len(found) == 1 for found in sides.values())


@pytest.mark.parametrize("count", [9, 14, 30])
def test_where_there_are_few_rows_pictures_stay_on_one_side_too(tmp_path: Path, count: int) -> None:
    names = photos(tmp_path / "in", count)
    rows = [
        {
            "images": [names[i // 2]] + ([names[i // 2 + 1]] if i % 8 == 7 else []),
            "prompt": f"What is {i}?",
            "completion": "Yes.",
        }
        for i in range(count)
    ]
    jsonl(tmp_path / "in/rows.jsonl", rows)
    facts = prepare(recipe(tmp_path / "in", validation=0.2, test=0.2), tmp_path / "out")
    sides: dict[str, set[str]] = defaultdict(set)
    for side in facts.rows:
        for row in lines(tmp_path / "out", f"{side}.jsonl"):
            for part in row["prompt"][1]["content"]:
                if part["type"] == "image":
                    sides[part["image"]].add(side)
    assert all(len(found) == 1 for found in sides.values())
    assert min(facts.rows.values()) > 0


def test_dropped_rows_leave_no_pictures_behind(tmp_path: Path) -> None:
    names = photos(tmp_path / "in", 40)
    table = "".join(f"{name},What is {i}?,It is {i}.\n" for i, name in enumerate(names))
    (tmp_path / "in/rows.csv").write_text(f"photo,question,answer\n{table}")
    rows = prepared(tmp_path / "in", tmp_path / "out", max_rows=10)
    used = {part["image"] for row in rows for part in row["prompt"][1]["content"] if part["type"] == "image"}
    assert {f"images/{path.name}" for path in (tmp_path / "out/images").iterdir()} == used != set()
    assert len(used) < 40


def test_the_pictures_of_a_folder_are_not_called_unread(tmp_path: Path) -> None:
    names = photos(tmp_path / "in", 3)
    (tmp_path / "in/notes.pdf").write_bytes(b"%PDF")
    (tmp_path / "in/rows.csv").write_text(
        "photo,question,answer\n" + "".join(f"{name},What?,This.\n" for name in names)
    )
    notes = load(recipe(tmp_path / "in").data).table.notes  # type: ignore[arg-type]
    assert notes == [f"{tmp_path / 'in'}: not read: notes.pdf"]


def test_data_sets_that_hold_pictures_themselves(tmp_path: Path) -> None:
    names = photos(tmp_path / "in", 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    made = io.BytesIO()
    Image.open(io.BytesIO(png(0))).save(made, "JPEG", exif=exif)
    (tmp_path / "in" / names[0]).write_bytes(made.getvalue())
    (tmp_path / "in" / names[1]).write_bytes(png(1)[:50])
    files = [str(tmp_path / "in" / name) for name in names]
    rows = {"question": [f"What is {i}?" for i in range(12)], "answer": ["This."] * 12, "image": files}
    one = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    several = datasets.Dataset.from_dict({**rows, "image": [[file] for file in files]})
    several = several.cast_column("image", datasets.List(datasets.Image()))
    for number, made_of in enumerate((one, several)):
        made_of.save_to_disk(str(tmp_path / f"saved{number}"))
        made_of.to_parquet(str(tmp_path / f"{number}.parquet"))
        for place in (tmp_path / f"saved{number}", tmp_path / f"{number}.parquet"):
            out = tmp_path / f"out-{place.name}"
            facts = prepare(recipe(place, validation=0.2, test=0.2), out)
            assert (facts.kept, facts.dropped) == (11, {"a picture that is cut off or damaged": 1})
            assert facts.repaired == {"pictures turned upright, as their EXIF says": 1}


def test_inspect_shows_rows_with_their_pictures(tmp_path: Path) -> None:
    book = Book(20)
    for row in range(2, 22):
        book.one(row, row)
    file = book.saved(tmp_path / "x.xlsx")
    found = inspect(recipe_to_look(str(file), "embedded:smollm2-135m-instruct", ()))
    assert len(found.rows) == 12
    shown = as_json(found)["shown"]
    assert shown[0]["pictures"] == ["sheet Sheet, cell A2"]
    assert "<image>What is shown on 2?" in shown[0]["pieces"][0][0]
    assert "photo → picture" in as_json(found)["rows"]["columns"]
    page = write_page(found, tmp_path / "rows.html").read_text(encoding="utf-8")
    addresses = [line.split('"')[1] for line in page.splitlines() if line.startswith("<img")]
    assert len(addresses) == 12 and "img-src data:" in page
    with Image.open(io.BytesIO(base64.b64decode(addresses[0].partition(",")[2]))) as image:
        assert image.size == (40, 30)
