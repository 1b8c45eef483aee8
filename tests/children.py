"""Python processes that tests start find this project, wherever they run."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent


def child_environment(*folders: str, **more: str) -> dict[str, str]:
    """This process's environment with the project, and then these folders, first on Python's path; `more` is set beside it."""
    path = [str(ROOT), *folders, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}
