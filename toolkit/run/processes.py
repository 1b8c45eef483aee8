"""Child processes that do not outlive their parent, what they took at most, and interrupts that are not lost."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_MOMENT = 0.05
"""Seconds."""
PEAKS_FILE = "peaks.json"
"""In a stage's folder, until the stage has ended: what processes that it started measured of themselves."""
_SPINS = "10000"
"""Looks, some tens of microseconds."""
_TO_SEE_LOAD, _HOLDS = 0.3, 20
"""Seconds that cores are watched, and that what was seen holds."""
_IDLE_BELOW = 0.15
"""The share of cores in use that counts as none."""
_KEPT = {-3: 2**25, -2: 2**28, -1: 2**30}
"""malloc.h: M_MMAP_THRESHOLD (at most this), M_TOP_PAD, M_TRIM_THRESHOLD; bytes."""
_OF_ENGINES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class _Load(NamedTuple):
    at: float
    share: float


_seen: list[_Load] = []


def own_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what engines of several processes tell their own: left over from a job's script, it would make a
    trainer wait for others that nobody starts, or compute otherwise than the recipe says."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _OF_ENGINES and not name.startswith(("ACCELERATE_", "FSDP_", "TORCHELASTIC_"))
    }


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that tell the threads of OpenMP how to wait for each other, read when it is loaded; none where the user has.

    On idle cores they look for a moment before they sleep: a small model's products are shorter than what it takes to wake up
    (measured: answers are sampled in half of the time, training takes four fifths). As soon as anything else uses a core,
    waiting awake doubles the time instead, so then they sleep at once.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(environment):
        return {}
    return {"GOMP_SPINCOUNT": _SPINS} if busy_share() < _IDLE_BELOW else {"OMP_WAIT_POLICY": "PASSIVE"}


def busy_share() -> float:
    """Share of the cores that other processes use, 0 to 1; to be asked while this one does nothing. It holds a while."""
    if not _seen or time.monotonic() - _seen[-1].at > _HOLDS:
        share = psutil.cpu_percent(interval=_TO_SEE_LOAD) / 100
        _seen[:] = [_Load(time.monotonic(), share)]
    return _seen[-1].share


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees for what it asks for next. A step of training frees and asks for the same gigabytes
    again, and the system clears every page that it gives."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        for option, value in _KEPT.items():
            mallopt(option, value)


def quiet_libraries() -> None:
    """Leave out what a library tells at every start: that a kernel of a hub is not there, which is not wanted."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def without_compiler() -> None:
    """Have torch load without its compiler, in this process and those that it starts; only a card uses it.

    bitsandbytes asks for it whenever it is imported, and computes the same without: a sixth of the time that torch, transformers
    and PEFT take to load.
    """
    if shutil.which("nvidia-smi") is None:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


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


def peak_memory() -> int:
    """Largest resident set of this process and of its ended children, in bytes."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # Linux gives kilobytes
    # Not RUSAGE_SELF: that begins at what the parent had when it started this process.
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return max(own, children)


def peak_card_memory() -> int:
    """What torch reserved of this process's card at most, in bytes; 0 when this process computed on none."""
    torch = sys.modules.get("torch")  # most stages do not need it, and its import takes seconds
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_reserved())
