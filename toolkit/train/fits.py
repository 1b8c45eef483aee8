"""Whether the chat template can write what the rows hold: told in the first second, not when training begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.models.bases import read_chat_template, settings_folder
from toolkit.models.chat_template import template_file
from toolkit.models.tools import require_tools, wants
from toolkit.recipe.schema import Recipe


def check_template(recipe: Recipe, rows: Iterable[Mapping[str, Any]]) -> list[ToolkitError]:
    """The faults of the template that the recipe trains with: its file, and what it cannot write of the rows.

    Args:
        rows: as `prepare` writes them; some of the first are enough.
    """
    named = recipe.train.chat_template
    wanted = set[str]().union(*(wants(row) for row in rows))
    try:
        template = template_file(named) if named is not None else None
        if template is None and wanted:
            template = read_chat_template(settings_folder(recipe.base))
        if template is not None:
            require_tools(template, wanted, recipe.train.chat_template_kwargs)
    except ToolkitError as error:
        return [error]
    return []
