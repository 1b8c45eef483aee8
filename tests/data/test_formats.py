"""Rows of each shape become conversations; what cannot is named; missing columns are named with the nearest one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolkit.data.formats import Example, Turn, read_row, shape_of, thought_columns
from toolkit.data.readers import Row
from toolkit.errors import UsageError
from toolkit.recipe.rows import Data


def convert(values: dict[str, Any], form: str = "auto", **settings: Any) -> Example | str:
    data = Data.model_validate({"path": "x", "format": form, **settings})
    return read_row(Row("x.csv", 7, values), shape_of("x.csv", list(values), [values], data), data.learn)


def example(values: dict[str, Any], form: str = "auto", **settings: Any) -> Example:
    found = convert(values, form, **settings)
    assert isinstance(found, Example), found
    return found


def turns(*said: str, **keys: str) -> list[dict[str, Any]]:
    """Turns as "role: content"."""
    role, content = keys.get("role", "role"), keys.get("content", "content")
    return [dict(zip((role, content), one.split(": ", 1))) for one in said]


def test_columns() -> None:
    found = example({"问": "发烧？", "答": "多喝水", "科": "内科"}, columns={"prompt": "问", "completion": "答"})
    assert found.under("你是助手", "recipe").record() == {
        "prompt": [{"role": "system", "content": "你是助手"}, {"role": "user", "content": "发烧？"}],
        "completion": [{"role": "assistant", "content": "多喝水"}],
        "source": {"file": "x.csv", "line": 7},
    }
    assert [turn["role"] for turn in found.record()["prompt"]] == ["user"]
    assert found.characters == 6


@pytest.mark.parametrize(
    ("given", "prompt", "topic"),
    [
        ("Paris", "Translate.\n\nParis", "Paris"), ("", "Translate.", "Translate."), (None, "Translate.", "Translate."),
        (" \n", "Translate.", "Translate."),
    ],
)  # fmt: skip
def test_alpaca(given: str | None, prompt: str, topic: str) -> None:
    found = example({"instruction": "Translate.", "input": given, "output": "x"}, "alpaca")
    assert (found.prompt, found.completion, found.topic) == (
        (Turn("user", prompt),), (Turn("assistant", "x"),), topic,
    )  # fmt: skip


@pytest.mark.parametrize("history", [[["a", "b"]], json.dumps([["a", "b"]]), turns("user: a", "assistant: b")])
def test_a_history_is_earlier_turns(history: Any) -> None:
    row = {"instruction": "c", "input": "", "output": "d", "history": history, "system": "s"}
    found = example(row, "alpaca")
    assert [turn.content for turn in found.prompt] == ["a"] and [turn.content for turn in found.completion] == [*"bcd"]
    assert (found.system, found.topic) == ("s", "a\nc")
    last = example(row, "alpaca", learn="last")
    assert [turn.content for turn in last.prompt] == [*"abc"] and last.completion == (Turn("assistant", "d"),)
    assert convert({**row, "history": "once upon a time"}, "alpaca") == "history is no list of pairs or turns"


_TURNS = turns("system: be brief", "user: a", "assistant: b", "user: c", "assistant: d")
_SHAREGPT = turns("system: be brief", "human: a", "gpt: b", "human: c", "gpt: d", role="from", content="value")


@pytest.mark.parametrize(
    "values",
    [
        {"messages": _TURNS}, {"messages": json.dumps(_TURNS)}, {"messages": [*_TURNS, *turns("user: not answered")]},
        {"conversations": _SHAREGPT}, {"conversations": _SHAREGPT[1:], "system": "be brief"},
        {"messages": [*turns("assistant: Hello!"), *_TURNS]}, {"chat": _TURNS}, {"id": 4, "dialog": _SHAREGPT},
        {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in _TURNS]},
    ],
)  # fmt: skip
def test_messages(values: dict[str, Any]) -> None:
    found = example(values, "auto")
    assert (found.system, found.topic) == ("be brief", "a\nc")
    assert [(turn.role, turn.content) for turn in found.prompt] == [("user", "a")]
    assert [turn.content for turn in found.completion] == ["b", "c", "d"]
    last = example(values, "auto", learn="last")
    assert ([turn.content for turn in last.prompt], [turn.content for turn in last.completion]) == (
        ["a", "b", "c"],
        ["d"],
    )


def test_what_reading_changes_is_noted() -> None:
    said = turns("assistant: Hello!", "user: a", "system: s", "assistant: b", "user: c")
    assert example({"messages": said}).notes == (
        "system texts joined at the beginning", "a greeting before the first question left out",
        "a last question without an answer left out",
    )  # fmt: skip


def test_turns_of_weight_0_are_context() -> None:
    said = turns("user: a", "assistant: b", "user: c", "assistant: d", "user: e", "assistant: f")
    said[1]["weight"] = 0
    found = example({"messages": said})
    assert [turn.content for turn in found.prompt] == [*"abc"] and [turn.content for turn in found.completion] == [
        *"def"
    ]
    said[3]["weight"], said[1]["weight"] = 0, 1
    assert convert({"messages": said}) == "an assistant turn with weight 0 between learnt ones"
    for place in (1, 3, 5):
        said[place]["weight"] = 0
    assert convert({"messages": said}) == "every assistant turn has weight 0, so nothing would be learnt"


_CALLED = {"type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "values",
    [
        {
            "messages": [
                *turns("user: q"),
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"n": 1}'}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "ok"}, *turns("assistant: a"),
            ],
            "tools": [_TOOL],
        },
        {
            "messages": [
                *turns("user: q"), {"role": "assistant", "content": "", "function_call": {"name": "look", "arguments": {"n": 1}}},
                {"role": "function", "name": "look", "content": "ok"}, *turns("assistant: a"),
            ],
            "functions": json.dumps([_TOOL["function"]]),
        },
        {
            "conversations": [
                {"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "look", "arguments": {"n": 1}}'},
                {"from": "observation", "value": "ok"}, {"from": "gpt", "value": "a"},
            ],
            "tools": json.dumps([{"name": "look"}]),
        },
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": '<tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>'},
                {"from": "tool", "value": "<tool_response>\nok\n</tool_response>"}, {"from": "gpt", "value": "a"},
            ],
            "tools": [_TOOL],
        },
    ],
)  # fmt: skip
def test_calls_and_results(values: dict[str, Any]) -> None:
    record = example(values).record()
    assert record["prompt"] == [{"role": "user", "content": "q"}]
    call, result, answer = record["completion"]
    assert call == {"role": "assistant", "content": "", "tool_calls": [_CALLED]}
    assert (result["role"], result["content"], result["name"]) == ("tool", "ok", "look")
    assert answer == {"role": "assistant", "content": "a"}
    assert record["tools"] == [_TOOL]


def test_words_before_a_call_belong_to_it() -> None:
    said = [*turns("human: q", "gpt: Wait.", role="from", content="value"),
            {"from": "function_call", "value": '[{"name": "f"}, {"name": "g", "arguments": {}}]'},
            *turns("observation: 1", "observation: 2", "gpt: a", role="from", content="value")]  # fmt: skip
    record = example({"conversations": said}).record()
    assert record["completion"][0]["content"] == "Wait."
    assert [turn.get("name") for turn in record["completion"]] == [None, "f", "g", None]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"messages": "[{"}, "messages are not a JSON list"),
        ({"messages": {}}, "messages are not a list of turns"),
        ({"messages": None}, "messages are not a list of turns"),
        ({"messages": ["a"]}, "a turn is not an object with role and content"),
        ({"messages": turns("narrator: a")}, "unknown role 'narrator'"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "a turn's content is not text"),
        ({"messages": _TURNS[:2]}, "no turn of the assistant after the first question"),
        ({"messages": _TURNS[2:3]}, "no turn of the user"),
        ({"messages": _TURNS[1:2] + _TURNS[1:3]}, "two user turns in a row: a turn between them is missing"),
        ({"messages": turns("user: a", "tool: b", "assistant: c")}, "a tool's result that no call asked for"),
        ({"messages": [*_TURNS[:2], {"role": "assistant", "tool_calls": [{"id": 1}]}]}, "a call without a function's name"),
        (
            {"messages": [*_TURNS[:2], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "n=1"}}]}]},
            "a call's arguments are no JSON object",
        ),
        ({"messages": _TURNS, "tools": [1]}, "tools are not a list of functions with names"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_learnt(values: dict[str, Any], reason: str) -> None:
    assert convert(values, "messages") == reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
        ({"prompt": "a", "chosen": "b", "rejected": ["c"]}, "rejected: a cell is not text"),
        ({"chosen": turns("user: a", "assistant: b"), "rejected": turns("user: x", "assistant: c")},
         "chosen and rejected answer different prompts"),
        ({"chosen": turns("user: a", "assistant: b"), "rejected": turns("user: a")},
         "rejected: no turn of the assistant after the first question"),
    ],
)  # fmt: skip
def test_pairs_that_are_none(values: dict[str, Any], reason: str) -> None:
    assert convert(values, "preference") == reason


def test_cells() -> None:
    assert convert({"ask": ["a"], "answer": "b"}) == "a cell is not text"
    assert convert({"ask": True, "answer": "b"}) == "a cell is not text"
    found = example({"ask": 42, "answer": 1.5})
    assert (found.prompt_text, found.answer) == ("42", "1.5")
    empty = example({"ask": None, "answer": None})
    assert (empty.prompt_text, empty.answer) == ("", "")


def test_missing_columns_name_the_nearest() -> None:
    data = Data.model_validate({"path": "x", "columns": {"prompt": "question", "completion": "answer"}})
    with pytest.raises(UsageError) as caught:
        shape_of("a.csv", ["Question", "answers"], [], data)
    assert caught.value.message.splitlines() == [
        "a.csv:1: no column 'question' (did you mean Question?); it has: Question, answers",
        "a.csv:1: no column 'answer' (did you mean answers?); it has: Question, answers",
    ]
    assert "--set data.columns.prompt=…" in caught.value.hint
    assert caught.value.exit_code == 2
    # A recipe for tables is given conversations: these are read for what they are.
    assert shape_of("b.jsonl", ["messages"], [{"messages": _TURNS}], data).kind == "messages"


@pytest.mark.parametrize("form", ["alpaca", "messages", "preference", "unpaired"])
def test_missing_columns_of_other_formats(form: str) -> None:
    with pytest.raises(UsageError, match="no column"):
        shape_of("a.jsonl", ["ask", "answer"], [], Data.model_validate({"path": "x", "format": form}))


@pytest.mark.parametrize(
    ("columns", "kind", "roles"),
    [
        ("department,title,ask,answer", "columns", {"prompt": "ask", "completion": "answer"}),
        ("科室,标题,问题,回答", "columns", {"prompt": "问题", "completion": "回答"}),
        ("id,user_question,doctor_reply", "columns", {"prompt": "user_question", "completion": "doctor_reply"}),
        ("Question,Category", "columns", {"prompt": "Question", "completion": "Category"}),
        ("left,right", "columns", {"prompt": "left", "completion": "right"}),
        ("question,answer,label", "columns", {"prompt": "question", "completion": "answer"}),
        ("Instruction,Output", "alpaca", {"prompt": "Instruction", "completion": "Output"}),
        ("question,chosen,rejected", "preference", {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}),
        ("text", "text", {"text": "text"}),
    ],
)
def test_shapes_by_their_columns(columns: str, kind: str, roles: dict[str, str]) -> None:
    names = columns.split(",")
    shape = shape_of("x.csv", names, [dict.fromkeys(names, "cell")], Data(path="x"))
    assert (shape.kind, shape.roles) == (kind, roles)
    assert set(shape.unused) == set(names) - set(roles.values())
    assert shape.reason


def test_unused_keys_of_turns_are_named() -> None:
    said = [{**turn, "timestamp": 1} for turn in _TURNS]
    assert shape_of("x", ["messages", "id"], [{"messages": said, "id": 1}], Data(path="x")).unused == (
        "id", "messages[].timestamp",
    )  # fmt: skip


def test_a_thought_beside_the_answer_is_kept_beside_it() -> None:
    found = example({"ask": "a", "answer": "b", "cot": " 想一想 "}, columns={"thinking": "cot"})
    assert found.record()["completion"] == [{"role": "assistant", "content": "b", "reasoning_content": " 想一想 "}]
    for field in ("reasoning_content", "thinking", "reasoning"):
        said = turns("user: a", "assistant: b", "user: c", "assistant: d")
        said[1][field], said[3][field] = "old", "new"
        record = example({"messages": said}, "messages").record()
        assert [turn.get("reasoning_content") for turn in record["completion"]] == ["old", None, "new"]
    with pytest.raises(UsageError, match="no column 'cott'") as caught:
        shape_of(
            "x.csv", ["ask", "answer", "cot"], [], Data.model_validate({"path": "x", "columns": {"thinking": "cott"}})
        )
    assert "data.columns.thinking" in caught.value.hint
    assert thought_columns(shape_of("x.csv", ["ask", "answer", "Reasoning"], [], Data(path="x"))) == ["Reasoning"]
