"""Child processes that do not outlive their parent, and interrupts that are not lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MOMENT = 0.05
"""Seconds."""


def die_with_parent(number: signal.Signals, parent: int | None = None) -> Callable[[], None]:
    """What a new process calls first (a `preexec_fn`): have Linux send it a signal when its parent dies, even by `kill -9`.

    Else an orphan would go on writing into a folder that the next run has taken over. Elsewhere it does nothing.

    Args:
        parent: process id of the parent; None: this process, which is about to fork.
    """
    if not sys.platform.startswith("linux"):
        return lambda: None
    import ctypes

    # Looked up here, not in the new process: between fork and exec only simple calls are safe.
    prctl = ctypes.CDLL(None).prctl
    expected = os.getpid() if parent is None else parent

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != expected:  # it died before it could be watched
            os._exit(128 + number)

    return bind


def keep_interrupts() -> None:
    """Have an interrupt come again that fell into a callback from C (llama.cpp tells its log through one): Python can only
    report it there, so the work would go on as if nobody had asked it to end."""

    def come_again(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _MOMENT)  # after the callback
        else:
            sys.__unraisablehook__(lost)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = come_again
