"""A limit on the time that a call takes, which interrupts a loop of Python."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = 1.0
"""Seconds until an interruption is repeated: code with a bare `except:` swallows the first."""


class TooLong(BaseException):
    """Time is over. No `Exception`, so that an `except Exception:` in the code that runs does not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what runs inside after so many seconds.

    In the main thread a signal does it (POSIX only), which also ends `time.sleep`, regular expressions and reads; it waits
    for a call into compiled code that never looks for signals, such as one large matrix product, and cannot end a loop that
    catches every exception inside itself. Elsewhere nothing can interrupt: the time is looked at when the call has come
    back. A timer that was set before goes on afterwards.

    Raises:
        TooLong: the time was over.
    """
    started = time.monotonic()
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        if time.monotonic() - started > seconds:
            raise TooLong
        return

    def interrupt(*_: object) -> None:
        raise TooLong

    handler = signal.signal(signal.SIGALRM, interrupt)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 0.001), interval)
