"""Whether the chat template can write what the rows hold: told in the first second, not when training begins."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.models.bases import EMBEDDED, read_chat_template, settings_folder
from toolkit.models.chat_template import template_file
from toolkit.models.tools import NO_CALLS, NO_RESULTS, NO_TOOLS, require_tools
from toolkit.recipe.schema import Recipe

_SIGNS = {
    NO_CALLS: ('"tool_calls": [{', '"tool_calls": "[{', '"function_call": {', ': "function_call"', ': "tool_call"'),
    NO_RESULTS: (': "tool"', ': "observation"', ': "tool_response"', '"role": "function"', '"from": "function"'),
}
"""What tells calls and results in a row of whatever shape, written as JSON."""


def check_template(recipe: Recipe, rows: Iterable[dict[str, Any]]) -> list[ToolkitError]:
    """The faults of the template that the recipe trains with: its file, and what it cannot write of the rows.

    Args:
        rows: the first of the user's files, as they are there.
    """
    named, wanted = recipe.train.chat_template, set[str]()
    for row in rows:
        wanted |= _wants(row)
    try:
        template = template_file(named) if named is not None else (_own_template(recipe.base) if wanted else None)
        if template is not None:
            require_tools(template, wanted, recipe.train.chat_template_kwargs)
    except ToolkitError as error:
        return [error]
    return []


def _wants(row: dict[str, Any]) -> set[str]:
    # A cell may hold the list of turns as text, whose quotes are escaped.
    text = json.dumps(row, ensure_ascii=False, default=str).replace('\\"', '"')
    found = {what for what, signs in _SIGNS.items() if any(sign in text for sign in signs)}
    return found | ({NO_TOOLS} if row.get("tools") not in (None, "", "[]", []) else set())


def _own_template(base: str) -> str | None:
    if not base.startswith(EMBEDDED):
        return read_chat_template(settings_folder(base))
    from toolkit.models.embedded import find_gguf
    from toolkit.models.gguf_file import read_gguf

    return str(read_gguf(find_gguf()).metadata["tokenizer.chat_template"])
