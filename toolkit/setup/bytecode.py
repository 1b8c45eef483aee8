"""Compiled modules of the environment, kept in the cache for the next clone on the same machine (standard library only).

Python compiles a module when it is first imported; for torch, transformers and what else a run needs that takes some 25
seconds, in every new environment. uv links the same files into each, with the same times, so what one has compiled is valid in
all:

    bytecode/<key>/<path of the module's folder>/__pycache__/*.pyc

    python -m toolkit.setup.bytecode    imports what a run needs, so that it is compiled
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

NEEDED = (
    "toolkit.train.training", "toolkit.parity.golden.record", "toolkit.export.straight", "toolkit.parity.verify",
    "toolkit.ollama.publish", "toolkit.evaluate.stage", "toolkit.report.report", "toolkit.data.prepare",
    "transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2", "trl.trainer.sft_trainer",
    "peft.tuners.lora", "datasets", "torch._dynamo", "torch.optim", "gguf", "sacrebleu", "matplotlib.pyplot",
)  # fmt: skip
"""Modules that import nearly all that a run on the embedded base does."""
_HEADER = struct.Struct("<4sIII")
"""Of a .pyc file, by PEP 552: magic number, flags, and the source's time and size."""


def kept(cache: Path, pins: Path) -> Path:
    """Where the compiled modules of an environment are kept: by Python, and by what is installed."""
    told = f"{sys.implementation.cache_tag} {sys.version} {hashlib.sha256(pins.read_bytes()).hexdigest()}"
    return cache / "bytecode" / hashlib.sha256(told.encode()).hexdigest()[:40]


def keep(packages: Path, folder: Path) -> int:
    """Put an environment's compiled modules into `folder`, whole or not at all; gives how many."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    found = list(_compiled(packages))
    for path in found:
        _link(path, partial / path.relative_to(packages))
    partial.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return len(found)


def put_back(folder: Path, packages: Path) -> int:
    """Put kept modules beside their sources, those that are of these very sources; gives how many."""
    count = 0
    for path in _compiled(folder):
        target = packages / path.relative_to(folder)
        source = target.parent.parent / f"{path.name.split('.')[0]}.py"
        if not target.exists() and _of(path, source):
            _link(path, target)
            count += 1
    return count


def _compiled(folder: Path) -> Iterator[Path]:
    return folder.glob("**/__pycache__/*.pyc")


def _of(compiled: Path, source: Path) -> bool:
    """Whether Python would take a compiled module for a source."""
    with compiled.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size or not source.is_file():
        return False
    magic, flags, time, size = _HEADER.unpack(header)
    told = source.stat()
    return bool(
        magic == importlib.util.MAGIC_NUMBER
        and not flags
        and time == int(told.st_mtime) & 0xFFFFFFFF
        and size == told.st_size & 0xFFFFFFFF
    )


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system
        shutil.copy2(path, target)


if __name__ == "__main__":
    for name in NEEDED:
        with contextlib.suppress(Exception):  # a module that does not load is told of when it is needed
            importlib.import_module(name)
