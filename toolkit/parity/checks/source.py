"""Was a file quantized from the converted one, or from a file that was quantized already?

A second rounding hides in the noise of the first. But llama.cpp's rounding is a function of its input, so the input can be told:
rounded anew from the converted file, the bytes must be those of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from toolkit.export.ggml import needs_importance, stored, widened
from toolkit.models.gguf_file import UNQUANTIZED
from toolkit.models.gguf_head import block_of
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.tuning import Tuning
from toolkit.parity.units import units_of

ROWS = 32
TENSORS = 12
SOURCES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
"""What a file may have been quantized from by mistake."""
LARGEST_RATIO = 1.3
"""Error of the rounding beside that of a fresh one; an importance matrix, which others use, costs up to a fifth."""

Rows = npt.NDArray[np.float32]


class Sample(NamedTuple):
    """Some rows of one tensor: as they were before the rounding, and as the export has them; float32 [rows, row length]."""

    kind: str
    """Stored type of the export."""
    before: Rows
    found: Rows
    importance: Rows | None = None
    """What the columns' errors were weighed with, [row length]; None: with nothing, or it is not known."""


def samples_of_converted(export: GGUFWeights, converted: GGUFWeights) -> Iterator[Sample]:
    """Rows of a quantized file and of the converted file that it should have been made from."""
    wanted = {t.name: t for t in converted.header.tensors}
    can = [
        t
        for t in export.header.tensors
        if t.name in wanted and not (needs_importance(t.type) and export.importance(t.name) is None)
    ]
    for tensor in _spread([t for t in can if t.type not in UNQUANTIZED]):
        count = min(ROWS, tensor.shape[1])  # of one expert, whose columns have weights of their own
        before = widened(converted.raw(wanted[tensor.name])[:count].copy(), wanted[tensor.name].type)
        found = widened(export.raw(tensor)[:count].copy(), tensor.type)
        importance = export.importance(tensor.name)
        yield Sample(tensor.type, before, found, None if importance is None else importance[0])


def samples_of_tuning(export: GGUFWeights, tuning: Tuning) -> Iterator[Sample]:
    """Rows of a quantized file whose converted file is not known, and of the tuned weights, as 16 bits would hold them."""
    units = [
        u
        for u in units_of(tuning, export.layout)
        if u.sources
        and export.has(u.name)
        and export.type(u.name) not in UNQUANTIZED
        and not (needs_importance(export.type(u.name)) and export.importance(u.name) is None)
    ]
    for unit in _spread([u for u in units if len(s := u.shape(tuning)) > 1 and export.shape(u.name) == s]):
        weight = unit.weights(tuning.load).tuned
        rows = torch.arange(min(ROWS, unit.shape(tuning)[-2]))  # of one expert, whose columns have weights of their own
        kind, tuned, found = export.type(unit.name), weight[rows], export.load(unit.name, rows)
        vias = [tuned.to(dtype).float().numpy() for dtype in (torch.float16, torch.bfloat16, torch.float32)]
        importance = export.importance(unit.name)
        weighed = None if importance is None else importance[0]
        samples = [Sample(kind, via, found.numpy(), weighed) for via in vias]
        yield next((one for one in samples if _source(one, _rounded(one.before, kind, weighed)) != "other"), samples[0])


def _spread(found: list[Any]) -> list[Any]:
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(TENSORS, len(found))).astype(int))]


def source_check(samples: Iterable[Sample]) -> Check:
    """Round a sample of rows anew, and compare with what the quantized file holds."""
    told: Counter[str] = Counter()
    errors, fresh_errors = 0.0, 0.0
    for sample in samples:
        fresh = _rounded(sample.before, sample.kind, sample.importance)
        told[_source(sample, fresh)] += 1
        errors += float(((sample.found - sample.before) ** 2).sum())
        fresh_errors += float(((fresh - sample.before) ** 2).sum())
    count = told.total()
    if count == 0:
        message = "no tensor is of a type that can be rounded anew without an importance matrix"
        return Check(name="source", verdict="not compared", message=message)
    ratio = (errors / fresh_errors) ** 0.5 if fresh_errors > 0 else 1.0
    twice = {source: count for source, count in told.items() if source in SOURCES}
    measures = [
        lower_is_better("tensors rounded twice", sum(twice.values()), 0, 0),
        lower_is_better("rounding error beside a fresh one", ratio, LARGEST_RATIO, 1.0),
        Measure(name="tensors equal to a fresh rounding", value=told["fresh"]),
    ]
    if twice:
        source = max(twice, key=twice.__getitem__)
        message = f"it was quantized from a file that was {source} already: {twice[source]} of {count} tensors show it"
    elif ratio > LARGEST_RATIO:
        message = f"its rounding error is {ratio:.2f} times that of a fresh one (limit {LARGEST_RATIO})"
    elif told["fresh"] == count:
        message = f"{count} tensors are what llama.cpp makes of the file in 16 or 32 bits, value for value"
    else:
        message = f"its rounding error is {ratio:.3f} times that of a fresh one"
    return Check.of("source", measures, message, {"tensors": dict(told)})


def _rounded(rows: Rows, kind: str, importance: Rows | None = None) -> Rows:
    return widened(stored(rows, kind, importance), kind)


def _source(sample: Sample, fresh: Rows) -> str:
    """'fresh', the type that it was rounded to before, or 'other'."""
    if np.array_equal(sample.found, fresh):
        return "fresh"
    width = sample.before.shape[1]
    for source in SOURCES:
        if source != sample.kind and width % block_of(source)[0] == 0:
            twice = _rounded(_rounded(sample.before, source), sample.kind, sample.importance)
            if np.array_equal(sample.found, twice):
                return source
    return "other"
