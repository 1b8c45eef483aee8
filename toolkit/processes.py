"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import functools
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: signal.Signals) -> Callable[[], object]:
    """What a new process calls first (a `preexec_fn`): have Linux send it a signal when its parent dies, even by `kill -9`.

    Else an orphan would go on writing into a folder that the next run has taken over. Elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    # Looked up here, not in the new process: between fork and exec only simple calls are safe.
    return functools.partial(ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, number)
