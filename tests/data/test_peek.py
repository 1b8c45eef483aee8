"""What a look at a file tells `init` and `inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.data.languages import language_of
from toolkit.data.peek import NO_HEADER, peek
from toolkit.errors import DataError
from toolkit.recipe.rows import Data

REAL = Path(__file__).parents[2] / "../shared/data/medical/internal_medicine_5000-6000.gbk.csv"


def test_guesses_formats(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "发烧怎么办？"}, {"role": "assistant", "content": "多喝水。"}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    found = peek(Data(path=str(tmp_path / "m.jsonl")))
    assert (found.shape.kind, found.language, found.examples[0].prompt_text) == ("messages", "zh", "发烧怎么办？")
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "Add.", "input": "1, 2", "output": "3"}]))
    found = peek(Data(path=str(tmp_path / "a.json")))
    assert (found.shape.kind, found.language, found.examples[0].prompt_text) == ("alpaca", "en", "Add.\n\n1, 2")
    assert found.median_characters == 11


def test_a_missing_header_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('"What is tea made of?","Leaves."\n"What is jam made of?","Fruit."\n')
    found = peek(Data(path=str(tmp_path / "x.csv")))
    assert found.notes[0] == NO_HEADER and found.shape.roles == {"prompt": "1", "completion": "2"}
    assert len(found.examples) == 2


def test_system_texts_are_counted(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "a", "system": "s" if i else ""} for i in range(3)]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    assert peek(Data(path=str(tmp_path / "x.json"))).systems == {"s": 2, "": 1}


def test_language_by_its_letters() -> None:
    assert language_of(["What is 高血压, high blood pressure?"]) == "en"
    assert language_of(["患者血压 140/90 mmHg，应该怎么办？"]) == "zh"
    assert language_of([]) == "en"


def test_faults_pass_through(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("ask,answer\n")
    with pytest.raises(DataError, match="no rows"):
        peek(Data(path=str(tmp_path / "x.csv")))


def test_the_real_file() -> None:
    if not REAL.is_file():
        pytest.skip(f"the real rows are not here: {REAL}")
    found = peek(Data(path=str(REAL)))
    assert (found.shape.roles, found.language) == ({"prompt": "ask", "completion": "answer"}, "zh")
    assert (found.loaded.read, found.shape.unused) == (7644, ("department", "title"))
    assert found.loaded.table.encodings == {REAL.name: "GBK"}
    assert found.examples[0].prompt_text == "我有高血压这两天女婿来的时候给我拿了些党参泡水喝，您好高血压可以吃党参吗？"
