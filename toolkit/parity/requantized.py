"""Was a file quantized from the converted one, or from a file that was quantized already?

A second rounding hides in the noise of the first. But llama.cpp's rounding is a function of its input, so the input can be told:
rounded anew from the converted file, the bytes must be those of the file.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from toolkit.gguf_file import UNQUANTIZED, GGUFTensor
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.exported import GGUFWeights, dequantized
from toolkit.parity.rounding import can_round, quantized

ROWS = 32
TENSORS = 12
SOURCES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
"""What a file may have been quantized from by mistake."""
LARGEST_RATIO = 1.3
"""Error of the rounding beside that of a fresh one; an importance matrix, which others use, costs up to a fifth."""

Rows = npt.NDArray[np.float32]


def source_check(export: GGUFWeights, converted: GGUFWeights) -> Check:
    """Round a sample of the converted file's rows anew, and compare with what the quantized file holds."""
    wanted = {t.name: t for t in converted.header.tensors}
    chosen = [t for t in export.header.tensors if t.type not in UNQUANTIZED and can_round(t.type) and t.name in wanted]
    chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, min(TENSORS, len(chosen))).astype(int))]
    told: Counter[str] = Counter()
    errors, fresh_errors = 0.0, 0.0
    for tensor in chosen:
        rows = _rows(converted, wanted[tensor.name])
        found = export.raw(tensor)[:ROWS].copy()
        fresh = quantized(rows, tensor.type)
        told[_source(rows, found, fresh, tensor.type)] += 1
        errors += float(((dequantized(found, tensor.type) - rows) ** 2).sum())
        fresh_errors += float(((dequantized(fresh, tensor.type) - rows) ** 2).sum())
    ratio = (errors / fresh_errors) ** 0.5 if fresh_errors > 0 else 1.0
    twice = {source: count for source, count in told.items() if source in SOURCES}
    measures = [
        lower_is_better("tensors rounded twice", sum(twice.values()), 0, 0),
        lower_is_better("rounding error beside a fresh one", ratio, LARGEST_RATIO, 1.0),
        Measure(name="tensors equal to a fresh rounding", value=told["fresh"]),
    ]
    if twice:
        source = max(twice, key=twice.__getitem__)
        message = (
            f"it was quantized from a file that was {source} already: {twice[source]} of {len(chosen)} tensors show it"
        )
    elif ratio > LARGEST_RATIO:
        message = f"its rounding error is {ratio:.2f} times that of a fresh one (limit {LARGEST_RATIO})"
    elif told["fresh"] == len(chosen):
        message = f"{len(chosen)} tensors are what llama.cpp makes of the converted file, byte for byte"
    else:
        message = f"its rounding error is {ratio:.3f} times that of a fresh one"
    return Check.of("source", measures, message, {"tensors": dict(told)})


def _rows(converted: GGUFWeights, tensor: GGUFTensor) -> Rows:
    return dequantized(converted.raw(tensor)[:ROWS].copy(), tensor.type)


def _source(rows: Rows, found: Any, fresh: Any, kind: str) -> str:
    """'fresh', the type that it was rounded to before, or 'other'."""
    if np.array_equal(found, fresh):
        return "fresh"
    width = rows.shape[1]
    for source in SOURCES:
        if source != kind and width % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[source]][0] == 0:
            before = dequantized(quantized(rows, source), source)
            if np.array_equal(found, quantized(before, kind)):
                return source
    return "other"
