"""Those who may be told each step beside metrics.jsonl: whether they are here, and where their files go."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, UsageError

_PLACES = {
    "tensorboard": "TENSORBOARD_LOGGING_DIR",
    "wandb": "WANDB_DIR",
    "trackio": "TRACKIO_DIR",
    "swanlab": "SWANLAB_SAVE_DIR",
    "mlflow": "MLFLOW_TRACKING_URI",
}
"""Reporter → the variable by which it is told where to write."""
_SAID = {variable for variable in _PLACES.values() if variable in os.environ}
"""By the user, who then knows better."""


def check_reporters(names: Collection[str]) -> list[ToolkitError]:
    """A fault for each that is not installed."""
    return [
        UsageError(f"train.report_to: {name} is not installed", f"Install it: pip install {name}")
        for name in names
        if importlib.util.find_spec(name) is None
    ]


def reporting(names: Collection[str], out: Path) -> dict[str, Any]:
    """What a trainer is told of them. Their files go beside the artifact, not into it: they tell times and hosts. What the user's
    environment says already (a server, a project) stays.

    Args:
        out: the folder of the artifact, in that of the run.
    """
    run = out.parent.resolve()
    for name in names:
        if _PLACES[name] not in _SAID:
            place = run / name
            place.mkdir(parents=True, exist_ok=True)
            os.environ[_PLACES[name]] = f"sqlite:///{place}/mlflow.db" if name == "mlflow" else str(place)
    if not names:
        return {"report_to": "none"}
    # Trackio would make a place on a hub of what it is not told.
    return {"report_to": list(names), "run_name": f"{run.name}-{out.name}", "trackio_space_id": None}
