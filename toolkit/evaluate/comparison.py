"""What a few rows can tell of a difference, and what they cannot: paired bootstrap intervals over rows.

Rows are drawn with replacement, the same rows for both that are compared (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993). Few rows make percentile intervals too narrow; they are widened as Student's t says (the expanded percentile
interval of Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015). A difference must
also be one that swapping the two within rows seldom makes (the paired randomization test of Fisher, "The Design of Experiments",
1935): that is exact for few rows, where the interval is not.
"""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "undecided", "too few", "broken"]

DRAWS = 4000
SWAPS = 2**14
SEED = 20
LEVEL = 0.95
"""Share of intervals that hold what they are about."""
FEWEST = 6
"""Rows below which nothing is decided: five heads in a row are chance at this level (2 / 2⁵ > 5 %)."""
MOST_TIMES = 100
"""More rows than so many times those at hand are not asked for: where the difference is next to nothing, nobody can say."""


class Interval(NamedTuple):
    """A value of the rows at hand, and what it may be for all such rows. Infinite ends: nobody knows."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How one differs from another on the same rows, and what that says."""

    value: float
    low: float
    high: float
    verdict: Verdict
    rows_needed: int | None
    """About so many would decide, where these do not; None: decided, or more than `MOST_TIMES` as many."""


def interval(values: npt.ArrayLike, weights: npt.ArrayLike, share: bool = False) -> Interval:
    """The weighted mean over rows.

    Args:
        share: values are zero or one.
    """
    found, heavy = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if not len(found) or not heavy.sum() > 0 or not np.isfinite(found).all():
        return Interval(math.nan, -math.inf, math.inf)
    value = float((found * heavy).sum() / heavy.sum())
    if len(found) == 1:
        return Interval(value, -math.inf, math.inf)
    counts = _counts(len(found))
    low, high = _ends((counts @ (found * heavy)) / _at_least(counts @ heavy), value, len(found))
    if share and np.ptp(found) == 0 and value in (0.0, 1.0):
        low, high = value - _unseen(len(found)), value + _unseen(len(found))
    return Interval(value, max(low, 0.0), min(high, 1.0)) if share else Interval(value, low, high)


def difference(
    values: npt.ArrayLike,
    than: npt.ArrayLike,
    weights: npt.ArrayLike,
    higher_is_better: bool,
    share: bool = False,
) -> Difference:
    """`values` - `than`, row by row, as a weighted mean, and whether that is better."""
    both = np.asarray(values, dtype=np.float64), np.asarray(than, dtype=np.float64)
    rows = len(both[0])
    if not np.isfinite(both[0]).all() or not rows:
        return Difference(math.nan, -math.inf, math.inf, "broken" if rows else "too few", None)
    found = interval(both[0] - both[1], weights)
    value, low, high = found
    if share and rows > 1 and np.ptp(both[0] - both[1]) == 0:
        low, high = max(value - _unseen(rows), -1.0), min(value + _unseen(rows), 1.0)
    if rows < FEWEST or not math.isfinite(value):
        return Difference(value, low, high, "too few", max(FEWEST, _needed(rows, value, low, high) or 0))
    if (low > 0 or high < 0) and chance(both[0], both[1], weights) > 1 - LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    if low > 0 or high < 0:
        return Difference(value, low, high, "better" if (low > 0) == higher_is_better else "worse", None)
    return Difference(value, low, high, "undecided", _needed(rows, value, low, high))


def chance(values: npt.ArrayLike, than: npt.ArrayLike, weights: npt.ArrayLike) -> float:
    """How often two that are alike differ on such rows as much as these, whichever is more: 0 to 1."""
    differences = (np.asarray(values, dtype=np.float64) - np.asarray(than, dtype=np.float64)) * np.asarray(weights)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    signs = _signs(len(differences))
    # Rounding must not make a tie a win.
    as_much = np.abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9)
    return float(as_much.mean())


def kept(base: npt.ArrayLike, tuned: npt.ArrayLike, export: npt.ArrayLike, weights: npt.ArrayLike) -> Interval | None:
    """The share of the tuned model's gain over its base that an export has; None where there is no gain that is sure."""
    rows = [np.asarray(values, dtype=np.float64) for values in (base, tuned, export)]
    heavy = np.asarray(weights, dtype=np.float64)
    if len(heavy) < FEWEST or not all(np.isfinite(values).all() for values in rows):
        return None
    gained = interval(rows[1] - rows[0], weights)
    if gained.low <= 0 <= gained.high:
        return None
    counts = _counts(len(heavy))
    gains = counts @ ((rows[1] - rows[0]) * heavy)
    drawn = (counts @ ((rows[2] - rows[0]) * heavy))[gains != 0] / gains[gains != 0]
    value = float(((rows[2] - rows[0]) * heavy).sum() / ((rows[1] - rows[0]) * heavy).sum())
    low, high = _ends(drawn, value, len(heavy))
    return Interval(value, low, high)


def _ends(drawn: Values, value: float, rows: int) -> tuple[float, float]:
    low, high = np.quantile(drawn, [_tail(rows), 1 - _tail(rows)])
    return min(float(low), value), max(float(high), value)


@functools.cache
def _tail(rows: int) -> float:
    """The share of draws beyond each end: Student's t in place of the normal, and n - 1 in place of n."""
    quantile = float(stats.t.ppf((1 - LEVEL) / 2, rows - 1))
    return float(stats.norm.cdf(quantile * math.sqrt(rows / (rows - 1))))


@functools.lru_cache(maxsize=32)
def _counts(rows: int) -> Values:
    """How often each row is drawn: [DRAWS, rows]."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS).astype(np.float64)


def _signs(rows: int) -> Values:
    """Which rows are swapped: all ways there are, or `SWAPS` of them, of which the first swaps none: [ways, rows]."""
    if 2**rows <= SWAPS:
        swapped: Values = ((np.arange(2**rows)[:, None] >> np.arange(rows)) & 1).astype(np.float64)
        return 1.0 - 2.0 * swapped
    signs: Values = np.random.default_rng(SEED).choice((-1.0, 1.0), size=(SWAPS, rows))
    signs[0] = 1.0
    return signs


def _at_least(weights: Values) -> Values:
    return np.maximum(weights, 1e-300)


def _unseen(rows: int) -> float:
    """How often something may happen that happened in none of so many rows (Clopper and Pearson 1934, both ends)."""
    return float(1 - ((1 - LEVEL) / 2) ** (1 / rows))


def _needed(rows: int, value: float, low: float, high: float) -> int | None:
    """Intervals shrink with the square root of the number of rows."""
    if not math.isfinite(value) or value == 0 or not math.isfinite(low + high):
        return None
    times = (((high - value) if value < 0 else (value - low)) / abs(value)) ** 2
    return math.ceil(rows * times) if times <= MOST_TIMES else None
