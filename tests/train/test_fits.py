"""Rows with functions on a base whose template takes none: told in the first second, of every shape that rows have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from toolkit.errors import UsageError
from toolkit.models.tools import NO_CALLS, NO_TOOLS
from toolkit.recipe.schema import Recipe
from toolkit.run.preflight import preflight
from toolkit.train.fits import check_sees, check_template

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


@pytest.mark.parametrize(
    ("train", "row", "columns"),
    [
        ({"objective": "dpo"}, {"chosen": "Red.", "rejected": "Blue."}, {}),
        ({"objective": "orpo"}, {"chosen": "Red.", "rejected": "Blue."}, {}),
        ({"objective": "kto"}, {"answer": "Red.", "good": True}, {"label": "good"}),
        ({"objective": "grpo", "rewards": ["answer_correct"], "num_generations": 4}, {"answer": "Red."}, {}),
        ({"packing": True}, {"answer": "Red."}, {}),
    ],
    ids=["dpo", "orpo", "kto", "grpo", "packing"],
)  # fmt: skip
def test_what_learns_from_words_alone_is_refused_rows_that_show_pictures(
    train: dict[str, Any], row: dict[str, Any], columns: dict[str, Any], tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps({"photo": "a.png", "question": "What?", **row})] * 8))
    made = Recipe.model_validate(
        {
            "name": "x", "base": "embedded:qwen2.5-vl-small", "train": train, "ollama": {"model": "x"},
            "data": {"path": str(tmp_path / "rows.jsonl"), "columns": columns},
        }
    )  # fmt: skip
    with pytest.raises(UsageError) as raised:
        preflight(made, tmp_path / "runs", {"prepare", "train"})
    what = (
        "train.packing puts rows" if "packing" in train else f"train.objective {train['objective']} learns from words"
    )
    assert f"rows.jsonl:1: the row shows a picture, and {what}" in raised.value.message
    assert ("--set train.packing=false" if "packing" in train else "--set train.objective=sft") in raised.value.hint
    assert "--set data.columns.image=false" in raised.value.hint


def test_a_base_that_sees_no_pictures_is_refused_rows_that_show_some(tmp_path: Path) -> None:
    shown = {"type": "image_url", "image_url": {"url": "a.png"}}
    talk = [
        {"role": "user", "content": [shown, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A"},
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join([json.dumps({"messages": talk})] * 8))
    with pytest.raises(
        UsageError, match=r"rows\.jsonl:1: the row shows a picture, and embedded:\S+ sees none"
    ) as raised:
        preflight(recipe(rows), tmp_path / "runs", {"prepare", "train"})
    assert "--set data.columns.image=false" in raised.value.hint
    row = {"prompt": talk[:1], "completion": talk[1:], "source": {"file": "x", "line": 1}}
    (tmp_path / "config.json").write_text('{"vision_config": {}}')
    (tmp_path / "model.safetensors").touch()
    assert check_sees(recipe().model_copy(update={"base": str(tmp_path)}), [row]) == []
