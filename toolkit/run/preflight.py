"""What can be known to fail is checked in the first second, all faults at once, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import SAMPLED
from toolkit.run.hardware import read_hardware
from toolkit.run.stages import stages_of

if TYPE_CHECKING:
    from toolkit.data.loading import Loaded


def preflight(recipe: Recipe, folder: Path, runs: Collection[str], rewards: Path | None = None) -> list[str]:
    """Check data, base, golden prompts, Modelfile, memory and disk, as far as a stage that will run needs them.

    Args:
        folder: runs/<name>.
        runs: the stages that will run.
        rewards: a Python file of the user's with rewards.

    Returns:
        What is no fault, and may not be meant (`Loaded.doubts`).

    Raises:
        ToolkitError: every fault in one message; the exit code is that of the first.
    """
    faults: list[ToolkitError] = []
    doubts: list[str] = []
    if "train" in runs:
        from toolkit.models.bases import check_base
        from toolkit.models.convertible import check_converts_base

        faults += _raised(lambda: check_base(recipe.base)) or _raised(lambda: check_converts_base(recipe.base))
    base_is_right = not faults
    for step in ("", *recipe.earlier):
        found, doubted = _check_step(recipe.at(step), f"-{step}" if step else "", runs, rewards, base_is_right)
        faults += found
        doubts += doubted
    if "prepare" in runs or "golden" in runs:
        from toolkit.recipe.prompts_file import golden_turns

        faults += _raised(lambda: golden_turns(recipe))
    if "quantize" in runs and isinstance(recipe.export.imatrix, str):
        from toolkit.export.imatrix_file import read_imatrix

        named_matrix = Path(recipe.export.imatrix)
        faults += _raised(lambda: read_imatrix(named_matrix))
    if "create" in runs:
        from toolkit.ollama.modelfile import check_modelfile

        faults += _collect(lambda: check_modelfile(recipe))
    from toolkit.recipe.plan import check_plan, make_plan
    from toolkit.train.engines import check_processes

    hardware = read_hardware()
    here = [stage for stage in stages_of(recipe) if stage.name in runs and recipe.adapter is None]
    trained = [recipe.at(stage.step).train for stage in here if stage.does == "train"]
    for train in trained:
        faults += [fault for fault in check_processes(train, hardware) if str(fault) not in map(str, faults)]
    faults += _collect(lambda: check_plan(make_plan(recipe, hardware), hardware, folder, runs))
    if faults:
        hints = "\n".join(dict.fromkeys([*(f.hint for f in faults if f.hint), *doubts]))
        error = type(faults[0])("\n".join(f.message for f in faults), hints)
        raise error
    return doubts


def _check_step(
    recipe: Recipe, suffix: str, runs: Collection[str], rewards: Path | None, base_is_right: bool
) -> tuple[list[ToolkitError], list[str]]:
    """The faults of a step's rows and rewards and of the template that they are written with, and what may not be meant.

    Args:
        recipe: as the step sees it.
        suffix: of the names of its stages.
        base_is_right: it is there, and its own template can be read.
    """
    prepares, trains = f"prepare{suffix}" in runs, f"train{suffix}" in runs
    if recipe.data is None or not (prepares or trains):
        return [], []
    from toolkit.data.prepare import check_data

    looked, faults = check_data(recipe)
    faults = faults if prepares else []
    if trains:
        faults += (
            _check_rewards(recipe, rewards)
            + _check_reporters(recipe)
            + (_check_template(recipe, looked) if base_is_right else [])
        )
    return faults, list(looked.doubts.values()) if prepares else []


def _check_rewards(recipe: Recipe, rewards: Path | None) -> list[ToolkitError]:
    if recipe.train.objective not in SAMPLED:
        return []
    from toolkit.train.rewards import named

    return _raised(lambda: named(recipe.train.rewards, rewards))


def _check_reporters(recipe: Recipe) -> list[ToolkitError]:
    if not recipe.train.reporters or recipe.adapter is not None:
        return []
    from toolkit.train.reporters import check_reporters

    return check_reporters(recipe.train.reporters)


def _check_template(recipe: Recipe, looked: Loaded) -> list[ToolkitError]:
    """What the first rows hold, against base and chat template."""
    from toolkit.data.formats import Example, read_row
    from toolkit.train.fits import check_sees, check_template

    rows = []
    if recipe.data is not None:
        shaped = [(row, looked.shapes[row.file]) for row in looked.table.rows if row.file in looked.shapes]
        found = [read_row(row, shape, recipe.data.learn) for row, shape in shaped]
        rows = [example.record() for example in found if isinstance(example, Example)]
    return check_template(recipe, rows) + check_sees(recipe, rows)


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
