"""What can be known to fail is checked in the first second, all faults at once, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.recipe.schema import Recipe
from toolkit.run.hardware import read_hardware

if TYPE_CHECKING:
    from toolkit.data.loading import Loaded


def preflight(recipe: Recipe, folder: Path, runs: Collection[str]) -> list[str]:
    """Check data, base, golden prompts, Modelfile, memory and disk, as far as a stage that will run needs them.

    Args:
        folder: runs/<name>.
        runs: the stages that will run.

    Returns:
        What is no fault, and may not be meant (`Loaded.doubts`).

    Raises:
        ToolkitError: every fault in one message; the exit code is that of the first.
    """
    faults: list[ToolkitError] = []
    looked: Loaded | None = None
    if recipe.data is not None and ("prepare" in runs or "train" in runs):
        from toolkit.data.prepare import check_data

        looked, found = check_data(recipe)
        faults += found if "prepare" in runs else []
    if "train" in runs:
        from toolkit.models.bases import check_base
        from toolkit.models.convertible import check_converts_base

        faults += (
            _raised(lambda: check_base(recipe.base))
            or _raised(lambda: check_converts_base(recipe.base))
            or _collect(lambda: _check_template(recipe, looked))
        )
    if "prepare" in runs or "golden" in runs:
        from toolkit.recipe.prompts_file import golden_turns

        faults += _raised(lambda: golden_turns(recipe))
    if "create" in runs:
        from toolkit.ollama.modelfile import check_modelfile

        faults += _collect(lambda: check_modelfile(recipe))
    from toolkit.recipe.plan import check_plan, make_plan

    hardware = read_hardware()
    faults += _collect(lambda: check_plan(make_plan(recipe, hardware), hardware, folder, runs))
    doubts = list(looked.doubts.values()) if looked is not None and "prepare" in runs else []
    if faults:
        hints = "\n".join(dict.fromkeys([*(f.hint for f in faults if f.hint), *doubts]))
        error = type(faults[0])("\n".join(f.message for f in faults), hints)
        raise error
    return doubts


def _check_template(recipe: Recipe, looked: Loaded | None) -> list[ToolkitError]:
    """What the first rows hold, against the chat template."""
    from toolkit.data.formats import Example, read_row
    from toolkit.train.fits import check_template

    rows = []
    if recipe.data is not None and looked is not None:
        shaped = [(row, looked.shapes[row.file]) for row in looked.table.rows if row.file in looked.shapes]
        found = [read_row(row, shape, recipe.data.learn) for row, shape in shaped]
        rows = [example.record() for example in found if isinstance(example, Example)]
    return check_template(recipe, rows)


def _collect(check: Callable[[], Sequence[ToolkitError]]) -> list[ToolkitError]:
    try:
        return list(check())
    except ToolkitError as error:
        return [error]


def _raised(check: Callable[[], object]) -> list[ToolkitError]:
    try:
        check()
    except ToolkitError as error:
        return [error]
    return []
