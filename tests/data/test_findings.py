"""What is found in rows is reported with file and line, and dropped on request only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.data.findings import find
from toolkit.data.formats import Example, Turn
from toolkit.data.loading import load
from toolkit.data.prepare import kept_rows
from toolkit.recipe.rows import Data


def found_in(answer: str, question: str = "What is tea?") -> list[str]:
    example = Example("x.csv", 2, (Turn("user", question),), (Turn("assistant", answer),), question)
    return [finding.what for finding in find([example])[0]]


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("As an AI language model, I cannot drink.", "an answer that speaks as an AI model"),
        ("作为一个人工智能语言模型，我不能喝茶。", "an answer that speaks as an AI model"),
        ("It has three parts: leaves, water and", ""),
        ("It has three parts:", "an answer that seems to be cut in the middle"),
        ("```python\nprint(1)", "an answer that seems to be cut in the middle"),
        ("<p>Leaves.</p>", "HTML left over"),
        ("Leaves&nbsp;and water.", "HTML left over"),
        ("Write `<p>` before it, and ```<b>x</b>``` after.", ""),
        ("If a < b and b > c, stop.", ""),
        ("Write to li.wei@example.com.", "an e-mail address"),
        ("Call 13812345678 now.", "a telephone number"),
        ("Call +49 30 901820 now.", "a telephone number"),
        ("Call (555) 123-4567 now.", "a telephone number"),
        ("His ID is 11010519491231002X.", "a Chinese ID number"),
        ("Order 110105194912310021 is sent.", ""),
        ("Pay with 4111 1111 1111 1111.", "a number of a payment card"),
        ("Part 4111 1111 1111 1112 is sold.", ""),
        ("Hers is 078-05-1120.", "a social security number"),
        ("In 2024 we sold 1,234,567 cups at 3.50 each.", ""),
        ("See pages 100-200 and 2021-2022.", ""),
    ],
)
def test_each_is_told_from_what_only_looks_like_it(answer: str, what: str) -> None:
    assert found_in(answer) == ([what] if what else [])


def test_a_long_answer_without_an_end_counts_where_the_others_end() -> None:
    def row(answer: str) -> Example:
        return Example("x.csv", 2, (Turn("user", "q"),), (Turn("assistant", answer),), "q")

    whole, cut = "Leaves are picked. " * 20 + "Done.", "Leaves are picked. " * 20 + "Then they are dri"
    assert [bool(found) for found in find([*[row(whole)] * 9, row(cut)])] == [False] * 9 + [True]
    assert not any(find([row(cut)] * 10))


def test_reported_with_its_line_and_dropped_on_request(tmp_path: Path) -> None:
    rows = [{"question": f"Question {i}?", "answer": "Ask li@example.com." if i == 3 else "Yes."} for i in range(6)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(path=str(tmp_path / "x.jsonl"))
    kept = kept_rows(load(data), data, "")
    assert len(kept.examples) == 6
    assert [(f.kind, f.file, f.line, f.what) for f in kept.found] == [("personal", "x.jsonl", 4, "an e-mail address")]
    data = Data(path=str(tmp_path / "x.jsonl"), remove=["personal"])
    kept = kept_rows(load(data), data, "")
    assert (len(kept.examples), kept.found) == (5, [])
    assert [(d.line, d.reason) for d in kept.dropped] == [(4, "removed by data.remove: an e-mail address")]
