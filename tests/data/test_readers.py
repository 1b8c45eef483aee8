"""Files become rows with their file and physical line; what is wrong is named with both."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.readers import Row, Table, find_files, places, read_file
from toolkit.errors import DataError, ToolkitError, UsageError
from toolkit.recipe.rows import Reading


def read_table(path: Path, **how: Any) -> Table:
    table, reading = Table(), Reading(path=str(path), **how)
    for name, file in places(reading):
        read_file(file, name, table, reading)
    return table


def read(folder: Path, name: str, content: str | bytes) -> list[Row]:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(file).rows


def test_csv_lines_are_physical(tmp_path: Path) -> None:
    rows = read(tmp_path, "x.csv", 'ask,answer\r\n"two\r\nlines","a ""quoted"" word"\r\n\r\nthird,"x,y"\r\n')
    assert rows == [
        Row("x.csv", 2, {"ask": "two\r\nlines", "answer": 'a "quoted" word'}),
        Row("x.csv", 5, {"ask": "third", "answer": "x,y"}),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "ask,answer\na,b\n"),
        ("x.csv", "ask;answer\na;b\n"),
        ("x.csv", "\nask\tanswer\na\tb\n"),
        ("x.csv", " ask ,answer,\na,b,\n"),
        ("x.csv", "ask,answer\ra,b\r"),
        ("x.tsv", "ask\tanswer\na\tb\n"),
        ("x.CSV", "ask,answer\na,b"),
        ("x.jsonl", '{"ask": "a", "answer": "b"}\n\n'),
        ("x.ndjson", '{"ask": "a", "answer": "b"}'),
        ("x.json", '[\n {"ask": "a",\n "answer": "b"}\n]\n'),
        ("x.jsonl", '[{"ask": "a", "answer": "b"}]'),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str) -> None:
    assert [row.values for row in read(tmp_path, name, content)] == [{"ask": "a", "answer": "b"}]


def test_json_lines_are_physical(tmp_path: Path) -> None:
    assert [row.line for row in read(tmp_path, "x.json", '[\n{"a": 1},\n\n{"a":\n2},{"a": 3}\n]')] == [2, 4, 5]
    # U+2028 ends a line for str.splitlines, and no line of a file.
    assert [row.line for row in read(tmp_path, "x.jsonl", '{"a": "\u2028"}\n\n{"a": 2}\n')] == [1, 3]


def test_xlsx(tmp_path: Path) -> None:
    from openpyxl import Workbook

    book = Workbook()
    assert book.active is not None
    for cells in (["ask", "answer"], ["发烧？", "多喝水"], [], ["age", 42]):
        book.active.append(cells)
    book.save(tmp_path / "x.xlsx")
    table = read_table(tmp_path / "x.xlsx")
    assert table.rows == [
        Row("x.xlsx", 2, {"ask": "发烧？", "answer": "多喝水"}),
        Row("x.xlsx", 4, {"ask": "age", "answer": "42"}),
    ]
    assert table.encodings == {"x.xlsx": "xlsx"}


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"ask": ["a", "c"], "answer": ["b", None]}), tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet").rows == [
        Row("x.parquet", 1, {"ask": "a", "answer": "b"}),
        Row("x.parquet", 2, {"ask": "c", "answer": None}),
    ]


def test_folder_of_mixed_encodings(tmp_path: Path) -> None:
    simplified, traditional = "咳嗽一个星期了怎么办？,去看医生", "咳嗽一個星期了怎麼辦？,去看醫生"
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.csv").write_bytes(f"ask,answer\n{simplified}\n".encode("gb18030"))
    (tmp_path / "b.csv").write_bytes(f"ask,answer\n{traditional}\n".encode("big5"))
    (tmp_path / "c.csv").write_bytes(f"ask,answer\n{simplified}\n".encode("utf-8-sig"))
    (tmp_path / "sub" / "d.csv").write_bytes(f"ask,answer\n{traditional}\n".encode("utf-16"))
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".hidden.csv").write_text("not,data\n1,2\n")
    table = read_table(tmp_path)
    assert [",".join(row.values.values()) for row in table.rows] == [simplified, traditional, simplified, traditional]
    assert table.encodings == {
        "a.csv": "GB2312", "b.csv": "Big5", "c.csv": "UTF-8 with BOM", "sub/d.csv": "UTF-16 LE with BOM",
    }  # fmt: skip
    assert [row.file for row in table.rows] == ["a.csv", "b.csv", "c.csv", "sub/d.csv"]


def test_rows_that_are_none_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ask,answer\na,b,c\nd,e\nf\n")
    (tmp_path / "b.jsonl").write_text('{"ask": "a", "answer": "b"}\n{"ask": "cut\n[1]\n')
    table = read_table(tmp_path)
    assert len(table.rows) == 2
    assert [(d.file, d.line, d.reason) for d in table.dropped] == [
        ("a.csv", 2, "wrong number of fields"),
        ("a.csv", 4, "wrong number of fields"),
        ("b.jsonl", 2, "not a JSON object"),
        ("b.jsonl", 3, "not a JSON object"),
    ]
    assert table.dropped[0].text == "3 fields where the header has 2: a,b,c"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "x.csv is empty (0 bytes)"),
        ("x.csv", b"\xef\xbb\xbf\r\n", "x.csv is empty (5 bytes)"),
        ("x.jsonl", b"\n \n", "x.jsonl is empty"),
        ("x.csv", b"ask,answer\r\n", "x.csv has no rows, at most a header"),
        ("x.json", b"[]", "x.json has no rows"),
        ("x.csv", b"ask,answer\na,b\x00\n", "x.csv:2: a NUL byte"),
        (
            "x.csv",
            b'ask,answer\na,b\n"c\nd",e\nf,"g\nh,i\n',
            "x.csv:5: a quote opens here and is not closed by the end",
        ),
        ("x.csv", b'ask,answer\na,"b\nc,"d"\n', "x.csv:2: at line 3 a quote closes inside a cell"),
        ("x.csv", b'a,b\n"' + b"x\n" * 600_000 + b'",c\n', "x.csv:2: a cell has more than 1,000,000 characters"),
        ("x.csv", b"ask,ask\na,b\n", "x.csv:1: the column 'ask' is there twice"),
        ("x.csv", b"ask\n\xff\xff\n", "x.csv:2: byte 0xFF at offset 4 does not decode as"),
        ("x.json", b'[\n{"a": 1},\n{"a" 2}]', "x.json:3: not JSON: Expecting ':' delimiter"),
        ("x.json", b'[{"a": 1}', "x.json:1: not JSON"),
        ("x.json", b"[" * 100_000, "x.json:1: not JSON"),
        ("x.xlsx", b"PK no", "x.xlsx is no XLSX workbook that can be read"),
        ("x.parquet", b"PAR1", "x.parquet is no Parquet file that can be read"),
        ("x.pdf", b"%PDF", ".pdf extension is not one that is read: .csv, .tsv, .jsonl"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    assert message in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 3


def test_path_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "questions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"there is no .*question\.csv \(did you mean questions\.csv\?\)") as caught:
        read_table(tmp_path / "question.csv")
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError):
        read_table(tmp_path / "no" / "such" / "folder")


def test_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data files, nothing; known: "):
        find_files(tmp_path)
    (tmp_path / "notes.docx").write_text("x")
    with pytest.raises(DataError, match=r"holds no data files, only \.docx"):
        find_files(tmp_path)


def test_file_that_must_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(ToolkitError):
        read_table(tmp_path / "x.csv")


_CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
_ROWS = st.lists(st.tuples(_CELLS, _CELLS), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(_ROWS, st.sampled_from([",", ";", "\t"]), st.sampled_from(["\r\n", "\n"]))
def test_csv_reads_back_what_was_written(rows: list[tuple[str, str]], delimiter: str, end: str) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("ask", "answer"), *rows])
    for codec in ("utf-8", "utf-8-sig", "utf-16"):
        read_back = _table(stream.getvalue().encode(codec), "x.csv")
        assert [tuple(row.values.values()) for row in read_back] == rows


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.dictionaries(_CELLS, st.one_of(_CELLS, st.integers(), st.none()), min_size=1), min_size=1, max_size=6)
)
def test_json_reads_back_what_was_written(rows: list[dict[str, Any]]) -> None:
    for text in (
        json.dumps(rows, ensure_ascii=False, indent=1),
        "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows),
    ):
        assert [row.values for row in _table(text.encode(), "x.json")] == rows


def _table(raw: bytes, name: str) -> list[Row]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read(Path(folder), name, raw)


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_file_of_one_conversation_is_one_row(key: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {key: turns, "tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(5)]}
    for name, indent in (("a.jsonl", None), ("b.json", 1)):
        (tmp_path / name).write_text(json.dumps(row, indent=indent))
        table = Table()
        read_file(tmp_path / name, name, table, Reading(path=str(tmp_path / name)))
        assert [row.values for row in table.rows] == [row]


def test_a_form_writes_its_questions_into_the_header(tmp_path: Path) -> None:
    form = tmp_path / "form.csv"
    rows = [f'2026-01-{day:02} 10:00,"What about {day}?","Nothing, on day {day}."' for day in range(1, 9)]
    form.write_text("\n".join(["Timestamp,What is your question?,What would you answer?", *rows]), encoding="utf-8")
    table = Table()
    read_file(form, "form.csv", table, Reading(path=str(form)))
    assert table.columns["form.csv"] == ["Timestamp", "What is your question?", "What would you answer?"]
    form.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError, match="its first line looks like a row"):
        read_file(form, "form.csv", Table(), Reading(path=str(form)))
