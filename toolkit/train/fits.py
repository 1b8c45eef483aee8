"""Whether base and chat template can take what the rows hold: told in the first second, not when training begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.errors import ToolkitError, UsageError
from toolkit.models.bases import read_chat_template, settings_folder
from toolkit.models.chat_template import template_file
from toolkit.models.pictures import sees_pictures
from toolkit.models.tools import require_tools, wants
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import Train

_WORDS_ALONE = "or learn the words alone: --set data.columns.image=false"


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


def check_sees(recipe: Recipe, rows: Iterable[Mapping[str, Any]]) -> list[ToolkitError]:
    """The faults of a base that sees no pictures and of training that learns from none, where rows show some.

    Args:
        rows: as for `check_template`.
    """
    showing = next((row for row in rows if shows_pictures(row)), None)
    if showing is None:
        return []
    place = f"{showing['source']['file']}:{showing['source']['line']}"
    faults = learns_from_pictures(recipe.train, place)
    try:
        if not sees_pictures(settings_folder(recipe.base)):
            faults.append(
                UsageError(
                    f"{place}: the row shows a picture, and {recipe.base} sees none",
                    f"Name a base that sees, as recipes/car_insurance.yaml does; {_WORDS_ALONE}",
                )
            )
    except ToolkitError as error:
        faults.append(error)
    return faults


def learns_from_pictures(train: Train, place: str) -> list[ToolkitError]:
    """What of the settings of training does not go together with pictures.

    Args:
        place: of a row that shows one, or of all rows.
    """
    faults: list[ToolkitError] = []
    if train.objective != "sft":
        faults.append(
            UsageError(
                f"{place}: the row shows a picture, and train.objective {train.objective} learns from words alone",
                f"Pictures are learnt from by one objective: --set train.objective=sft; {_WORDS_ALONE}",
            )
        )
    if train.packing:
        faults.append(
            UsageError(
                f"{place}: the row shows a picture, and train.packing puts rows of words behind each other",
                f"Train them apart: --set train.packing=false; {_WORDS_ALONE}",
            )
        )
    return faults


def shows_pictures(row: Mapping[str, Any]) -> bool:
    """Whether a row, as `prepare` writes it, shows a picture."""
    return any(isinstance(turn["content"], list) for turn in [*row.get("prompt", ()), *row.get("completion", ())])
