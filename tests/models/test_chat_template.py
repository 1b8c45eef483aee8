"""What a published template writes when a server fills in its own words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ollama.tiny import TEMPLATES, template_text
from toolkit.models.chat_template import KEEPING_THOUGHTS, Messages, as_trained, render_trained

ASKED: list[Messages] = [[{"role": "user", "content": "Q"}]]
ASKED.append([{"role": "system", "content": "S"}, *ASKED[0]])
ASKED.append([*ASKED[1], {"role": "assistant", "content": "A"}, *ASKED[0]])
SERVER = {"enable_thinking": True, "date_string": "X", "datetime": "Y", **KEEPING_THOUGHTS}
TOLD: list[dict[str, Any]] = [
    {}, {"enable_thinking": False}, {"enable_thinking": True}, {"reasoning_effort": "low"},
    {"clear_thinking": True, "thinking": True},
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
@pytest.mark.parametrize("fields", TOLD, ids=str)
def test_where_nobody_says_anything_the_prompt_is_that_of_training(name: str, fields: dict[str, Any]) -> None:
    template = template_text(name)
    made = as_trained(template, fields)
    for messages in ASKED:
        trained = render_trained(template, messages, "<s>", "</s>", **fields)
        assert render_trained(made, messages, "<s>", "</s>", **SERVER) == trained
        # Said by an app that knows of thoughts.
        level = {"reasoning_effort": "high"}
        hard = render_trained(template, messages, "<s>", "</s>", **{**fields, "enable_thinking": True, **level})
        assert render_trained(made, messages, "<s>", "</s>", **SERVER, **level) == hard


def test_a_template_that_is_told_nothing_new_is_left_alone() -> None:
    plain, thinking = template_text("Qwen-Qwen2.5-7B-Instruct"), template_text("Qwen-Qwen3-0.6B")
    assert as_trained(plain, {"enable_thinking": False, "unheard_of": 3}) == plain
    assert as_trained(thinking, {"enable_thinking": True}) == thinking


def test_values_are_written_as_jinja_writes_them() -> None:
    told = {"a": None, "b": True, "c": 1.5, "d": 'a "quote"\n高'}
    made = as_trained("{{ a }}|{{ b }}|{{ c }}|{{ d }}", told)
    assert render_trained(made, [], "", "") == 'None|True|1.5|a "quote"\n高'
    assert render_trained(made, [], "", "", c=2) == 'None|True|2|a "quote"\n高'  # a request's own word
    assert render_trained(as_trained("\n{{ b }}", told), [], "", "") == "\nTrue"
