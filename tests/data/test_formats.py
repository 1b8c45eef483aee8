"""Rows of each format become prompt and completion; missing columns are named with the nearest one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolkit.data.formats import Example, Turn, check_columns, to_example, unused_thoughts
from toolkit.data.readers import Row, Table
from toolkit.errors import UsageError
from toolkit.recipe.schema import Columns, Data


def convert(values: dict[str, Any], form: str = "columns", **settings: Any) -> Example | str:
    return to_example(Row("x.csv", 7, values), Data.model_validate({"path": "x", "format": form, **settings}))


def test_columns() -> None:
    example = convert({"问": "发烧？", "答": "多喝水", "科": "内科"}, columns=Columns(prompt="问", completion="答"))
    assert isinstance(example, Example)
    assert example.record("你是助手") == {
        "prompt": [{"role": "system", "content": "你是助手"}, {"role": "user", "content": "发烧？"}],
        "completion": [{"role": "assistant", "content": "多喝水"}],
        "source": {"file": "x.csv", "line": 7},
    }
    assert [turn["role"] for turn in example.record("")["prompt"]] == ["user"]
    assert example.characters == 6


@pytest.mark.parametrize(
    ("given", "prompt", "topic"),
    [
        ("Paris", "Translate.\n\nParis", "Paris"),
        ("", "Translate.", "Translate."),
        (None, "Translate.", "Translate."),
        (" \n", "Translate.", "Translate."),
    ],
)
def test_alpaca(given: str | None, prompt: str, topic: str) -> None:
    example = convert({"instruction": "Translate.", "input": given, "output": "x"}, "alpaca")
    assert isinstance(example, Example)
    assert (example.prompt, example.completion, example.topic) == ((Turn("user", prompt),), "x", topic)


_TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


_SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}


@pytest.mark.parametrize(
    "values",
    [
        {"messages": _TURNS},
        {"messages": json.dumps(_TURNS)},
        {"messages": [*_TURNS, {"role": "user", "content": "not answered"}]},
        {"conversations": [{"from": _SHAREGPT[t["role"]], "value": t["content"]} for t in _TURNS]},
    ],
)
def test_messages_learn_the_last_answer(values: dict[str, Any]) -> None:
    example = convert(values, "messages")
    assert isinstance(example, Example)
    assert example.prompt == (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    assert example.completion == "d"
    assert example.own_system
    assert example.record("")["prompt"][0] == {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"messages": "[{"}, "messages are not a JSON list"),
        ({"messages": {}}, "messages are not a list of turns"),
        ({}, "messages are not a list of turns"),
        ({"messages": ["a"]}, "a turn is not role and content (user, assistant or system)"),
        (
            {"messages": [{"role": "tool", "content": "a"}]},
            "a turn is not role and content (user, assistant or system)",
        ),
        (
            {"messages": [{"role": "user", "content": ["a"]}]},
            "a turn is not role and content (user, assistant or system)",
        ),
        ({"messages": _TURNS[:2]}, "turns do not alternate from user to assistant"),
        ({"messages": _TURNS[2:3]}, "turns do not alternate from user to assistant"),
        ({"messages": _TURNS[1:2] + _TURNS[1:3]}, "turns do not alternate from user to assistant"),
    ],
)
def test_messages_that_cannot_be_learnt(values: dict[str, Any], reason: str) -> None:
    assert convert(values, "messages") == reason


def test_cells() -> None:
    assert convert({"ask": ["a"], "answer": "b"}) == "a cell is not text"
    assert convert({"ask": True, "answer": "b"}) == "a cell is not text"
    example = convert({"ask": 42, "answer": 1.5})
    assert isinstance(example, Example)
    assert (example.prompt_text, example.completion) == ("42", "1.5")
    empty = convert({"ask": None})
    assert isinstance(empty, Example)
    assert (empty.prompt_text, empty.completion) == ("", "")


def test_missing_columns_name_the_nearest() -> None:
    table = Table(columns={"a.csv": ["Question", "answers"], "b.csv": ["ask", "answer"]})
    data = Data(path="x", columns=Columns(prompt="question", completion="answer"))
    with pytest.raises(UsageError) as caught:
        check_columns(data, table)
    assert caught.value.message.splitlines() == [
        "a.csv:1: no column 'question' (did you mean Question?); it has: Question, answers",
        "a.csv:1: no column 'answer' (did you mean answers?); it has: Question, answers",
        "b.csv:1: no column 'question'; it has: ask, answer",
    ]
    assert "--set data.columns.prompt=…" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("form", ["alpaca", "messages"])
def test_missing_columns_of_other_formats(form: str) -> None:
    data = Data.model_validate({"path": "x", "format": form})
    with pytest.raises(UsageError, match="no column"):
        check_columns(data, Table(columns={"a.jsonl": ["ask", "answer"]}))


def test_a_thought_beside_the_answer_is_kept_beside_it() -> None:
    example = convert({"ask": "a", "answer": "b", "cot": " 想一想 "}, columns=Columns(thinking="cot"))
    assert isinstance(example, Example)
    assert example.record("")["completion"] == [
        {"role": "assistant", "content": "b", "reasoning_content": " 想一想 "},
    ]
    for field in ("reasoning_content", "thinking", "reasoning"):
        turns = [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", field: "old"},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", field: "new"},
        ]  # fmt: skip
        example = convert({"messages": turns}, "messages")
        assert isinstance(example, Example) and example.thinking == "new"
        assert example.record("")["prompt"][1] == {"role": "assistant", "content": "b", "reasoning_content": "old"}
    with pytest.raises(UsageError, match="no column 'cott'") as found:
        check_columns(
            Data(path="x", columns=Columns(thinking="cott")), Table(columns={"x.csv": ["ask", "answer", "cot"]})
        )
    assert "data.columns.thinking" in found.value.hint
    assert unused_thoughts(Data(path="x"), ["ask", "answer", "Reasoning"]) == ["Reasoning"]
    assert unused_thoughts(Data(path="x", columns=Columns(thinking="thinking")), ["ask", "answer", "thinking"]) == []
