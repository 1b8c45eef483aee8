"""What can be known to fail is checked in the first second, all faults at once, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.errors import ToolkitError, UsageError
from toolkit.hardware import read_hardware
from toolkit.recipe import Recipe


def preflight(recipe: Recipe, folder: Path) -> None:
    """Check data, base, golden prompts, Modelfile, memory and disk.

    Raises:
        ToolkitError: every fault in one message; the exit code is that of the first.
    """
    faults: list[ToolkitError] = []
    if recipe.data is not None:
        from toolkit.data.prepare import check_data

        faults += _collect(lambda: check_data(recipe))
    if isinstance(recipe.golden.prompts, str) and not Path(recipe.golden.prompts).is_file():
        faults.append(UsageError(f"golden.prompts: there is no file {recipe.golden.prompts}"))
    from toolkit.ollama.modelfile import check_modelfile

    faults += _collect(lambda: check_modelfile(recipe))
    from toolkit.plan import check_plan, make_plan

    hardware = read_hardware()
    faults += _collect(lambda: check_plan(make_plan(recipe, hardware), hardware, folder))
    if faults:
        hints = "\n".join(dict.fromkeys(f.hint for f in faults if f.hint))
        error = type(faults[0])("\n".join(f.message for f in faults), hints)
        raise error


def _collect(check: Callable[[], Sequence[str | ToolkitError]]) -> list[ToolkitError]:
    try:
        found = check()
    except ToolkitError as error:
        return [error]
    return [UsageError(fault) if isinstance(fault, str) else fault for fault in found]
