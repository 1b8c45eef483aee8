"""numpy's matrix products on one thread each, where this project's own threads already keep the cores busy."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NAMES = [f"{prefix}openblas_{{}}_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("64_", "")]


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within it OpenBLAS, which numpy brings, starts no threads of its own; nothing is done about any other library."""
    blas = _openblas()
    if blas is None:
        yield
        return
    get, set_ = blas
    before = get()
    set_(1)
    try:
        yield
    finally:
        set_(before)


@functools.cache
def _openblas() -> tuple[Any, Any] | None:
    """Its functions that tell and set the number of threads; the library is the one that is loaded already."""
    import numpy

    maps = Path("/proc/self/maps")
    beside = Path(numpy.__file__).resolve().parents[1] / "numpy.libs"
    loaded = re.findall(r"(/\S*openblas\S*)", maps.read_text(encoding="utf-8")) if maps.is_file() else []
    for path in dict.fromkeys(path for path in loaded if Path(path).parent == beside):
        library = ctypes.CDLL(path)
        for name in _NAMES:
            if hasattr(library, name.format("get")):
                return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None
