"""Finding an Ollama, and running one for the length of a job."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from toolkit.errors import ExternalToolError
from toolkit.ollama.client import Client, server_address
from toolkit.run.places import cache_home
from toolkit.run.processes import die_with_parent

INSTALL = "install Ollama: curl -fsSL https://ollama.com/install.sh | sh   (or, with Go and CMake here: make ollama)"
_READY_SECONDS = 60.0
_STOP_SECONDS = 15.0


def find_ollama() -> Path | None:
    """The `ollama` on PATH, or the newest that `make ollama` built, or None."""
    found = shutil.which("ollama")
    if found:
        return Path(found)
    built = [path for path in cache_home().glob("ollama/*/bin/ollama") if os.access(path, os.X_OK)]
    return max(built, key=lambda path: _version(path.parts[-3]), default=None)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in name.split("."))


def is_running() -> bool:
    """Whether an Ollama listens where `OLLAMA_HOST` points."""
    with Client(server_address()) as client:
        return client.answers()


@contextlib.contextmanager
def serving(log: Path) -> Iterator[Client | None]:
    """Give a client of the running server; else start the installed one for the job and stop it after.

    A server that is started here uses the user's own models folder, because that is where `ollama run` looks.

    Args:
        log: file for what a started server says.

    Yields:
        None when no Ollama is installed and none is running.

    Raises:
        ExternalToolError: it does not start; with the last lines of its log.
    """
    address = server_address()
    with Client(address) as client:
        if client.answers():
            yield client
            return
        binary = find_ollama()
        if binary is None:
            yield None
            return
        with started(binary, address, log), Client(address, str(log)) as own:
            yield own


@contextlib.contextmanager
def started(binary: Path, address: str, log: Path, environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run `ollama serve` in a process group of its own until the block ends, however it ends; yield its process id.

    Args:
        address: http://host:port to listen on.
        log: file that gets its output.
        environment: variables on top of this process's own.
    """
    variables = {**os.environ, **(environment or {}), "OLLAMA_HOST": address}
    log.parent.mkdir(parents=True, exist_ok=True)
    with _terminated_politely(), log.open("wb") as output:
        process = subprocess.Popen(
            [str(binary), "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509
        )
        try:
            _wait_until_ready(process, address, log)
            yield process.pid
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    with Client(address) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ExternalToolError(
                    f"ollama serve ended with code {process.returncode}; its last words:\n{last_lines(log)}",
                    f"The whole log: {log}. If the address is taken, choose another: export OLLAMA_HOST=127.0.0.1:11500",
                )
            if client.answers():
                return
            time.sleep(0.1)
    raise ExternalToolError(
        f"ollama serve was not ready after {_READY_SECONDS:.0f} s; its last words:\n{last_lines(log)}",
        f"The whole log: {log}",
    )


def last_lines(log: Path, lines: int = 8) -> str:
    """The end of a log, indented, for a message."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line[:300]}" for line in text.splitlines()[-lines:]) or "  (nothing)"


def _stop(process: subprocess.Popen[bytes]) -> None:
    # The group, because the server's own children (llama-server) hold the memory.
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _terminated_politely() -> Iterator[None]:
    """Turn SIGTERM into SystemExit for the length of the block, so that `finally` runs and the server is stopped."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
