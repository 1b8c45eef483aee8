"""What can be known to fail is checked in the first second, all faults at once, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.recipe.schema import Recipe
from toolkit.run.hardware import read_hardware

_FIRST_ROWS = 100


def preflight(recipe: Recipe, folder: Path, runs: Collection[str]) -> None:
    """Check data, base, golden prompts, Modelfile, memory and disk, as far as a stage that will run needs them.

    Args:
        folder: runs/<name>.
        runs: the stages that will run.

    Raises:
        ToolkitError: every fault in one message; the exit code is that of the first.
    """
    faults: list[ToolkitError] = []
    if "prepare" in runs:
        from toolkit.data.prepare import check_data

        faults += _collect(lambda: check_data(recipe))
    if "train" in runs:
        from toolkit.models.bases import check_base
        from toolkit.models.convertible import check_converts_base

        faults += (
            _raised(lambda: check_base(recipe.base))
            or _raised(lambda: check_converts_base(recipe.base))
            or _collect(lambda: _check_template(recipe))
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
    if faults:
        hints = "\n".join(dict.fromkeys(f.hint for f in faults if f.hint))
        error = type(faults[0])("\n".join(f.message for f in faults), hints)
        raise error


def _check_template(recipe: Recipe) -> list[ToolkitError]:
    """What the first rows hold, against the chat template."""
    from toolkit.data.readers import Table, find_files, read_file
    from toolkit.train.fits import check_template

    table = Table()
    if recipe.data is not None:
        for name, file in find_files(Path(recipe.data.path)):
            read_file(file, name, table, recipe.data.encoding, at_most=_FIRST_ROWS)
    return check_template(recipe, [row.values for row in table.rows])


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
