"""The recipe's golden prompts: a list in the recipe, a text file with one a line, or JSONL with whole conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, UsageError
from toolkit.recipe.schema import Recipe

Turns = list[dict[str, str]]


def golden_turns(recipe: Recipe) -> list[Turns]:
    """The turns of every golden prompt, without the recipe's system text; each once.

    Raises:
        UsageError: there is no such file.
        DataError: a file that cannot be read, is empty, not UTF-8, or has a line that is no prompt; an empty prompt.
    """
    chosen = recipe.golden.prompts
    found = _read(Path(chosen)) if isinstance(chosen, str) else [_user(text.strip()) for text in chosen or []]
    if any(not turn["content"].strip() for turns in found for turn in turns[-1:]):
        raise DataError("golden.prompts holds an empty prompt", "Remove it.")
    return list({json.dumps(turns): turns for turns in found}.values())


def asked(turns: Turns) -> str:
    """The last question of a conversation."""
    return next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")


def _user(text: str) -> Turns:
    return [{"role": "user", "content": text}]


def _read(path: Path) -> list[Turns]:
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


def _parsed(line: str, where: str) -> Turns:
    hint = 'A line is "text", {"prompt": "text"} or {"messages": [{"role": "user", "content": "text"}]}.'
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is no JSON: {error}", hint) from error
    if isinstance(value, dict):
        value = value.get("prompt", value.get("messages"))
    if isinstance(value, str):
        return _user(value)
    turns = value if isinstance(value, list) else []
    if not turns or not all(
        isinstance(t, dict) and all(isinstance(t.get(k), str) for k in ("role", "content")) for t in turns
    ):
        raise DataError(f"{where} holds no prompt", hint)
    if turns[-1]["role"] != "user":
        raise DataError(f"{where} ends with a turn of the {turns[-1]['role']}; the last must be the user's", hint)
    return [{"role": t["role"], "content": t["content"]} for t in turns]
