"""The command's own `main` in this process, which has loaded what takes seconds to load; its stages are processes as ever."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from toolkit.cli import main

_SIGNALS = (signal.SIGTERM, signal.SIGALRM)


def tune2ollama_here(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder; what it and its stages write is what a terminal would show."""
    given = ["tune2ollama", *map(str, arguments)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        code = 0
        with _as_a_program(folder, given, out, err):
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return subprocess.CompletedProcess(given, code, _said(out), _said(err))


def _said(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")


@contextmanager
def _as_a_program(folder: Path, given: list[str], out: IO[bytes], err: IO[bytes]) -> Iterator[None]:
    before = Path.cwd(), sys.argv, sys.stdout, sys.stderr, sys.unraisablehook
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    streams = {1: os.dup(1), 2: os.dup(2)}
    os.chdir(folder)
    sys.argv = given
    # The streams too, since stages are processes that know nothing of Python's.
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", write_through=True) for number in streams
    )
    try:
        yield
    finally:
        os.chdir(before[0])
        sys.argv, sys.stdout, sys.stderr, sys.unraisablehook = before[1:]
        for number, kept in streams.items():
            os.dup2(kept, number)
            os.close(kept)
        for number, handler in handlers.items():
            signal.signal(number, handler)
