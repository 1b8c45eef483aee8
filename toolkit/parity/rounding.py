"""llama.cpp's rounding of rows to a stored type, to tell what an export must hold and where it came from."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from toolkit.export.llama_cpp import library
from toolkit.parity.exported import dequantized

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def can_round(kind: str) -> bool:
    """Whether a type can be rounded to without an importance matrix."""
    return kind in _FLOATS or not kind.startswith(("IQ1", "IQ2", "IQ3_XXS"))


def rounded(rows: torch.Tensor, kind: str, via: str = "F32") -> torch.Tensor:
    """Rows as a file of this type holds them, float32; unchanged where `can_round` is false or the rows have no whole blocks.

    via: type of the converted file that it was made from.
    """
    if kind not in _FLOATS:
        rows = rows.to(_FLOATS[via]).float()
    if kind in _FLOATS:
        return rows.to(_FLOATS[kind]).float()
    if not can_round(kind) or rows.dim() != 2 or rows.shape[1] % _block(kind)[0]:
        return rows
    return torch.from_numpy(dequantized(quantized(rows.numpy(), kind), kind))


def _block(kind: str) -> tuple[int, int]:
    """(weights, bytes) of a type's block."""
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(weights), int(size)


@functools.cache
def _quantize_chunk() -> Any:
    library()  # loads ggml, and says what to do when it cannot
    import llama_cpp.llama_cpp as binding

    function = binding._lib.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return function


def quantized(rows: npt.NDArray[np.float32], kind: str) -> npt.NDArray[np.uint8]:
    """Rows as llama.cpp rounds them, uint8 [rows, bytes a row]; `ggml_quantize_chunk`, without an importance matrix."""
    block, size = _block(kind)
    made = np.empty((len(rows), rows.shape[1] // block * size), dtype=np.uint8)
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    _quantize_chunk()(
        int(gguf.GGMLQuantizationType[kind]), rows.ctypes.data, made.ctypes.data, 0, len(rows), rows.shape[1], None
    )
    return made
