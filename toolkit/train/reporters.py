"""Those who may be told each step beside metrics.jsonl: whether they are here, and where their files go."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, UsageError

PROJECT = "tune2ollama"
"""What runs are filed under, where the user's environment says nothing else."""
_PLACES = {
    "tensorboard": "TENSORBOARD_LOGGING_DIR",
    "wandb": "WANDB_DIR",
    "trackio": "TRACKIO_DIR",
    "swanlab": "SWANLAB_LOG_DIR",
    "mlflow": "MLFLOW_TRACKING_URI",
}
"""Reporter → the variable by which it is told where to write."""
_SAID = {variable for variable in _PLACES.values() if variable in os.environ}
"""By the user, who then knows better."""


_KEYS = {
    "wandb": ("WANDB_API_KEY", "WANDB_MODE", ("~/.netrc", "~/_netrc")),
    "swanlab": ("SWANLAB_API_KEY", "SWANLAB_MODE", ("~/.swanlab/.netrc",)),
}
"""Reporter → the variables of its key and of working without one, and the files that its login leaves."""


def check_reporters(names: Collection[str]) -> list[ToolkitError]:
    """A fault for each that is not installed, or that would ask for a key when training begins."""
    faults: list[ToolkitError] = []
    for name in names:
        if importlib.util.find_spec(name) is None:
            faults.append(UsageError(f"train.report_to: {name} is not installed", f"Install it: pip install {name}"))
        elif name in _KEYS:
            key, mode, files = _KEYS[name]
            if not any(os.environ.get(variable) for variable in (key, mode)) and not any(
                Path(file).expanduser().is_file() for file in files
            ):
                faults.append(
                    UsageError(
                        f"train.report_to: {name} has no key here",
                        f"Log in: {name} login; or keep all on this machine: export {mode}=offline",
                    )
                )
    return faults


def reporting(names: Collection[str], out: Path) -> dict[str, Any]:
    """What a trainer is told of them. Their files go beside the artifact, not into it: they tell times and hosts. What the user's
    environment says already (a server, a project) stays.

    Args:
        out: the folder of the artifact, in that of the run.
    """
    run = out.parent.resolve()
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    for name in names:
        if _PLACES[name] not in _SAID:
            place = run / name
            place.mkdir(parents=True, exist_ok=True)
            os.environ[_PLACES[name]] = f"sqlite:///{place}/mlflow.db" if name == "mlflow" else str(place)
    if not names:
        return {"report_to": "none"}
    if "swanlab" in names and os.environ.get("RANK", "0") == "0":
        _start_swanlab()
    # Trackio would make a place on a hub of what it is not told.
    return {
        "report_to": list(names), "run_name": f"{run.name}-{out.name}", "project": PROJECT, "trackio_space_id": None,
    }  # fmt: skip


def _start_swanlab() -> None:
    # transformers 5.17 asks SwanLab for its run before it begins one, which SwanLab 0.10 answers with an error.
    swanlab: Any = importlib.import_module("swanlab")
    swanlab.init(project=os.environ.get("SWANLAB_PROJ_NAME", PROJECT))
