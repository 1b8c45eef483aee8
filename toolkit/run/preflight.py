"""What can be known to fail is checked in the first second, all faults at once, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.recipe.schema import SAMPLED, Recipe
from toolkit.run.hardware import read_hardware
from toolkit.run.stages import stages_of


def preflight(recipe: Recipe, folder: Path, runs: Collection[str], rewards: Path | None = None) -> None:
    """Check data, base, golden prompts, Modelfile, memory and disk, as far as a stage that will run needs them.

    Args:
        folder: runs/<name>.
        runs: the stages that will run.
        rewards: a Python file of the user's with rewards.

    Raises:
        ToolkitError: every fault in one message; the exit code is that of the first.
    """
    faults: list[ToolkitError] = []
    steps = [stage for stage in stages_of(recipe) if stage.name in runs]
    for stage in steps:
        if stage.does == "prepare":
            from toolkit.data.prepare import check_data

            faults += _collect(lambda stage=stage: check_data(recipe.at(stage.step)))  # type: ignore[misc]
        if stage.does == "train":
            faults += _check_rewards(recipe.at(stage.step), rewards)
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
    from toolkit.train.engines import check_processes

    hardware = read_hardware()
    trained = [recipe.at(stage.step).train for stage in steps if stage.does == "train" and recipe.adapter is None]
    for train in trained:
        faults += [fault for fault in check_processes(train, hardware) if str(fault) not in map(str, faults)]
    faults += _collect(lambda: check_plan(make_plan(recipe, hardware), hardware, folder, runs))
    if faults:
        hints = "\n".join(dict.fromkeys(f.hint for f in faults if f.hint))
        error = type(faults[0])("\n".join(f.message for f in faults), hints)
        raise error


def _check_rewards(recipe: Recipe, rewards: Path | None) -> list[ToolkitError]:
    if recipe.train.objective not in SAMPLED:
        return []
    from toolkit.train.rewards import named

    return _raised(lambda: named(recipe.train.rewards, rewards))


def _check_template(recipe: Recipe) -> list[ToolkitError]:
    """What the first rows hold, against the chat template."""
    from toolkit.data.formats import Example, read_row
    from toolkit.data.loading import first_look
    from toolkit.train.fits import check_template

    rows = []
    if recipe.data is not None:
        loaded = first_look(recipe.data)[0]  # its faults are told by `check_data`
        shaped = [(row, loaded.shapes[row.file]) for row in loaded.table.rows if row.file in loaded.shapes]
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
