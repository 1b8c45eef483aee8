"""ggml's own routines for a tensor's stored types, called in the library that llama-cpp-python brings.

They are those that llama.cpp's converter and quantizer end in, and they let go of Python's lock: rows go to as many threads as
there are cores. K-quants are rounded by `toolkit.export.k_quants` where that gives the same bytes.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.errors import DataError, ExternalToolError
from toolkit.export.k_quants import KINDS, Round, rounder
from toolkit.export.llama_cpp import library
from toolkit.models.gguf_head import block_of, type_number

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
SIXTEEN = {"float16": "F16", "bfloat16": "BF16"}
"""torch's names of the types of 16 bits → ggml's."""


@functools.cache
def _ggml() -> Any:
    """ggml's library.

    Raises:
        ExternalToolError: it is not there, or does not load.
    """
    folder = Path(str(library().__file__)).parent / "lib"
    found = [path for suffix in ("so", "dylib", "dll") for path in sorted(folder.glob(f"*ggml-base.{suffix}"))]
    if not found:
        raise ExternalToolError(f"{folder} holds no library of ggml", "Run: make setup")
    ggml = ctypes.CDLL(str(found[0]))
    pointer, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    ggml.ggml_quantize_chunk.argtypes = [integer, pointer, pointer, number, number, number, pointer]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    for kind in ("fp16", "bf16"):
        getattr(ggml, f"ggml_fp32_to_{kind}_row").argtypes = [pointer, pointer, number]
    ggml.ggml_validate_row_data.argtypes = [integer, pointer, ctypes.c_size_t]
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    ggml.ggml_get_type_traits.argtypes, ggml.ggml_get_type_traits.restype = [integer], ctypes.POINTER(_Type)
    ggml.ggml_op_name.argtypes, ggml.ggml_op_name.restype = [integer], ctypes.c_char_p
    for name, result in (("op_desc", ctypes.c_char_p), ("get_data", pointer), ("nbytes", ctypes.c_size_t)):
        getattr(ggml, f"ggml_{name}").argtypes, getattr(ggml, f"ggml_{name}").restype = [pointer], result
    return ggml


def stored(values: Floats, kind: str, importance: Floats | None = None) -> Bytes:
    """Rows as they are stored.

    Args:
        values: float32 [rows, row length], contiguous.
        kind: F32, F16, BF16, or a quantized type whose blocks the row length is a multiple of.
        importance: float32 [row length], what the rounding errors of the columns are weighed with; see `toolkit.export.imatrix`.

    Returns:
        uint8 [rows, bytes a row].
    """
    values = np.ascontiguousarray(values)
    if kind == "F32":
        return values.view(np.uint8)
    block, size = block_of(kind)
    out = np.empty((len(values), values.shape[1] // block * size), np.uint8)
    if kind in ("F16", "BF16"):
        _to_16_bits(kind)(values.ctypes.data, out.ctypes.data, values.size)
        return out
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    faster = _faster(kind)
    if faster is None:
        _quantized(kind, values, out, importance)
    else:
        faster(values, out, importance)
    return out


def needs_importance(kind: str) -> bool:
    """Whether llama.cpp's quantizer rounds to a type only with an importance matrix (src/llama-quant.cpp)."""
    return kind.startswith(("IQ1", "IQ2", "IQ3_XXS"))


def faster_kinds() -> list[str]:
    """The types that weights are rounded to by `toolkit.export.k_quants` on this machine."""
    return [kind for kind in KINDS if _faster(kind) is not None]


@functools.cache
def _faster(kind: str) -> Round | None:
    return rounder(kind, functools.partial(_quantized, kind))


def _quantized(kind: str, values: Floats, out: Bytes, importance: Floats | None = None) -> None:
    address = None if importance is None else importance.ctypes.data
    rows, length = values.shape
    size = _ggml().ggml_quantize_chunk(type_number(kind), values.ctypes.data, out.ctypes.data, 0, rows, length, address)
    if size != out.nbytes:
        raise ExternalToolError(f"ggml made {size} bytes of {kind}, {out.nbytes} were expected", "Run: make setup")


