"""NF4 and back, as `bitsandbytes.nn.Linear4bit` does it on a CPU but several times as fast, and without torch but for one sum.

NF4: Dettmers et al., "QLoRA", arXiv:2305.14314; double quantization is its section 3. A block's scale is its largest value. With
double quantization the scales are stored in 8 bits around their mean; that mean is a sum in torch's own order, so it is asked of
torch once for each matrix of a base, and kept by content. Everything else here gives the same bits as bitsandbytes on a CPU.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from toolkit.errors import ExternalToolError
from toolkit.run.artifacts import text_sha256, write_json
from toolkit.run.facts import Quantization
from toolkit.run.places import cache_home

Floats = npt.NDArray[np.float32]
_SCALES_IN_A_BLOCK = 256
_SMALLEST = np.float32(1e-38)
"""Of what a block is divided by."""
_KEPT = 4
"""Matrices whose scales are kept."""
_PIECE = 1 << 16
"""Values that are looked up at a time: they stay in the processor's cache."""


@dataclass(frozen=True)
class Told:
    """What torch and bitsandbytes say."""

    table: Floats
    """The sixteen values of NF4, ascending."""
    bounds: Floats
    """Halfway between them."""
    code: Floats
    """The 256 values of the scales' own 8 bits."""
    means: dict[str, float]
    """Matrix → the mean of its scales, float32; empty without double quantization."""


def ask(
    sums: Iterable[str], names: list[str], largest: Callable[[str], Floats], base_dtype: str, quantization: Quantization
) -> Told:
    """What has to be known of a base's matrices, from the cache or asked now.

    Args:
        sums: of the files that hold the base's weights.
        names: of the matrices.
        largest: `maxima` of a matrix as it was loaded for training.
        base_dtype: in which type.
    """
    threads = [len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS")]  # torch cuts a long sum by them
    asked = [
        sorted(sums),
        names,
        base_dtype,
        quantization.model_dump(),
        threads,
        version("torch"),
        version("bitsandbytes"),
    ]
    kept = cache_home() / "nf4" / f"{text_sha256(json.dumps(asked))[:40]}.json"
    if not kept.is_file():
        found = _of_torch(names, largest, quantization)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, found)
    told = json.loads(kept.read_text(encoding="utf-8"))
    table, bounds, code = (np.array(told[key], np.float32) for key in ("table", "bounds", "code"))
    return Told(table, bounds, code, told["means"])


def _of_torch(names: list[str], largest: Callable[[str], Floats], quantization: Quantization) -> dict[str, Any]:
    told, asked = values_of_nf4(), names if quantization.double_quantization else []
    return {
        "table": told.table.tolist(),
        "bounds": told.bounds.tolist(),
        "code": told.code.tolist(),
        "means": {name: mean_of(largest(name)) for name in asked},
    }


@functools.cache
def values_of_nf4() -> Told:
    """What bitsandbytes says of NF4, whatever the matrix."""
    import bitsandbytes.functional as bnb

    table = cast(Any, bnb.get_4bit_type("nf4", device="cpu"))
    bounds = (table[:-1] + table[1:]) / 2
    return Told(table.numpy(), bounds.numpy(), bnb.create_dynamic_map().numpy(), {})


def mean_of(largest: Floats) -> float:
    """The mean of a matrix's scales, in torch's own order."""
    import torch

    return float(torch.from_numpy(largest).mean())


def round_matrix(values: Floats, quantization: Quantization) -> Floats:
    """Values as NF4 holds them: float32, in their shape. Blocks run from row to row, and the last may be a part of one."""
    told, flat = values_of_nf4(), values.reshape(-1)
    whole = flat.size // quantization.blocksize * quantization.blocksize
    rest = flat[whole:]  # bitsandbytes divides it, where it multiplies whole blocks
    largest = maxima(flat[:whole], quantization.blocksize) if whole else np.empty(0, np.float32)
    if rest.size:
        largest = np.append(largest, np.maximum(np.abs(rest).max(), _SMALLEST))
    scales = scales_of(largest, mean_of(largest) if quantization.double_quantization else None, told.code)
    blocks = whole // quantization.blocksize
    out = np.empty_like(flat)
    if whole:
        out[:whole] = rounded_to_nf4(flat[:whole], largest[:blocks], scales[:blocks], told)
    if rest.size:
        out[whole:] = told.table[np.searchsorted(told.bounds, np.clip(rest / largest[-1], -1, 1))] * scales[-1]
    return out.reshape(values.shape)


