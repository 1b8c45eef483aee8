"""What a number over a few rows can tell: intervals by the paired bootstrap (Efron 1979; for texts Koehn 2004), and words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLED = 2000
_SEED = 1
_LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over rows, and where it would lie for other rows of the kind (95 %)."""

    value: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Of a difference: it is not 0, as far as these rows tell."""
        return self.low > 0 or self.high < 0


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """The mean of a value per row.

    Args:
        weights: of the rows, e.g. their tokens; None: all the same.
    """
    found = np.asarray(values, dtype=np.float64)
    weighed = np.ones(len(found)) if weights is None else np.asarray(weights, dtype=np.float64)
    value = float((found * weighed).sum() / weighed.sum())
    if len(found) < 2:
        return Interval(value, value, value)
    drawn = np.random.default_rng(_SEED).integers(0, len(found), (RESAMPLED, len(found)))
    means = (found[drawn] * weighed[drawn]).sum(1) / weighed[drawn].sum(1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))


def difference(after: Sequence[float], before: Sequence[float], weights: Sequence[float] | None = None) -> Interval:
    """The mean difference of two values of the same rows."""
    return mean([a - b for a, b in zip(after, before, strict=True)], weights)


def rows_that_decide(found: Interval, rows: int) -> int:
    """How many rows would show a difference of this size: an interval narrows with the square root of their number."""
    half = max(found.high - found.value, found.value - found.low)
    return rows if found.value == 0 else max(rows + 1, round(rows * (half / abs(found.value)) ** 2))
