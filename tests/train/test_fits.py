"""Rows with functions on a base whose template takes none: told in the first second, of every shape that rows have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.models.tools import NO_CALLS, NO_TOOLS
from toolkit.recipe.schema import Recipe
from toolkit.run.preflight import preflight
from toolkit.train.fits import check_template

OWN = Path(__file__).parents[2] / "recipes" / "tools.jinja"
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


def recipe(rows: Path = Path("unused"), template: Path | None = None) -> Recipe:
    named = {} if template is None else {"chat_template": str(template)}
    return Recipe.model_validate({
        "name": "small", "base": "embedded:smollm2-135m-instruct", "data": {"path": str(rows), "format": "messages"},
        "train": named, "golden": {"prompts": ["Is it?"]}, "ollama": {"model": "small"},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "tools", "lacking"),
    [
        ([CALL], [], {NO_CALLS}),
        ([{"role": "tool", "content": "1"}], [], set()),  # ChatML writes turns of any role
        ([], [{"function": {"name": "f"}}], {NO_TOOLS}),
        ([CALL], [{"function": {"name": "f"}}], {NO_CALLS, NO_TOOLS}),
        ([{"role": "assistant", "content": "What are tool calls?"}], [], set()),
    ],
)
def test_what_the_first_rows_want_is_held_against_the_template(
    turns: list[dict[str, Any]], tools: list[dict[str, Any]], lacking: set[str]
) -> None:
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": turns, "tools": tools}
    faults = check_template(recipe(), [row])
    assert [all(what in fault.message for what in lacking) for fault in faults] == ([True] if lacking else [])
    assert check_template(recipe(template=OWN), [row]) == []


def test_preflight_names_what_is_missing_and_the_next_command(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    talk = [
        {"role": "user", "content": "a"},
        CALL,
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "b"},
    ]
    rows.write_text(json.dumps({"messages": talk, "tools": [{"function": {"name": "f"}}]}) + "\n")
    with pytest.raises(Exception, match="chat template does not write calls and the functions") as error:
        preflight(recipe(rows), tmp_path, {"train"})
    assert "--set train.chat_template=" in error.value.hint  # type: ignore[attr-defined]
    preflight(recipe(rows, OWN), tmp_path, {"train"})
    with pytest.raises(Exception, match="there is no file none"):
        preflight(recipe(rows, Path("none")), tmp_path, {"train"})