class NF4Rows:
    """A base's matrices as NF4 holds them, row by row; of each the scales are kept while its rows are asked for.

    Args:
        told: see `Told`.
        largest: `maxima` of a matrix by its name.
        blocksize: values with one scale.
    """

    def __init__(self, told: Told, largest: Callable[[str], Floats], blocksize: int) -> None:
        self._told, self._largest, self._blocksize = told, largest, blocksize
        self._kept: dict[str, tuple[Floats, Floats]] = {}
        self._lock = threading.Lock()

    def rows(self, name: str, values: Floats, rows: Any) -> Floats:
        """Rows of a matrix, rounded.

        Args:
            values: these rows of the base, float32 [rows, columns]; the columns are a multiple of the blocks' size.
            rows: which they are, as an index.
        """
        with self._lock:  # all threads ask for the same matrix at about the same time
            if name not in self._kept:
                while len(self._kept) >= _KEPT:
                    self._kept.pop(next(iter(self._kept)))
                largest = self._largest(name)
                self._kept[name] = largest, scales_of(largest, self._told.means.get(name), self._told.code)
            largest, scales = self._kept[name]
        each = values.shape[1] // self._blocksize
        largest, scales = (found.reshape(-1, each)[rows].reshape(-1) for found in (largest, scales))
        return rounded_to_nf4(values, largest, scales, self._told)


def maxima(values: Floats, blocksize: int) -> Floats:
    """The largest of each block of values, without their signs: float32 [blocks]."""
    return np.asarray(np.abs(values).reshape(-1, blocksize).max(1))


def scales_of(largest: Floats, mean: float | None, code: Floats) -> Floats:
    """The blocks' scales as they are stored.

    Args:
        largest: of each block.
        mean: of these; None: they are not quantized themselves.
        code: see `Told`.
    """
    if mean is None:
        return largest
    offset = np.float32(mean)
    centred = np.ascontiguousarray(largest - offset)
    blocks = -(-centred.size // _SCALES_IN_A_BLOCK)
    own, stored, out = np.empty(blocks, np.float32), np.empty(centred.size, np.uint8), np.empty_like(centred)
    sizes = ctypes.c_longlong(_SCALES_IN_A_BLOCK), ctypes.c_longlong(centred.size)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (code, centred, own, stored, out)]
    bits = _bitsandbytes()
    bits.cquantize_blockwise_cpu_fp32(pointers[0], pointers[1], pointers[2], pointers[3], *sizes)
    bits.cdequantize_blockwise_cpu_fp32(pointers[0], pointers[3], pointers[2], pointers[4], *sizes)
    return np.asarray(out + offset)


def rounded_to_nf4(values: Floats, largest: Floats, scales: Floats, told: Told) -> Floats:
    """Whole blocks of values as NF4 holds them: float32, in the shape of `values`."""
    blocks = values.reshape(len(largest), -1)
    out = np.empty_like(blocks)
    step = max(1, _PIECE // blocks.shape[1])
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        inverse = np.float32(1) / np.maximum(largest[part], _SMALLEST)
        scaled = np.clip(blocks[part] * inverse[:, None], -1, 1)
        place = np.zeros(scaled.shape, np.uint8)
        for bound in told.bounds:
            place += scaled > bound
        out[part] = told.table[place] * scales[part][:, None]
    return out.reshape(values.shape)


@functools.cache
def _bitsandbytes() -> Any:
    """bitsandbytes' own library for a CPU, without the package.

    Raises:
        ExternalToolError: it is not installed, or does not load.
    """
    found = importlib.util.find_spec("bitsandbytes")
    folder = Path(str(found.origin)).parent if found is not None else Path()
    libraries = sorted(folder.glob("libbitsandbytes_cpu.*"))
    if not libraries:
        raise ExternalToolError("bitsandbytes has no library for a CPU here", "Run: make setup")
    return ctypes.CDLL(str(libraries[0]))
