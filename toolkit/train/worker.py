"""One of the processes that train together: `python -m toolkit.train.worker ORDER.json`, started by an engine."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, ToolkitError
from toolkit.run.processes import die_with_parent
from toolkit.train.together import MEETING, RESULT, error_of, said_by


def main(order_file: Path) -> None:
    """Do the order; the first process writes the result beside it. An error is written there for whoever ordered."""
    order: dict[str, Any] = json.loads(order_file.read_text(encoding="utf-8"))
    folder, number = order_file.parent, int(os.environ.get("RANK", "0"))
    die_with_parent(signal.SIGKILL, order["parent"])()
    if number:
        _say_into(folder / said_by(number))
    try:
        _train(order, folder)
    except Exception as error:
        if os.environ.get("TUNE2OLLAMA_DEBUG"):
            traceback.print_exc()
        sys.exit(_write_error(error, folder / error_of(number)))


def _say_into(path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def _train(order: dict[str, Any], folder: Path) -> None:
    from toolkit.recipe.schema import Recipe
    from toolkit.run.artifacts import read_artifact, write_json
    from toolkit.run.facts import AdapterFacts, DatasetFacts
    from toolkit.run.processes import peak_card_memory, peak_memory, quiet_libraries
    from toolkit.train.training import train
    from toolkit.train.world import gathered, is_first, join, leave

    quiet_libraries()
    dataset = read_artifact(Path(order["dataset"]), DatasetFacts)
    if dataset is None:
        raise DataError(f"there is no dataset in {order['dataset']}", "Run again from the start.")
    start, judge = (
        read_artifact(Path(order[role]), AdapterFacts) if order[role] else None for role in ("start", "judge")
    )
    rewards = Path(order["own_rewards"]) if order["own_rewards"] else None
    join(folder / MEETING)
    recipe = Recipe.model_validate(order["recipe"]).at(order["step"])
    facts = train(recipe, dataset, Path(order["out"]), start, judge, rewards)
    memory, card = gathered(peak_memory()), gathered(peak_card_memory())
    if is_first():
        peaks = {"peak_memory_bytes": sum(memory), "peak_card_bytes": max(card)}
        write_json(folder / RESULT, {"facts": facts.model_dump(mode="json"), "peaks": peaks})
    leave()


def _write_error(error: Exception, path: Path) -> int:
    from toolkit.cli import translated
    from toolkit.run.artifacts import write_json

    told = error if isinstance(error, ToolkitError) else translated(error)
    # One that was translated to no kind of its own was not foreseen.
    foreseen = type(told) is not ToolkitError
    what = {"kind": type(told).__name__, "message": told.message, "hint": told.hint, "foreseen": foreseen}
    try:
        write_json(path, what)
    except OSError:  # the disk is full: it is said here, then
        print(f"{told.message}\n{told.hint}", file=sys.stderr)
    return told.exit_code


if __name__ == "__main__":
    main(Path(sys.argv[1]))
