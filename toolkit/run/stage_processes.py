"""The processes that stages run in: each its own, so that memory is free again behind it and what kills it kills nothing else.

Loading torch, transformers and PEFT takes longer than most stages on a small model. So where there is no card one process loads
them, does nothing else, and is forked for every stage that needs them; a card's driver does not survive a fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import IO, Any, NamedTuple, cast

from toolkit.run.hardware import read_hardware
from toolkit.run.processes import die_with_parent, own_environment, quiet_libraries, waiting
from toolkit.run.stages import Stage

_ENVIRONMENT = {
    # Stages show their own progress, and whatever they need from a hub is there before they start.
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
_TO_END = 15
"""Seconds that a stage has after it was asked to end."""


class StageProcesses:
    """Runs stages, one at a time. Use as a context manager: the process that is forked ends with it."""

    def __init__(self) -> None:
        self._server: _Server | None = None

    def __enter__(self) -> StageProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.process.kill()
            self._server.process.communicate()
            self._server.replies.close()

    def get_ready(self, stages: Iterable[Stage]) -> None:
        """Begin to load what these stages need, while something else is done that leaves cores idle."""
        if self._server is None and any(map(_needs_all, stages)):
            self._server = _Server.started()

    def run(self, stage: Stage, order: dict[str, Any], alone: bool) -> int:
        """Run a stage; gives the exit code of its process, below zero the signal that ended it.

        Args:
            order: as `toolkit.run.pipeline.run_stage_here` takes it.
            alone: it starts processes of its own, which want a fresh one around them.
        """
        order = {**order, "parent": os.getpid()}
        forks = _needs_all(stage) or (self._server is not None and _forks(stage))
        return self._fork(order) if forks and not alone else self._fresh(order)

    def _fresh(self, order: dict[str, Any]) -> int:
        process = _started("stage-process")
        try:
            process.communicate(json.dumps(order))
        except KeyboardInterrupt:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_TO_END)
            raise
        finally:
            if process.poll() is None:
                process.kill()
        return process.returncode

    def _fork(self, order: dict[str, Any]) -> int:
        if self._server is None:
            self._server = _Server.started()
        server, stage = self._server, 0
        try:
            server.orders.write(json.dumps(order) + "\n")
            server.orders.flush()
            stage = int(server.replies.readline() or 0)
            ended = server.replies.readline()
        except BrokenPipeError:
            ended = ""
        except KeyboardInterrupt:
            if stage:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(stage, signal.SIGTERM)
                _wait_for_line(server.replies, _TO_END)
            raise
        if ended:
            return int(ended)
        self._server = None
        return server.process.wait()


def _forks(stage: Stage) -> bool:
    loads = {"torch", "transformers"} & set(stage.libraries)
    return bool(loads) and hasattr(os, "fork") and not read_hardware().gpu_memory_bytes


def _needs_all(stage: Stage) -> bool:
    """Whether a server is worth starting: what needs a part of the libraries loads that in less time."""
    return _forks(stage) and "torch" in stage.libraries


class _Server(NamedTuple):
    """The process that is forked."""

    process: subprocess.Popen[str]
    orders: IO[str]
    replies: IO[str]

    @classmethod
    def started(cls) -> _Server:
        reading, writing = os.pipe()
        process = _started("stage-server", str(writing), pass_fds=(writing,))
        os.close(writing)
        return cls(process, cast(IO[str], process.stdin), os.fdopen(reading, encoding="ascii"))


def _wait_for_line(stream: IO[str], seconds: float) -> None:
    import select

    if select.select([stream], [], [], seconds)[0]:
        stream.readline()


def _started(command: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    # In a session of its own: Ctrl-C reaches this process only, which then ends the stage, once.
    return subprocess.Popen(
        [sys.executable, "-m", "toolkit.cli", command, *arguments],
        stdin=subprocess.PIPE,
        text=True,
        env={**waiting(os.environ), **own_environment(os.environ), **_ENVIRONMENT},
        start_new_session=True,
        pass_fds=pass_fds,
    )


def serve(replies: int) -> dict[str, Any] | None:
    """The forked process's side: read orders, a line each, and fork for every one.

    Args:
        replies: a file descriptor, which gets two lines a stage: its process's id, and how it ended.

    Returns:
        In the stage's process its order; in this one None, when no more come.
    """
    told = os.fdopen(replies, "w", encoding="ascii")
    _load()
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        die_with_parent(signal.SIGKILL, order["parent"])()
        own, stage = os.getpid(), os.fork()
        if not stage:
            told.close()
            # The orders behind this one are not the stage's to read.
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return {**order, "parent": own}
        told.write(f"{stage}\n")
        told.flush()
        _, status = os.waitpid(stage, 0)
        told.write(f"{os.waitstatus_to_exitcode(status)}\n")
        told.flush()
    return None


def _load() -> None:
    """Import what most stages need. Nothing is computed: threads would not be there in a forked process."""
    quiet_libraries()
    import peft  # noqa: F401
    import transformers  # noqa: F401
