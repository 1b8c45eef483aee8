"""Files of the kinds that people have, as they come: each is read for what it is, or refused with its true cause."""

from __future__ import annotations

import datetime
import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from toolkit.data.loading import for_other_objectives, load
from toolkit.data.peek import peek
from toolkit.data.prepare import check_data, prepare_dataset
from toolkit.errors import ToolkitError, UsageError
from toolkit.recipe.init import write_recipe
from toolkit.recipe.reading import load_recipe
from toolkit.recipe.rows import Data
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import read_jsonl
from toolkit.run.facts import DatasetFacts

PAIRS = [
    (f"How do I reset device {100 + i}?", f"Hold the button of device {100 + i} for {3 + i % 7} seconds, then wait.")
    for i in range(40)
]
OTHER = [(f"Which shelf holds part {i * i}?", f"Part {i * i} lies on shelf {i % 9}.") for i in range(30)]


def prepared(
    path: Path, tmp_path: Path, objective: str = "sft", **data: Any
) -> tuple[DatasetFacts, list[dict[str, Any]]]:
    """What the first stage makes of a file, with the shares of `init` for so few rows; and all rows in their order."""
    settings = {"path": str(path), "validation": 0.1, "test": 0.2, **data}
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "base": "embedded:smollm2-135m-instruct",
            "system": "Be brief.",
            "data": settings,
            "train": {"objective": objective},
            "golden": {"prompts": ["Go on."]} if objective == "pretrain" else {"from_test": 1},
            "ollama": {"model": "t"},
        }
    )
    assert check_data(recipe)[1] == []
    out = tmp_path / "prepared"
    out.mkdir()
    facts = prepare_dataset(recipe, out)
    rows = [row for side in ("train", "validation", "test") for row in read_jsonl(out / f"{side}.jsonl")]
    return facts, sorted(rows, key=lambda row: (row["source"]["file"], row["source"]["line"]))


def book(*sheets: tuple[str, list[list[Any]]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        made = Workbook()
        made.remove(made.worksheets[0])
        for title, rows in sheets:
            sheet = made.create_sheet(title)
            for row in rows:
                sheet.append(row)
        made.save(path)

    return write


def text(content: str, codec: str = "utf-8") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode(codec)) and None


def jsonl(rows: list[Any]) -> Callable[[Path], None]:
    return text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def dumped(value: Any, indent: int | None = None) -> Callable[[Path], None]:
    return text(json.dumps(value, ensure_ascii=False, indent=indent))


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps({"prompt": q, "completion": a}) for q, a in PAIRS).encode()))


