"""Locks between processes: whoever comes second is told at once what is going on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ResourceError

NAMES_OF_ITS_OWN = (
    "Wait for it to end, or give this one names of its own: --set name=… --set ollama.model=… "
    "(with tune2ollama export: --name …)"
)


@contextlib.contextmanager
def locked(file: Path, taken: str, hint: str) -> Iterator[None]:
    """Hold a lock file for the length of the block; the system lets go of it when the process ends, however it ends.

    Raises:
        ResourceError: another process holds it; with the message `taken`.
    """
    import filelock

    file.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(file, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise ResourceError(taken, hint) from error
    try:
        yield
    finally:
        lock.release()


def only_run(folder: Path, hint: str) -> contextlib.AbstractContextManager[None]:
    """Be the only process that works in runs/<name>."""
    return locked(folder / ".lock", f"another run is working in {folder}", hint)
