"""What an export will ask about a base, asked while training computes: the first time it takes a quarter of a minute.

The stage that trains leaves in a folder what is known before the first step, and the process that waits for the stage starts
another one of lowest priority, which asks (`toolkit.export.ahead`). Where that fails, nothing is lost: the export asks itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from toolkit.run.artifacts import write_json
from toolkit.run.facts import BaseFacts, Quantization
from toolkit.run.hardware import read_hardware

FOLDER, TOLD = "ahead", "ahead.json"
_NEEDED_BYTES = 6 << 30
"""Free memory: asking takes one gigabyte, and training may not have all of its own yet."""


def foretell(
    out: Path, base: BaseFacts, tokenizer: Any, fields: Mapping[str, Any], base_dtype: str,
    quantization: Quantization | None, sees: bool,
) -> None:  # fmt: skip
    """Leave what an export will ask about, in a folder of `out` that is there when it is whole.

    Args:
        tokenizer: as it will be saved.
        fields: what the chat template is told.
        base_dtype: in which the base was loaded.
        sees: whether it is trained on pictures.
    """
    folder, partial = out / FOLDER, out / f"{FOLDER}.part"
    for old in (folder, partial):
        shutil.rmtree(old, ignore_errors=True)
    tokenizer.save_pretrained(partial)
    told = {"base": base.folder, "chat_template_kwargs": dict(fields), "base_dtype": base_dtype, "sees": sees}
    write_json(partial / TOLD, {**told, "quantization": quantization and quantization.model_dump()})
    partial.rename(folder)


class Ahead:
    """Asks while a stage runs. Use as a context manager: what is still under way ends with it."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._process is not None:
            self._process.kill()
        if self._thread is not None:
            self._thread.join()

    def watch(self, out: Path, environment: Mapping[str, str]) -> None:
        """Ask as soon as the stage that writes into `out` has foretold.

        Args:
            environment: of the stages' processes; part of what is asked depends on it.
        """
        # The process ends with the thread that started it, so this one stays until it has ended.
        self._thread = threading.Thread(target=self._ask, args=(out / FOLDER, dict(environment)), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what is under way is known; what has not begun does not begin any more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _ask(self, folder: Path, environment: dict[str, str]) -> None:
        while not folder.is_dir():
            if self._stopped.wait(0.5):
                return
        if read_hardware().available_memory_bytes < _NEEDED_BYTES:
            return
        command = [sys.executable, "-m", "toolkit.export.ahead", str(folder), str(os.getpid())]
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, env=environment, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
        self._process.wait()
