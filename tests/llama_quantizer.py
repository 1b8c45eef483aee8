"""llama.cpp's own quantizer, which the project's files are compared with byte for byte."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from toolkit.export.imatrix_file import Imatrix, read_imatrix
from toolkit.export.llama_cpp import captured_log, file_type_number, importance_list, library


def quantize_with_llama_cpp(source: Path, target: Path, file_type: str, imatrix: Path | None = None) -> None:
    """`llama_model_quantize`, as `llama-quantize` calls it."""
    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = file_type_number(file_type)
    parameters.nthread = len(os.sched_getaffinity(0))
    if imatrix is not None:
        matrix = read_imatrix(imatrix)
        weighed, told = importance_list(matrix), _overrides(matrix)  # C reads them until it is done
        parameters.imatrix, parameters.kv_overrides = weighed, told
    with captured_log() as problems:
        failed = llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert not failed, problems


def _overrides(matrix: Imatrix) -> Any:
    llama = library().llama_cpp
    told: dict[str, str | int] = {
        "quantize.imatrix.file": matrix.file,
        "quantize.imatrix.dataset": matrix.dataset,
        "quantize.imatrix.entries_count": len(matrix.means),
        "quantize.imatrix.chunks_count": matrix.sequences,
    }
    made = (llama.llama_model_kv_override * (len(told) + 1))()  # the last one, without a key, ends it
    for override, (key, value) in zip(made, told.items()):
        override.key = key.encode()
        if isinstance(value, str):
            override.tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
            override.value.val_str = value.encode()[:127]
        else:
            override.tag, override.value.val_i64 = llama.LLAMA_KV_OVERRIDE_TYPE_INT, value
    return made
