"""What a sample of texts can tell of a number, and what it cannot.

A measure is taken over a few texts, and its limit is meant for all texts. So each comes with an interval, and the verdict is

    fail           the whole interval lies beyond the limit: no other texts would have saved it;
    pass           the value is within the limit, and the interval within the damage that the limit is there to catch;
    inconclusive   anything else: more texts are needed.

Positions of one text depend on each other, so whole texts are drawn, never single positions. The two ends of an interval answer
for two errors, and are found in two ways:

- Low ends, which fail, are sure at `SURE`. They come from a bet against the limit: of a capital of 1, stake a share on every text
  having more than the limit allows. As long as the limit holds, the capital reaches 1 / SURE with a chance of at most SURE,
  however heavy the tails are, however few the texts, and however often one looks (Ville's inequality; Waudby-Smith and Ramdas,
  "Estimating means of bounded random variables by betting", 2024). Of four texts, Student's t could hardly prove anything.
- High ends, which must be small to pass, are sure at `MISSED`: Student's t over texts; for shares no less than Clopper-Pearson's.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from toolkit.parity.certificate import Verdict

Values = npt.NDArray[np.float64]

FALSE_ALARMS = 1e-3
"""Certificates of right files that may fail by the chance of their prompts."""
JUDGED = 30
"""Measures that share this: about ten for each of the three files that count for a certificate."""
SURE = FALSE_ALARMS / JUDGED
MISSED = 1e-3
"""Chance that a damage just large enough to be caught is not excluded. One measure has to see it, so nothing is shared here."""
_STAKES = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
"""Shares of the capital that are staked, each with an equal part of it: the large ones win on few texts far beyond the limit."""
_STEPS, _REFINED = 65, 3


class Interval(NamedTuple):
    """A value, and what it may be for all texts."""

    value: float
    low: float
    high: float

    def verdict(self, limit: float, damage: float, one: float = 0.0) -> Verdict:
        """Judge a number that should be small.

        Args:
            damage: what has to be excluded for a pass; above the limit.
            one: a share that is a single position of the sample: where the limit is less, one of them decides nothing.
        """
        if self.low > limit or not math.isfinite(self.value):
            return "fail"
        return "pass" if self.value <= max(limit, one) and self.high <= damage else "inconclusive"

    def needed(self, texts: int, limit: float, damage: float) -> int:
        """About how many texts would decide: both ends come nearer with the square root of their number.

        Ten times as many at most: of what lies on its limit, nobody can say.
        """
        wide, room = self.high - self.value, damage - self.value
        if self.value > limit:
            wide, room = self.value - self.low, self.value - limit
        share = wide / room if room > 0 and math.isfinite(wide) else 2.0
        return max(texts + 1, 4, math.ceil(texts * min(share**2, 10)))


def by_text(texts: npt.ArrayLike, values: npt.ArrayLike) -> Values:
    """Sums over the positions of each text."""
    _, group = np.unique(np.asarray(texts), return_inverse=True)
    return np.asarray(np.bincount(group, np.asarray(values, dtype=np.float64)), dtype=np.float64)


def mean(sums: Values, sizes: Values) -> Interval:
    """The mean of something that is never negative.

    Args:
        sums, sizes: of each text: the sum over its positions, and how many these are.
    """
    value, high = _ratio(sums, sizes)
    return Interval(value, _largest_beaten(sums, np.zeros_like(sums), sizes, value), high)


def mean_difference(sums: Values, less: Values, sizes: Values) -> Interval:
    """The mean of sums - less, neither of which is ever negative."""
    value, high = _ratio(sums - less, sizes)
    return Interval(value, _largest_beaten(sums, less, sizes, value), high)


def share(counts: Values, sizes: Values) -> Interval:
    """The share of positions that something is true of."""
    found, wide = mean(counts, sizes), float(sizes.sum())
    # What never happened has no spread; how often it may happen all the same depends on how often it could have.
    most = float(stats.beta.ppf(1 - MISSED, counts.sum() + 1, wide - counts.sum())) if counts.sum() < wide else 1.0
    return found._replace(high=min(1.0, max(found.high, most)))


def spread(sums: Values, sizes: Values) -> float:
    """Standard error of a mean over all positions, by texts; infinite for a single text."""
    texts = len(sums)
    if texts < 2:
        return math.inf
    rests = sums - sums.sum() / sizes.sum() * sizes
    return float(np.sqrt(texts / (texts - 1) * (rests**2).sum()) / sizes.sum())


def witnesses(sizes: Values) -> float:
    """How many texts of one size tell as much as these: where one of them outweighs the others, they are few."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


@functools.cache
def errors(texts: float, level: float) -> float:
    """How many standard errors an end of an interval is away; infinite for a single text.

    Args:
        texts: see `witnesses`.
    """
    return float(stats.t.ppf(1 - level, texts - 1)) if texts > 1 else math.inf


def fewest(tries: int, chance: float) -> int:
    """Fewest successes of so many that are no surprise at `SURE`."""
    return int(stats.binom.ppf(SURE, tries, chance)) if tries else 0


def _ratio(sums: Values, sizes: Values) -> tuple[float, float]:
    value = float(sums.sum() / sizes.sum())
    wide = spread(sums, sizes)
    return value, math.inf if math.isinf(wide) else value + errors(witnesses(sizes), MISSED) * wide


def _largest_beaten(sums: Values, less: Values, sizes: Values, value: float) -> float:
    """The largest limit on the mean of sums - less that a bet against it beats."""
    low = -float((less / sizes).max())
    if not value > low or not math.isfinite(value):
        return low if math.isfinite(value) else math.nan
    high = value
    for _ in range(_REFINED):
        limits = np.linspace(low, high, _STEPS)
        beaten = np.flatnonzero(_beaten(sums, less, sizes, limits))
        if not len(beaten):
            return low
        low, high = float(limits[beaten[-1]]), float(limits[min(beaten[-1] + 1, _STEPS - 1)])
    return low


def _beaten(sums: Values, less: Values, sizes: Values, limits: Values) -> npt.NDArray[np.bool_]:
    """Whether a bet on every text being beyond a limit multiplies the capital by 1 / SURE, for each of the limits."""
    allowed = less + limits[:, None] * sizes
    most_lost = allowed.max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        won = np.where(most_lost > 0, (sums - allowed) / most_lost, np.inf * np.sign(sums))
    factors = 1 + _STAKES[:, None, None] * np.nan_to_num(won, nan=0.0, posinf=np.inf)
    capital = np.log(np.maximum(factors, 1e-12)).sum(axis=2)
    return np.logaddexp.reduce(capital, axis=0) - math.log(len(_STAKES)) >= -math.log(SURE)  # type: ignore[no-any-return]
