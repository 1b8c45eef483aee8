"""Rounding to Q4_K, Q5_K and Q6_K by our own library (`k_quants.c`): ggml's bytes, in a quarter to a half of its time.

ggml adds the terms of one group of weights after the other, which keeps a processor waiting; the library does so for sixteen
groups at a time, in the same order. Whether that gives ggml's bytes on this machine is tried before a type is first rounded:
compilers may fuse products and sums in ggml, which here they may not.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.run.places import cache_home
from toolkit.setup.k_quants import library_path

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
SUPER_BLOCK = 256
"""Weights that are stored together."""
BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
"""Of a super-block (ggml/src/ggml-common.h)."""
Round = Callable[[Floats, Bytes], None]


def rounder(kind: str, ggml: Round) -> Round | None:
    """What rounds rows to a type as ggml does, but faster; None: ggml itself has to.

    Args:
        kind: as ggml calls it.
        ggml: its own routine, for float32 rows and the bytes that they become.
    """
    if kind not in BYTES:
        return None
    ours = _ours(kind)
    return ours if ours is not None and _agrees(kind, ours, ggml) else None


@functools.cache
def _library() -> Any:
    """None: set-up could not compile it."""
    try:
        return ctypes.CDLL(str(library_path(cache_home())))
    except OSError:
        return None


@functools.cache
def _ours(kind: str) -> Round | None:
    library = _library()
    if library is None:
        return None
    function = getattr(library, f"round_to_{kind.lower()}")
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None

    def rounded(values: Floats, out: Bytes) -> None:
        function(values.ctypes.data, out.ctypes.data, values.size // SUPER_BLOCK)

    return rounded


_agreed: dict[str, bool] = {}


def _agrees(kind: str, ours: Round, ggml: Round) -> bool:
    if kind not in _agreed:
        values = tried()
        wanted, found = (np.empty((len(values), BYTES[kind]), np.uint8) for _ in range(2))
        ggml(values, wanted)
        ours(values, found)
        _agreed[kind] = np.array_equal(wanted, found)
    return _agreed[kind]


@functools.cache
def tried() -> Floats:
    """Super-blocks of many kinds, [super-blocks, 256]: of all sizes that float16 holds, with outliers, of one sign, of equal
    weights, of few values, and empty ones."""
    random = np.random.default_rng(0)
    normal = random.standard_normal((47, SUPER_BLOCK)).astype(np.float32)
    values = normal * np.logspace(-8, 4, len(normal), dtype=np.float32)[:, None]
    values[3::6] = np.abs(values[3::6])
    values[4::6] = -np.abs(values[4::6])
    values[5::6] *= np.where(random.random(values[5::6].shape) < 0.02, np.float32(30), np.float32(1))
    values[6], values[7, 64:128], values[8], values[9, :32] = 0, 0, 0.5, -0.25
    values[10] = random.integers(-8, 8, SUPER_BLOCK)
    values[11, 128:] *= np.float32(1e-4)
    return values.astype(np.float16).astype(np.float32)
