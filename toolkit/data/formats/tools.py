"""Functions and calls of them, however a row writes them, as OpenAI writes them."""

from __future__ import annotations

import json
import re
from typing import Any

from toolkit.data.formats.cells import parsed
from toolkit.data.formats.turns import Call

NO_CALL = "a call without a function's name"
NO_ARGUMENTS = "a call's arguments are no JSON object"
NO_TOOLS = "tools are not a list of functions with names"
_IN_TEXT = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.S)
"""As Hermes' data set and Qwen's template write a call into text."""


def calls_of(value: Any) -> tuple[Call, ...] | str:
    """Calls, or why they are none."""
    made = []
    for item in value if isinstance(value, list) else [value]:
        said = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(said, dict) or not isinstance(said.get("name"), str) or not said["name"]:
            return NO_CALL
        arguments = parsed(said.get("arguments", said.get("parameters", {})))
        if arguments is None or arguments == "":
            arguments = {}
        if not isinstance(arguments, dict):
            return NO_ARGUMENTS
        made.append(Call(said["name"], json.dumps(arguments, ensure_ascii=False), str(item.get("id") or "")))
    return tuple(made) or NO_CALL


def calls_in_text(content: str) -> tuple[str, tuple[Call, ...]] | None:
    """An answer's words and the calls that are written into it; None: there are none, or not as JSON."""
    found = _IN_TEXT.findall(content)
    if not found:
        return None
    calls = calls_of([parsed(text) for text in found])
    return None if isinstance(calls, str) else (_IN_TEXT.sub("", content).strip(), calls)


def tools_of(value: Any) -> str | None:
    """A row's functions as a JSON list; empty: none; None: they are no functions."""
    value = parsed(value)
    if value is None or value in ("", []):
        return ""
    made = []
    for item in value if isinstance(value, list) else [value]:
        item = parsed(item)
        said = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(said, dict) or not isinstance(said.get("name"), str):
            return None
        function = {key: value for key, value in said.items() if key != "type"}
        function["parameters"] = said.get("parameters") or {"type": "object", "properties": {}}
        made.append({"type": "function", "function": function})
    return json.dumps(made, ensure_ascii=False)
