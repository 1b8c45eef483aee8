"""Rounding to Q4_K, Q5_K and Q6_K by our own library (`k_quants.c`): ggml's bytes, in a fraction of its time.

ggml adds the terms of one group of weights after the other, which keeps a processor waiting; the library does so for sixteen
groups at a time, in the same order. Whether that gives ggml's bytes on this machine is tried before a type is first rounded:
compilers may fuse products and sums in ggml, which here they may not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from toolkit.models.gguf_head import block_of
from toolkit.run.places import cache_home
from toolkit.setup.k_quants import library_path

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
KINDS = ("Q4_K", "Q5_K", "Q6_K")
"""As ggml calls them."""
SUPER_BLOCK = 256
"""Weights that each of them stores together."""
Round = Callable[[Floats, Bytes, Floats | None], None]
"""Rounds float32 rows into the bytes that they become; with or without an importance, float32 [row length]."""


def rounder(kind: str, ggml: Round) -> Round | None:
    """What rounds rows to a type as ggml does, but faster; None: ggml itself has to.

    Args:
        kind: as ggml calls it.
        ggml: its own routine.
    """
    ours = _ours(kind) if kind in KINDS else None
    return ours if ours is not None and _agree(kind, ours, ggml) else None


def _ours(kind: str) -> Round | None:
    """None: set-up could not compile the library."""
    try:
        library = ctypes.CDLL(str(library_path(cache_home())))
    except OSError:
        return None
    function = getattr(library, f"round_to_{kind.lower()}")
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = [pointer, pointer, number, pointer, number], None

    def rounded(values: Floats, out: Bytes, importance: Floats | None) -> None:
        weighed = None if importance is None else importance.ctypes.data
        blocks, a_row = values.size // SUPER_BLOCK, values.shape[1] // SUPER_BLOCK
        function(values.ctypes.data, out.ctypes.data, blocks, weighed, a_row)

    return rounded


def _agree(kind: str, ours: Round, ggml: Round) -> bool:
    values = tried()
    importance = np.random.default_rng(1).exponential(size=SUPER_BLOCK).astype(np.float32)
    importance[::7] = 0
    wanted, found = (np.empty((len(values), block_of(kind)[1]), np.uint8) for _ in range(2))
    for weighed in (None, importance):
        ggml(values, wanted, weighed)
        ours(values, found, weighed)
        if not np.array_equal(wanted, found):
            return False
    return True


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