def zstandard(path: Path) -> None:
    import pyarrow

    with pyarrow.output_stream(str(path), compression="zstd") as stream:
        stream.write(("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in PAIRS)).encode())


def saved(path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = [{"question": q, "answer": a} for q, a in PAIRS]
    DatasetDict({"test": Dataset.from_list(rows[:3]), "train": Dataset.from_list(rows)}).save_to_disk(str(path))


def csv(header: str, row: str, times: int = 1) -> Callable[[Path], None]:
    """A table whose rows are written as `row` says, with the number, the question and the answer."""
    return text(header + "\n" + "".join(row.format(i, q, a) + "\n" for i, (q, a) in enumerate(PAIRS)) * times)


NAMED = [{"question": q, "answer": a} for q, a in PAIRS]
COLUMNS = {"question": [q for q, _ in PAIRS], "answer": [a for _, a in PAIRS]}
VIEWED = [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(NAMED)]
DOLLY = [{"instruction": q, "context": "", "response": a, "category": "open"} for q, a in PAIRS]
SPOKEN = [
    {name: f"\n\nHuman: {q}\n\nAssistant: {said}" for name, said in (("chosen", a), ("rejected", "No."))}
    for q, a in PAIRS
]
TURNS = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in PAIRS]
READ: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a list inside": ("x.json", dumped({"version": "1.0", "data": NAMED}), "columns"),
    "a list deep inside, on many lines": ("x.json", dumped({"meta": {"n": 1}, "body": {"items": {"qa": NAMED}}}, 2), "columns"),
    "columns in an object": ("x.json", dumped(COLUMNS), "columns"),
    "columns inside": ("x.json", dumped({"data": COLUMNS}), "columns"),
    "pandas, by columns": (
        "x.json",
        dumped({name: {str(i): row[name] for i, row in enumerate(NAMED)} for name in ("question", "answer")}),
        "columns",
    ),
    "pandas, by rows": ("x.json", dumped({str(i): row for i, row in enumerate(NAMED)}), "columns"),
    "pandas, split": ("x.json", dumped({"columns": ["question", "answer"], "index": [], "data": PAIRS}), "columns"),
    "splits in an object": ("x.json", dumped({"train": NAMED[:30], "test": NAMED[30:]}), "columns"),
    "the hub's viewer": ("x.json", dumped({"rows": VIEWED}), "columns"),
    "lists of turns": ("x.json", dumped(TURNS), "messages"),
    "objects on several lines": ("x.jsonl", text("\n".join(json.dumps(row, indent=2) for row in NAMED)), "columns"),
    "objects with commas between": ("x.jsonl", text(",\n".join(json.dumps(row) for row in NAMED)), "columns"),
    "a byte-order mark and empty lines": (
        "x.jsonl", text("\n\n".join(json.dumps(row) for row in NAMED), "utf-8-sig"), "columns"),
    "gzip": ("x.jsonl.gz", packed, "columns"),
    "Zstandard": ("x.csv.zst", zstandard, "columns"),
    "a saved data set": ("saved", saved, "columns"),
    "other words": ("x.csv", csv("Frage;Antwort", '{1};"{2}"'), "columns"),
    "a third column with numbers": ("x.csv", csv("Nr,Вопрос,Ответ", '{0},{1},"{2}"'), "columns"),
    "excel says its delimiter": ("x.csv", csv("sep=;\nquestion;answer", "{1};{2}"), "columns"),
    "pipes": ("x.csv", csv("question|answer", "{1}|{2}"), "columns"),
    "a delimiter after every row": ("x.csv", csv("question;answer", "{1};{2};"), "columns"),
    "dolly": ("x.jsonl", jsonl(DOLLY), "alpaca"),
    "questions and answers in one item": (
        "x.jsonl", jsonl([{"id": q, "conversation": [{"human": q, "assistant": a}]} for q, a in PAIRS]), "messages"),
    "firefly": ("x.jsonl", jsonl([{"kind": "QA", "input": q, "target": a} for q, a in PAIRS]), "columns"),
    "dialogue": ("x.jsonl", jsonl([{"dialogue": t} for t in TURNS]), "messages"),
    "conversational prompt and completion": (
        "x.jsonl", jsonl([{"prompt": t[:1], "completion": t[1:]} for t in TURNS]), "columns"),
    "turns as a JSON text in a CSV": (
        "x.csv",
        text("id,messages\n" + "".join(f'{i},"{json.dumps(t).replace(chr(34), chr(34) * 2)}"\n' for i, t in enumerate(TURNS))),
        "messages",
    ),
    "a read-me sheet and a title": (
        "x.xlsx",
        book(("说明", [["本表由客服部维护"]]), ("问答", [["客服问答"], [], ["问题", "答案"], *map(list, PAIRS)])),
        "columns",
    ),
    "a list of contacts beside": (
        "x.xlsx",
        book(("Q&A", [["Updated", datetime.date(2026, 1, 1)], ["No", "Question", "Answer"],
                      *([i, *pair] for i, pair in enumerate(PAIRS))]),
             ("Contacts", [["Name", "Phone"], ["Li", "1"]])),
        "columns",
    ),
    "a sheet a month": (
        "x.xlsx",
        book(("May", [["question", "answer"], *map(list, PAIRS[:20])]),
             ("June", [["Question", "Answer"], *map(list, PAIRS[20:])])),
        "columns",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_read_and_trained_on(kind: str, tmp_path: Path) -> None:
    name, write, shape = READ[kind]
    write(tmp_path / name)
    facts, rows = prepared(tmp_path / name, tmp_path)
    assert set(facts.formats.values()) == {shape}
    assert facts.dropped == {}
    found = [(row["prompt"][-1]["content"], row["completion"][-1]["content"]) for row in rows]
    assert sorted(found) == sorted(PAIRS)
    assert min(facts.rows.values()) > 0
    assert facts.resembling.keys() == {"validation", "test"}


def test_merged_cells_are_filled_downwards_and_headings_stay_headings(tmp_path: Path) -> None:
    made = Workbook()
    sheet = made.worksheets[0]
    sheet.append(["Question", "Answer"])
    sheet.append(["Part one"])
    sheet.merge_cells("A2:B2")
    for i, (_, answer) in enumerate(OTHER):
        sheet.append([f"What of part {i // 2}?" if i % 2 == 0 else None, answer])
        if i % 2:
            sheet.merge_cells(f"A{2 + i}:A{3 + i}")
    made.save(tmp_path / "x.xlsx")
    facts, rows = prepared(tmp_path / "x.xlsx", tmp_path)
    assert facts.dropped == {"empty completion": 1}
    assert [row["prompt"][-1]["content"] for row in rows] == [f"What of part {i // 2}?" for i in range(30)]


def test_sheets_are_asked_for_by_name_and_others_are_listed(tmp_path: Path) -> None:
    book(("A", [["question", "answer"], *map(list, PAIRS)]), ("B", [["title"], ["ask", "reply"], *map(list, OTHER)]))(
        tmp_path / "x.xlsx"
    )
    assert "not read: B (32 rows)" in " ".join(load(Data(path=str(tmp_path / "x.xlsx"))).table.notes)
    _, rows = prepared(tmp_path / "x.xlsx", tmp_path, sheet="B")
    assert len(rows) == 30 and rows[0]["source"] == {"file": "x.xlsx[B]", "line": 3}
    with pytest.raises(UsageError, match=r"no sheet 'b' .did you mean B"):
        load(Data(path=str(tmp_path / "x.xlsx"), sheet="b"))


def test_history_and_system_of_a_row_are_kept(tmp_path: Path) -> None:
    rows = [
        {"instruction": q, "input": "", "output": a, "history": [["Hello", "Hi, how can I help?"]], "system": "desk"}
        for q, a in PAIRS
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    facts, found = prepared(tmp_path / "x.json", tmp_path, system="both")
    assert facts.repaired == {}
    assert found[0]["prompt"] == [
        {"role": "system", "content": "Be brief.\n\ndesk"},
        {"role": "user", "content": "Hello"},
    ]
    assert [turn["content"] for turn in found[0]["completion"]] == ["Hi, how can I help?", *PAIRS[0]]
    facts, found = prepared(tmp_path / "x.json", (tmp_path / "last").mkdir() or tmp_path / "last", learn="last")
    assert [turn["content"] for turn in found[0]["prompt"]] == [
        "Be brief.",
        "Hello",
        "Hi, how can I help?",
        PAIRS[0][0],
    ]
    assert facts.repaired == {"a row's own system text replaced by the recipe's (data.system: row keeps it)": 40}


def test_what_is_served_must_have_been_trained_with(tmp_path: Path) -> None:
    rows = [{"system": "You are a desk.", "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
            for q, a in PAIRS]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(ToolkitError, match="was never trained with") as caught:
        prepared(tmp_path / "x.json", tmp_path, system="row")
    assert "You are a desk." in caught.value.hint
    for row in rows[3:8]:
        del row["system"]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    _, found = prepared(tmp_path / "x.json", (tmp_path / "two").mkdir() or tmp_path / "two", system="row")
    told = [row["prompt"][0]["content"] for row in found[2:9]]
    assert told == ["You are a desk.", *["Be brief."] * 5, "You are a desk."]


CASES = Path(__file__).parents[2] / "../shared/cases/rows.py"
"""The files that once were tried, where they are."""


def test_the_files_that_were_tried(tmp_path: Path) -> None:
    if not CASES.is_file():
        pytest.skip(f"they are not here: {CASES}")
    subprocess.run([sys.executable, str(CASES), str(tmp_path / "cases")], check=True)
    said = {
        "no_header.csv": "first line looks like a row", "unquoted_commas.csv": "40 of 40 rows have another number of fields",
        "dpo.jsonl": "holds preference pairs", "text.txt": "holds plain text",
    }  # fmt: skip
    for file in sorted((tmp_path / "cases").iterdir()):
        (own := tmp_path / f"of {file.name}").mkdir()
        if file.name in said:
            with pytest.raises(AssertionError, match=said[file.name]):
                prepared(file, own)
            continue
        facts, rows = prepared(file, own)
        assert (facts.kept, facts.dropped) == (40, {}), file.name
        assert all(turn["content"] or turn.get("tool_calls") for row in rows for turn in row["completion"]), file.name


def test_rows_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("\n".join(f'"{q}","{a}"' for q, a in PAIRS))
    with pytest.raises(ToolkitError, match=r"x\.csv:1: its first line looks like a row") as caught:
        load(Data(path=str(path)))
    assert "--set data.header=false" in caught.value.hint
    _, rows = prepared(path, tmp_path, header=False)
    assert len(rows) == 40 and rows[0]["source"]["line"] == 1
    assert peek(Data(path=str(path))).data.header is False
    path.write_text("made by\nthe desk,2026\nquestion,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in PAIRS))
    _, rows = prepared(path, (tmp_path / "line").mkdir() or tmp_path / "line", header=3)
    assert len(rows) == 40 and rows[0]["source"]["line"] == 4


def test_a_folder_of_mixed_files(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    dumped({"data": NAMED})(folder / "a.json")
    book(("Sheet", [["ask", "reply"], *map(list, OTHER)]))(folder / "b.xlsx")
    text(
        "问题,答案\n" + "".join(f"设备{i}怎么重置？,按住设备{i}的按钮{i % 7}秒，然后等绿灯亮。\n" for i in range(20)),
        "gbk",
    )(folder / "more" / "c.csv")
    jsonl([{"messages": t} for t in TURNS])(folder / "d.jsonl")
    (folder / "README.md").write_text("About these rows.")
    facts, _ = prepared(folder, tmp_path)
    assert facts.formats == {"a.json": "columns", "b.xlsx": "columns", "d.jsonl": "messages", "more/c.csv": "columns"}
    assert facts.dropped == {"exact duplicate": 40}
    assert f"{folder}: not read: README.md" in load(Data(path=str(folder))).table.notes


OTHERS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "pairs": ("x.jsonl", jsonl([{"prompt": q, "chosen": a, "rejected": "No idea."} for q, a in PAIRS]), "dpo"),
    "pairs with their prompt inside": (
        "x.jsonl", jsonl([{"chosen": t, "rejected": [t[0], {"role": "assistant", "content": "No."}]} for t in TURNS]), "dpo"),
    "pairs in words": (
        "x.jsonl",
        jsonl(SPOKEN),
        "dpo"),
    "labelled": ("x.jsonl", jsonl([{"prompt": q, "completion": a, "label": len(a) % 2 == 0} for q, a in PAIRS]), "kto"),
    "text": ("x.txt", text("\n\n".join(a for _, a in PAIRS)), "pretrain"),
    "Markdown": ("x.md", text("# Parts\n\n" + "\n\n".join(a for _, a in PAIRS)), "pretrain"),
    "a column of texts": (
        "x.jsonl", jsonl([{"text": a, "id": i} for i, (_, a) in enumerate(PAIRS)]), "pretrain"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_rows_of_other_objectives_are_read_and_the_objective_is_named(kind: str, tmp_path: Path) -> None:
    name, write, objective = OTHERS[kind]
    write(tmp_path / name)
    (fault,) = for_other_objectives(load(Data(path=str(tmp_path / name))), "sft")
    assert f"--set train.objective={objective}" in fault.hint
    (own := tmp_path / "own").mkdir()
    facts, rows = prepared(tmp_path / name, own, objective=objective)
    assert len(rows) == facts.kept >= 40 and facts.dropped == {}
    keys = {"dpo": {"prompt", "chosen", "rejected"}, "kto": {"prompt", "completion", "label"}, "pretrain": {"text"}}
    assert all(row.keys() == keys[objective] | {"source"} for row in rows)


@pytest.mark.parametrize("kind", OTHERS)
def test_init_writes_the_objective_that_learns_from_the_rows(kind: str, tmp_path: Path) -> None:
    name, write, objective = OTHERS[kind]
    write(tmp_path / name)
    written = write_recipe(str(tmp_path / name), "mine", tmp_path / "mine.yaml")
    recipe = load_recipe(written.path, "cpu")
    assert (recipe.train.objective == objective and recipe.golden.from_test) or recipe.golden.prompts


def test_the_chosen_answers_can_be_learnt_alone(tmp_path: Path) -> None:
    jsonl([{"prompt": q, "chosen": a, "rejected": "No idea."} for q, a in PAIRS])(tmp_path / "x.jsonl")
    facts, rows = prepared(tmp_path / "x.jsonl", tmp_path, columns={"prompt": "prompt", "completion": "chosen"})
    assert facts.formats == {"x.jsonl": "columns"} and rows[0]["completion"][0]["content"] == PAIRS[0][1]


def ole(marked: bool) -> Callable[[Path], None]:
    inside = "EncryptedPackage".encode("utf-16-le") if marked else b"Workbook"
    return lambda path: path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600 + inside) and None


def bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made,
        made.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as stream,
    ):
        for _ in range(1100):
            stream.write(b"\0" * (1 << 20))


REFUSED: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    "commas that nobody quoted": (
        "x.csv", csv("question,answer", "{1},{2}"),
        "x.csv:2: 40 of 40 rows have another number of fields than the header, as here: 3 fields where the header has 2",
        "quotes"),
    "the same in a long file": (
        "x.csv", csv("question,answer", "{1},{2}", 10),
        "x.csv:2: 400 of 400 rows have another number of fields", "quotes"),
    "a password": ("x.xlsx", ole(True), "x.xlsx is locked with a password", "without a password"),
    "an old workbook": ("x.xls", ole(False), "x.xls is a workbook of the old kind", "save it as XLSX"),
    "an old workbook under a new name": ("x.xlsx", ole(False), "old kind (XLS)", "save it as XLSX"),
    "a table that calls itself a workbook": ("x.xlsx", text("a,b\n1,2\n"), "no XLSX workbook", "rename it to .csv"),
    "a zip bomb": ("x.xlsx", bomb, "x.xlsx unpacks to 1.1 GiB", "save its sheet as CSV"),
    "a line of 50 MB": (
        "x.csv", text("question,answer\na,b\n" + "y" * 50_000_000), "x.csv:3: a line of 50,000,000 characters", "part it"),
    "no names that fit": (
        "x.csv", text("x1,x2,x3\n1,2,3\n"), "has the columns x1, x2, x3",
        "--set data.columns.prompt=… --set data.columns.completion=…"),
    "a broken gzip": ("x.csv.gz", text("no gzip"), "x.csv.gz cannot be unpacked", "Pack it again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_the_cause_and_the_mend(kind: str, tmp_path: Path) -> None:
    name, write, message, hint = REFUSED[kind]
    write(tmp_path / name)
    with pytest.raises(ToolkitError) as caught:
        load(Data(path=str(tmp_path / name)))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_cells_with_formulas_and_errors_are_named(tmp_path: Path) -> None:
    rows = [["question", "answer"], *map(list, PAIRS), ["What is due?", "=A2&B2"], ["What else?", "#REF!"]]
    book(("Rows", rows))(tmp_path / "x.xlsx")
    dropped = load(Data(path=str(tmp_path / "x.xlsx"))).table.dropped
    assert [(d.line, d.reason) for d in dropped] == [
        (42, "a formula whose value was not saved"),
        (43, "an error value in a cell"),
    ]
    assert dropped[0].text == "sheet Rows, cell B42: =A2&B2"


def test_a_data_set_of_the_hub_is_pinned() -> None:
    for path in ("hub:owner/name", "hub:owner/name@main", "hub:name@" + "0" * 40):
        with pytest.raises(UsageError, match="pinned revision") as caught:
            load(Data(path=path))
        assert "hub:OWNER/NAME@COMMIT" in caught.value.hint
