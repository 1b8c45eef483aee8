"""The pixel values that llama.cpp gives to a vision tower, read while it computes.

libmtmd has no function that tells them. Its context takes a function that is told of every operation before it is computed
(`cb_eval`): the first one reads the input, whose name in every vision graph is `inp_raw` (tools/mtmd/clip.cpp, build_inp_raw).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp

Pixels = npt.NDArray[np.float32]
"""Normalised, [3, height, width]."""
_INPUT = b"inp_raw"
_F32 = 0


class _Tensor(ctypes.Structure):
    """ggml/include/ggml.h, `struct ggml_tensor`, of the pinned llama.cpp."""


_Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10), ("view_src", ctypes.POINTER(_Tensor)), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
]  # fmt: skip


class Shown:
    """What was shown to the vision tower since `clear`, on the CPU."""

    def __init__(self) -> None:
        self.pictures: list[Pixels] = []
        self.callback: Any = llama_cpp.ggml_backend_sched_eval_callback(self._told)
        """For `cb_eval`; as long-lived as the context."""

    def clear(self) -> None:
        """Forget."""
        self.pictures = []

    def _told(self, tensor: Any, ask: bool, _data: Any) -> bool:
        if ask and not self.pictures:
            node = ctypes.cast(tensor, ctypes.POINTER(_Tensor)).contents
            for source in node.src:
                if source and (found := _input(source.contents)) is not None:
                    self.pictures = [found]
                    break
        return False  # the result of no operation is wanted


def _input(tensor: Any) -> Pixels | None:
    while tensor.view_src:
        tensor = tensor.view_src.contents
    if tensor.name != _INPUT or tensor.type != _F32:
        return None
    width, height, channels, _ = tensor.ne
    array = (ctypes.c_float * (width * height * channels)).from_address(tensor.data)
    pixels: Pixels = np.ctypeslib.as_array(array).reshape(channels, height, width).copy()
    return pixels
