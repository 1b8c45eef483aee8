"""Functions as a template is given them, and what a template can write of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.ollama.tiny import template_text
from toolkit.errors import DataError, UsageError
from toolkit.models.chat_template import render_whole, template_file
from toolkit.models.tools import (
    NO_CALLS,
    NO_RESULTS,
    NO_TOOLS,
    arguments_of,
    as_sent,
    call_as_sent,
    calls_in,
    cannot_write,
    not_sent,
    offered,
    require_tools,
)

OWN = Path(__file__).parents[2] / "recipes" / "tools.jinja"


def function(**properties: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"properties": properties, "type": "object"}}}


def test_a_list_of_functions_is_as_the_server_behind_ollama_writes_it() -> None:
    # The bytes are compared at a real server in tests/ollama/test_calls.py.
    (made,) = as_sent([{"name": "f", "strict": True}]) or []
    assert made == {
        "type": "function",
        "function": {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}},
    }
    (made,) = as_sent([function(b={"enum": [1.0], "default": 2, "type": ["string"]}, a={"title": "x"})]) or []
    assert list(made["function"]["parameters"]["properties"].items()) == [
        ("b", {"type": "string", "enum": [1]}),
        ("a", {}),
    ]
    assert as_sent([made]) == [made] and as_sent([]) is None and as_sent(None) is None


def test_arguments_keep_their_order_and_what_is_in_them_is_sorted() -> None:
    call = {"function": {"name": "f", "arguments": '{"z": 2.0, "a": {"d": 1, "c": [1e2]}}'}, "id": "x"}
    assert str(call_as_sent(call)["function"]["arguments"]) == "{'z': 2, 'a': {'c': [100], 'd': 1}}"
    assert call_as_sent(call)["id"] == "x" and arguments_of({"name": "f"}) == {}


def test_keys_that_are_not_passed_on_are_named_and_the_users_own_names_are_none() -> None:
    tools = [function(default={"type": "string", "minLength": 1, "enum": [{"odd": 1}]})]
    assert not_sent(tools) == {"minLength"} and not_sent([]) == set()


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", set()), ("meta-llama-Llama-3.1-8B-Instruct", set()), ("openai-gpt-oss-120b", set()),
        ("mistralai-Mistral-Nemo-Instruct-2407", set()), ("Qwen3-Coder", set()),
        ("google-gemma-2-2b-it", {NO_TOOLS, NO_CALLS, NO_RESULTS}), ("LFM2-8B-A1B", {NO_CALLS}),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", {NO_TOOLS}),
    ],
)  # fmt: skip
def test_what_templates_cannot_write(name: str, lacking: set[str]) -> None:
    assert cannot_write(template_text(name)) == lacking
    require_tools(template_text(name), {NO_TOOLS, NO_CALLS, NO_RESULTS} - lacking)
    if lacking:
        with pytest.raises(DataError, match=f"does not write .*{min(lacking)}") as error:
            require_tools(template_text(name), lacking)
        assert "train.chat_template=" in error.value.hint


def test_the_template_of_the_recipe_writes_all_of_it_and_plain_turns_as_chatml() -> None:
    template = template_file(str(OWN))
    assert cannot_write(template) == set()
    plain = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert (
        render_whole(template, plain, "", "") == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    )
    calls = [{"function": {"name": "f", "arguments": {"x": "é"}}}] * 2
    text = (
        render_whole(template, [plain[0], {"role": "assistant", "content": "See:", "tool_calls": calls}], "", "") or ""
    )
    written = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
    assert text.endswith(f"assistant\nSee:\n{written}\n{written}<|im_end|>\n")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, UsageError, "there is no file"),
        (b"\xff\xfe{", DataError, "cannot be read"),
        (b"a\n{% for m in messages %}", DataError, r"own\.jinja:\d+: "),
        (b"nothing of it", DataError, "does not write a user's message"),
    ],
)
def test_a_template_file_that_is_none_is_named(
    tmp_path: Path, text: bytes | None, error: type[Exception], message: str
) -> None:
    path = tmp_path / "own.jinja"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(error, match=message):
        template_file(str(path))


def test_calls_in_a_text_and_whether_they_were_offered() -> None:
    text = 'Well {x} <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>[{"name": "g", "parameters": {}}] {"name": 1}'
    found = calls_in(text)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in found] == [("f", {"a": 1}), ("g", {})]
    tools = as_sent([function(a={"type": "integer"}, b={"type": "string", "enum": ["x"]})]) or []
    assert offered(found[:1], tools) and offered([], tools) and not offered(found, tools)
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"a": 1, "b": "x"}, True), ({"a": "1"}, False), ({"b": "y"}, False), ({"c": 1}, False), ({"a": True}, False),
    ]  # fmt: skip
    for arguments, fine in cases:
        assert offered([{"function": {"name": "f", "arguments": arguments}}], tools) is fine
