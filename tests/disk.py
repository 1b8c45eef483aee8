"""A disk that is full, as far as a process can tell: no file may grow beyond a limit (RLIMIT_FSIZE).

Python writes the bytecode of what it imports without looking whether all of it was written, and reads the half of it ever after
("marshal data too short"). So no process writes bytecode while a disk is full here.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within it, writing beyond `size` bytes of any file fails with EFBIG (Python ignores the signal that comes with it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with patch.object(sys, "dont_write_bytecode", True), patch.dict(os.environ, {"PYTHONDONTWRITEBYTECODE": "1"}):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def ran_on_a_full_disk(code: str, *arguments: Path | str, size: int) -> subprocess.CompletedProcess[str]:
    """What a process of its own says that runs `code` where no file may grow beyond `size` bytes."""
    with largest_file(size):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