def widened(raw: Bytes, kind: str) -> Floats:
    """Rows of a type (uint8 [rows, bytes a row]) as float32 [rows, row length].

    Raises:
        DataError: ggml keeps no weights in this type.
    """
    if kind == "F32":
        return raw.view(np.float32)
    block, size = block_of(kind)
    if raw.shape[1] % size:
        raise DataError(f"a row of {raw.shape[1]} bytes holds no whole blocks of {kind}", "Make the file anew.")
    raw = np.ascontiguousarray(raw)
    out = np.empty((len(raw), raw.shape[1] // size * block), np.float32)
    _to_floats(kind)(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def rounded(values: Floats, dtype: str) -> Floats:
    """float32 values rounded to what float16 or bfloat16 can hold, to the nearest, ties to even; for float32 the same array."""
    if dtype not in SIXTEEN:
        return values
    values = np.ascontiguousarray(values)
    half = np.empty(values.shape, np.uint16)
    _to_16_bits(SIXTEEN[dtype])(values.ctypes.data, half.ctypes.data, values.size)
    out = np.empty_like(values)
    _to_floats(SIXTEEN[dtype])(half.ctypes.data, out.ctypes.data, values.size)
    return out


def are_numbers(raw: Bytes, kind: str) -> bool:
    """Whether rows of a type hold neither NaN nor infinity, as llama.cpp's quantizer asks of what it reads."""
    return bool(_ggml().ggml_validate_row_data(type_number(kind), raw.ctypes.data, raw.nbytes))


class _Type(ctypes.Structure):
    """`struct ggml_type_traits` of the pinned ggml (ggml/include/ggml.h)."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    ]


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of the pinned ggml (ggml/include/ggml.h)."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]


@dataclass(frozen=True)
class GraphTensor:
    """A tensor of a graph that llama.cpp computes, where it lies in memory."""

    name: str
    operation: str
    """That makes it, as ggml names it: MUL_MAT, MUL_MAT_ID, …; NONE for a weight."""
    kind: int
    """ggml's number of the type."""
    shape: tuple[int, ...]
    """Four axes, in numpy's order: the row length last."""
    strides: tuple[int, ...]
    """In bytes."""
    address: int
    bytes: int
    sources: tuple[int, ...]
    """Addresses of the tensors that it is made from; 0 where there is none."""

    def values(self, dtype: type[np.generic]) -> npt.NDArray[Any]:
        """Its values, in ggml's own memory: to be read before ggml goes on."""
        memory: Any = (ctypes.c_char * self.bytes).from_address(self.address)
        values: npt.NDArray[Any] = np.ndarray(self.shape, dtype, memory, strides=self.strides)
        return values


@functools.cache
def operation_number(name: str) -> int:
    """ggml's number of an operation, e.g. MUL_MAT."""
    ggml = _ggml()
    return next(number for number in range(1000) if ggml.ggml_op_name(number) == name.encode())


def operation_of(address: int) -> int:
    """The number of the operation that makes a tensor of a graph."""
    return int(ctypes.c_int.from_address(address + _Tensor.op.offset).value)


def graph_tensor(address: int) -> GraphTensor:
    """Read a `ggml_tensor`.

    Raises:
        ExternalToolError: ggml's own functions read it otherwise: it is another version than the pinned one.
    """
    told, ggml = _Tensor.from_address(address), _ggml()
    if (ggml.ggml_get_data(address) or 0) != (told.data or 0):
        raise ExternalToolError("ggml's tensors are laid out otherwise than the pinned version's", "Run: make setup")
    return GraphTensor(
        name=told.name.decode(errors="replace"),
        operation=ggml.ggml_op_desc(address).decode(),
        kind=told.type,
        shape=tuple(told.ne)[::-1],
        strides=tuple(told.nb)[::-1],
        address=told.data or 0,
        bytes=ggml.ggml_nbytes(address),
        sources=tuple(source or 0 for source in told.src),
    )


def _to_16_bits(kind: str) -> Any:
    return getattr(_ggml(), f"ggml_fp32_to_{'fp16' if kind == 'F16' else 'bf16'}_row")


@functools.cache
def _to_floats(kind: str) -> Any:
    found = _ggml().ggml_get_type_traits(type_number(kind)).contents.to_float
    if not found:
        raise DataError(f"ggml keeps no weights as {kind}", "Make the file anew, of another type.")
    return found
