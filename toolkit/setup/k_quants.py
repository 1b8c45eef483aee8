"""The library that rounds to K-quants many groups at a time, compiled by set-up into the cache (standard library only)."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "export" / "k_quants.c"
# A product and a sum that are fused round once, and other bytes come out.
FLAGS = ("-std=gnu11", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-psabi")
_FOLDER = "k_quants"


def library_path(cache: Path) -> Path:
    """Where the library of today's source lies in the cache, whether it was compiled or not."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode())
    return cache / _FOLDER / f"{digest.hexdigest()[:16]}.so"


def compile_library(cache: Path) -> Path:
    """The library in the cache, compiled when it is not there yet.

    Raises:
        OSError: there is no C compiler.
        subprocess.CalledProcessError: it cannot compile it; what it said is its `stderr`.
    """
    path = library_path(cache)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
            made = Path(folder) / path.name
            compiler = shlex.split(os.environ.get("CC") or "cc")
            subprocess.run([*compiler, *FLAGS, "-o", made, SOURCE, "-lm"], check=True, capture_output=True, text=True)
            made.replace(path)
    return path
