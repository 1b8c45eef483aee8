from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path


def tag_counts(completions: list[str], references: list[str]) -> list[float]:
    return [0.0 for _ in completions]


def named(names: Sequence[str], own: Path | None = None) -> dict[str, Callable[[list[str], list[str]], list[float]]]:
    found = {"tag_counts": tag_counts}
    if own:
        spec = importlib.util.spec_from_file_location("own", own)
        m = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(m)
        found["letters"] = m.letters
    return {n: found[n] for n in names}


def guarded(name, f):
    return f
