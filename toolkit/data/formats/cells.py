"""What is in one cell or field: text, JSON written as text, a list of turns."""

from __future__ import annotations

import json
from typing import Any

NOT_TEXT = "a cell is not text"
SPEAKERS = ("role", "from", "speaker")
CONTENTS = ("content", "value", "text")


def text_of(value: Any) -> str | None:
    """A cell's text; None: it is none."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def parsed(value: Any) -> Any:
    """A value, or what the JSON list or object in a text says; a text that is no JSON comes back."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


TOGETHER = (("human", "assistant"), ("user", "assistant"), ("question", "answer"))
"""Keys of an object that holds a question and its answer, as some write the items of a conversation."""


def are_turns(value: Any) -> bool:
    """Whether a value is a list of messages: objects that say who speaks, or that hold a question and its answer."""
    value = parsed(value)
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, dict) and (any(n in item for n in SPEAKERS) or together(item)) for item in value)


def together(item: dict[str, Any]) -> tuple[str, str] | None:
    """The keys of a question and its answer in one item; None: it holds no such two."""
    return next((keys for keys in TOGETHER if item.keys() >= set(keys)), None)
