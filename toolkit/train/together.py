"""Training in several processes: an engine starts them, each runs `toolkit.train.worker`, this process waits.

Only training is divided so; every other stage needs its adapter alone. Nothing is published from here unless all of them ended
well, and none outlives this process.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ExternalToolError, ResourceError, StageFailed, ToolkitError
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, write_json
from toolkit.run.facts import AdapterFacts, DatasetFacts
from toolkit.run.processes import PEAKS_FILE
from toolkit.train.engines import accelerate_arguments, torchrun_arguments, write_config
from toolkit.train.memory import settings_to_lower

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

FOLDER = "together"
"""Inside the stage's folder, while it runs: order, meeting point, what each process says."""
ORDER, MEETING, RESULT = "order.json", "meeting", "result.json"


def said_by(number: int) -> str:
    """The file with what a process other than the first prints; they are counted from 1 for people."""
    return f"process-{number + 1}.log"


def error_of(number: int) -> str:
    """The file with the error that ended a process."""
    return f"error-{number + 1}.json"


def train_together(
    recipe: Recipe,
    step: str,
    dataset: Artifact[DatasetFacts],
    out: Path,
    start: Artifact[AdapterFacts] | None = None,
    judge: Artifact[AdapterFacts] | None = None,
    own_rewards: Path | None = None,
) -> AdapterFacts:
    """As `toolkit.train.training.train`, by `train.num_processes` processes of `train.distributed`.

    Args:
        recipe: the whole.
        step: which of its training steps; "" for its own.

    Raises:
        ToolkitError: what ended the first process that failed; a ResourceError where the system killed one.
    """
    folder = out / FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut short
    folder.mkdir()
    write_json(
        folder / ORDER,
        {
            "parent": os.getpid(),
            "recipe": recipe.model_dump(mode="json"),
            "step": step,
            "dataset": str(dataset.folder),
            "start": str(start.folder) if start else None,
            "judge": str(judge.folder) if judge else None,
            "own_rewards": str(own_rewards) if own_rewards else None,
            "out": str(out),
        },
    )
    _launch(recipe.at(step), folder)
    result = folder / RESULT
    if not result.is_file():
        raise ExternalToolError("the training's processes ended without a result", "Check: tune2ollama doctor")
    told = json.loads(result.read_text(encoding="utf-8"))
    write_json(out / PEAKS_FILE, told["peaks"])
    shutil.rmtree(folder)
    return AdapterFacts.model_validate(told["facts"])


def _launch(recipe: Recipe, folder: Path) -> None:
    os.environ["LOGLEVEL"] = "CRITICAL"  # read when torch is imported
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // recipe.train.num_processes)))
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # It tells at length what is told here in a line.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    engine = _accelerate(recipe, folder) if torch.cuda.is_available() else _torchrun(recipe, folder)
    try:
        engine()
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise _why(recipe, folder, error) from error


def _torchrun(recipe: Recipe, folder: Path) -> Callable[[], Any]:
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as launch

    arguments = torchrun_arguments(recipe.train, folder / "torchrun", folder / ORDER)
    return lambda: launch(get_args_parser().parse_args(arguments))  # type: ignore[no-untyped-call]


def _accelerate(recipe: Recipe, folder: Path) -> Callable[[], Any]:
    from accelerate.commands.launch import launch_command, launch_command_parser

    config = write_config(recipe.train, folder / "accelerate.yaml")
    arguments = accelerate_arguments(config, folder / "torchrun", folder / ORDER)
    return lambda: launch_command(launch_command_parser().parse_args(arguments))


def _why(recipe: Recipe, folder: Path, failed: ChildFailedError) -> ToolkitError:
    """What ended the training: an error that one of them can name; else a kill; else whatever came first. When one ends, the
    others lose their connection, which explains nothing."""
    errors = {number: _read_error(folder / error_of(number)) for number in range(recipe.train.num_processes)}
    named = [(number, error) for number, error in errors.items() if error is not None]
    foreseen = next((error for _, error in named if error["foreseen"]), None)
    if foreseen is not None:
        return _as_raised(foreseen)
    killed = {number: -failure.exitcode for number, failure in failed.failures.items() if failure.exitcode < 0}
    if killed:
        # The one that the system killed; whoever lost its connection to it may have aborted.
        number = min(killed, key=lambda one: (killed[one] != signal.SIGKILL, killed[one] == signal.SIGABRT, one))
        return _of_killed(recipe, number, killed[number])
    if named:
        number, error = named[0]
        return ToolkitError(f"process {number + 1} of {len(errors)}: {error['message']}", error["hint"])
    number = min(failed.failures, default=0)
    said = folder / said_by(number)
    last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:] if said.is_file() else []
    return ExternalToolError(
        f"process {number + 1} of {len(errors)} ended with exit code {failed.failures[number].exitcode}"
        + "".join(f": {line}" for line in last),
        "Check this machine: tune2ollama doctor",
    )


def _read_error(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    error: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return error


def _as_raised(error: dict[str, Any]) -> ToolkitError:
    kinds = {kind.__name__: kind for kind in ToolkitError.__subclasses__() if kind is not StageFailed}
    return kinds.get(error["kind"], ToolkitError)(error["message"], error["hint"])


def _of_killed(recipe: Recipe, number: int, by: int) -> ToolkitError:
    who = f"process {number + 1} of {recipe.train.num_processes}"
    again = "The others were ended too. Run again: training goes on from its last complete checkpoint."
    if by != signal.SIGKILL:
        return ExternalToolError(
            f"{who} was ended by signal {by}", f"{again} If it repeats, check this machine: tune2ollama doctor"
        )
    return ResourceError(
        f"{who} was killed by the system, most likely because memory ran out",
        f"{again} If it repeats, lower one of these, best first:\n  " + "\n  ".join(settings_to_lower(recipe)),
    )
