"""What a look at a file tells `init`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.data.inspect import language_of, peek
from toolkit.errors import DataError

REAL = Path(__file__).parents[2] / "../shared/data/medical/internal_medicine_5000-6000.gbk.csv"


@pytest.mark.parametrize(
    ("header", "prompt", "completion"),
    [
        ("department,title,ask,answer", "ask", "answer"),
        ("科室,标题,问题,回答", "问题", "回答"),
        ("Input,Output", "Input", "Output"),
        ("id,user_question,doctor_reply", "user_question", "doctor_reply"),
        ("title,Answer", "title", "Answer"),
        ("提问,答案", "提问", "答案"),
        ("Q,A", "Q", "A"),
        ("left,right", None, None),
        ("data,answer", None, "answer"),
    ],
)
def test_guesses_columns(tmp_path: Path, header: str, prompt: str | None, completion: str | None) -> None:
    (tmp_path / "x.csv").write_text(
        f"{header}\n" + ",".join(["cell"] * (header.count(",") + 1)) + "\n", encoding="utf-8"
    )
    found = peek(tmp_path / "x.csv")
    assert (found.format, found.prompt, found.completion, found.rows) == ("columns", prompt, completion, 1)
    assert found.columns == header.split(",")
    assert found.sample == ([("cell", "cell")] if prompt and completion else [])


def test_guesses_formats(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "发烧怎么办？"}, {"role": "assistant", "content": "多喝水。"}]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    found = peek(tmp_path / "m.jsonl")
    assert (found.format, found.language, found.sample) == ("messages", "zh", [("发烧怎么办？", "多喝水。")])
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "Add.", "input": "1, 2", "output": "3"}]))
    found = peek(tmp_path / "a.json")
    assert (found.format, found.language, found.sample) == ("alpaca", "en", [("Add.\n\n1, 2", "3")])
    assert found.median_characters == 11


def test_language_by_its_letters() -> None:
    assert language_of(["What is 高血压, high blood pressure?"]) == "en"
    assert language_of(["患者血压 140/90 mmHg，应该怎么办？"]) == "zh"
    assert language_of([]) == "en"


def test_faults_pass_through(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("ask,answer\n")
    with pytest.raises(DataError, match="no rows"):
        peek(tmp_path / "x.csv")


def test_the_real_file() -> None:
    if not REAL.is_file():
        pytest.skip(f"the real rows are not here: {REAL}")
    found = peek(REAL)
    assert (found.prompt, found.completion, found.language, found.rows) == ("ask", "answer", "zh", 7644)
    assert found.columns == ["department", "title", "ask", "answer"]
    assert found.encodings == {REAL.name: "GBK"}
    assert found.sample[0][0] == "我有高血压这两天女婿来的时候给我拿了些党参泡水喝，您好高血压可以吃党参吗？"
