"""GSM8K's answers, and the tags that training by rewards asks for."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.tagged import TAGS, after_mark, in_order, inside_answer, nothing_else, result_of, tagged

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A\n#### 12", "<reasoning>\nA\n</reasoning>\n<answer>\n12\n</answer>"),
        ("A\nB\n#### 1,000\n", "<reasoning>\nA\nB\n</reasoning>\n<answer>\n1,000\n</answer>"),
        (
            "48/2 = <<48/2=24>>24 clips.\n#### 24",
            "<reasoning>\n48/2 = 24 clips.\n</reasoning>\n<answer>\n24\n</answer>",
        ),
        ("A #### 3", "<reasoning>\nA\n</reasoning>\n<answer>\n3\n</answer>"),
        ("先 3 + 4 = 7。\r\n#### 7", "<reasoning>\n先 3 + 4 = 7。\n</reasoning>\n<answer>\n7\n</answer>"),
        ("<reasoning>A</reasoning><answer>1</answer>", "<reasoning>A</reasoning><answer>1</answer>"),
        ("#### Head\nA\n#### 5", "<reasoning>\n#### Head\nA\n</reasoning>\n<answer>\n5\n</answer>"),
        ("a << b and c >> d\n#### 5", "<reasoning>\na  d\n</reasoning>\n<answer>\n5\n</answer>"),
        ("12", None),
        ("", None),
        ("A\n####", None),
        ("A\n#### ", None),
        ("#### 5", None),  # nothing to learn before the result
        ("A\n##### 5", None),  # a heading
        ("A\n#### Result\nIt is 5.", None),  # a heading
        ("A <answer>5</answer>", None),
    ],
)
def test_an_answer_in_tags(answer: str, expected: str | None) -> None:
    assert tagged(answer) == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("A\n#### 12", "12"),
        ("A <<1+1=2>>2\n#### <<2>>2", "2"),
        ("12", "12"),
        (" twelve \n", "twelve"),
        ("<reasoning>\nA\n</reasoning>\n<answer>\n12\n</answer>", "12"),
        ("<answer>#### 12</answer>", "12"),
        ("<answer>3</answer> so\n#### 4", "4"),
        ("", ""),
    ],
)
def test_a_references_result(reference: str, expected: str) -> None:
    assert result_of(reference) == expected


def test_the_last_answer_in_tags() -> None:
    assert inside_answer("<answer>1</answer><answer> 2 </answer>") == "2"
    assert inside_answer("<answer>1<answer>2</answer> 3</answer>") == "2</answer> 3"
    assert inside_answer("<answer>1</answer> <answer>2") == "1"
    assert inside_answer("</answer>1<answer>") is None
    assert inside_answer("") is None


def test_an_answer_in_tags_is_in_the_strict_format_and_stays_as_it_is() -> None:
    made = tagged("3 + 4 = 7.\n#### 7")
    assert made is not None and nothing_else(made) and inside_answer(made) == "7" == after_mark("#### 7")
    assert tagged(made) == made


@given(st.lists(st.sampled_from([*TAGS, "\n", " ", "x", "12", "####"]), max_size=30).map("".join))
def test_the_strict_format_is_also_the_soft_one(text: str) -> None:
    assert in_order(text) or not nothing_else(text)
    assert nothing_else(text) == nothing_else(f"\n{text} ")


@given(st.text(alphabet="ab1#<>=\n ", max_size=40), st.integers())
def test_every_answer_with_steps_and_a_result_can_be_tagged(steps: str, result: int) -> None:
    made = tagged(f"x{steps}y\n#### {result}")
    assert made is not None and inside_answer(made) == str(result) and nothing_else(made)


def test_a_text_of_nothing_but_tags_takes_no_time() -> None:
    started = time.monotonic()
    for text in (
        "<reasoning>" * 100_000,
        "<answer></answer>" * 60_000,
        "<<" * 200_000,
        "####" * 200_000,
        "#" * 400_000,
    ):
        assert tagged(text) is None and not nothing_else(text)
    assert time.monotonic() - started < 20


def test_every_row_of_gsm8k_can_be_tagged() -> None:
    if not GSM8K.is_file():
        pytest.skip("the real GSM8K is not beside this checkout")
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        made = tagged(row["answer"])
        assert made is not None and nothing_else(made) and "<<" not in made
        assert inside_answer(made) == result_of(row["answer"]) == row["answer"].rpartition("#### ")[2].strip()
