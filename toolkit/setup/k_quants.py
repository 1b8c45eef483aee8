"""Where the library that rounds to K-quants many groups at a time lies; set-up compiles it (standard library only)."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "export" / "k_quants.c"
# A product and a sum that are fused round once, and other bytes come out.
FLAGS = ("-std=gnu11", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-Wno-psabi")


def library_name() -> str:
    """Of what today's source and flags make."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode())
    return f"{digest.hexdigest()[:16]}.so"


def library_path(cache: Path) -> Path:
    """In the cache, whether it was compiled or not."""
    return cache / "k_quants" / library_name()
