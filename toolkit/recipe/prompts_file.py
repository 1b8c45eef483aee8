"""The recipe's golden prompts: a list in the recipe, a text file with one a line, or JSONL with whole conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.errors import DataError, UsageError
from toolkit.models.tools import Tools, as_sent
from toolkit.recipe.schema import Recipe

Turns = list[dict[str, Any]]


class GoldenPrompt(NamedTuple):
    """A conversation up to an answer."""

    turns: Turns
    tools: Tools | None = None
    """Functions that the answer may call, as a chat template is given them."""


def golden_turns(recipe: Recipe) -> list[Turns]:
    """The turns of `golden_prompts`."""
    return [prompt.turns for prompt in golden_prompts(recipe)]


def golden_prompts(recipe: Recipe) -> list[GoldenPrompt]:
    """Every golden prompt, without the recipe's system text; each once.

    Raises:
        UsageError: there is no such file.
        DataError: a file that cannot be read, is empty, not UTF-8, or has a line that is no prompt; an empty prompt.
    """
    chosen = recipe.golden.prompts
    found = _read(Path(chosen)) if isinstance(chosen, str) else [_user(text.strip()) for text in chosen or []]
    if any(not prompt.turns[-1]["content"].strip() for prompt in found):
        raise DataError("golden.prompts holds an empty prompt", "Remove it.")
    return list({json.dumps(prompt): prompt for prompt in found}.values())


def prompts_of(row: dict[str, Any]) -> list[GoldenPrompt]:
    """The conversation before each answer of a row of the dataset; none of plain text."""
    if "text" in row:
        return []
    tools, completion = as_sent(row.get("tools")), row.get("completion", ())
    later = [place for place, turn in enumerate(completion) if place and turn["role"] == "assistant"]
    return [GoldenPrompt([*row["prompt"], *completion[:place]], tools) for place in (0, *later)]


def asked(turns: Turns) -> str:
    """The last question of a conversation, in words; a picture is its file's name, which is made of what it shows."""
    content = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    if isinstance(content, str):
        return content
    return " ".join(str(part["text"] if part["type"] == "text" else part["image"]) for part in content)


def _user(text: str) -> GoldenPrompt:
    return GoldenPrompt([{"role": "user", "content": text}])


def _read(path: Path) -> list[GoldenPrompt]:
    try:
        # Not splitlines: a prompt may hold U+2028.
        lines = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n").split("\n")
    except FileNotFoundError as error:
        raise UsageError(
            f"golden.prompts: there is no file {path}", "Name a text file with a prompt a line."
        ) from error
    except OSError as error:
        raise DataError(
            f"golden.prompts: {path} cannot be read: {error.strerror}", "Give a text file with a prompt a line."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"golden.prompts: {path} is not UTF-8: {error}", "Save it as UTF-8.") from error
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise DataError(f"golden.prompts: {path} is empty", "Write prompts into it, one a line.")
    if path.suffix.lower() == ".jsonl":
        return [_parsed(line, f"golden.prompts: {path}:{number}") for number, line in kept]
    return [_user(line) for _, line in kept]


def _parsed(line: str, where: str) -> GoldenPrompt:
    hint = (
        'A line is "text", {"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}], "tools": [...]}.'
    )
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}", hint) from error
    tools = None
    if isinstance(value, dict):
        tools, value = value.get("tools"), value.get("prompt", value.get("messages"))
    if isinstance(value, str):
        value = _user(value).turns
    found = [_turn(turn) for turn in value] if isinstance(value, list) else []
    turns = [turn for turn in found if turn is not None]
    if not turns or len(turns) < len(found):
        raise DataError(f"{where} holds no prompt", hint)
    if turns[-1]["role"] not in {"user", "tool"}:
        raise DataError(f"{where} ends with a turn of the {turns[-1]['role']}; the last must be the user's", hint)
    try:
        return GoldenPrompt(turns, as_sent(tools))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: tools are no list of functions as OpenAI's API takes them", hint) from error


def _turn(turn: Any) -> dict[str, Any] | None:
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        return None
    content = turn.get("content") or ("" if turn.get("tool_calls") else turn.get("content"))
    if not isinstance(content, str):
        return None
    more = {key: turn[key] for key in ("name", "tool_call_id", "tool_calls") if turn.get(key)}
    return {"role": turn["role"], "content": content, **more}
