"""Intervals of a sample: right ones are left alone however heavy their tails, and what is far beyond a limit is found."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.parity.sample import (
    SURE,
    Interval,
    by_text,
    errors,
    fewest,
    mean,
    mean_difference,
    share,
    spread,
    witnesses,
)

TEXTS = (4, 6, 12, 32)


def test_sums_by_text() -> None:
    assert by_text([5, 5, 9], [1, 2, 4]).tolist() == [3, 4]
    assert by_text([5, 5, 9], np.array([True, True, False])).tolist() == [2, 0]


@pytest.mark.parametrize("texts", TEXTS)
def test_heavy_tails_never_raise_an_alarm(texts: int) -> None:
    """Of 1,000 samples whose mean is exactly the limit none is surely beyond it: lognormal, sizes that differ tenfold."""
    random = np.random.default_rng(texts)
    for _ in range(1000):
        sizes = random.integers(4, 40, texts).astype(float)
        sums = sizes * np.exp(1.5 * random.standard_normal(texts) - 1.5**2 / 2)
        found = mean(sums, sizes)
        assert found.low <= 1, (sums, sizes)
        assert found.low <= found.value <= found.high


@pytest.mark.parametrize("texts", TEXTS)
def test_rare_events_never_raise_an_alarm_though_they_come_in_texts(texts: int) -> None:
    random = np.random.default_rng(texts)
    sizes = np.full(texts, 20.0)
    for _ in range(1000):
        counts = np.where(
            random.random(texts) < 0.1, random.binomial(20, 0.1, texts), 0
        )  # 1 % of all, in a tenth of the texts
        assert share(counts.astype(float), sizes).low <= 0.01


def test_what_is_far_beyond_is_found_in_few_texts_and_what_is_near_in_more() -> None:
    random = np.random.default_rng(0)

    def found(texts: int, times: float) -> str:
        sizes = np.full(texts, 15.0)
        sums = times * sizes * np.exp(0.4 * random.standard_normal(texts) - 0.08)
        return mean(sums, sizes).verdict(1, 4)

    assert {found(4, 1000.0) for _ in range(50)} == {"fail"}
    assert {found(12, 10.0) for _ in range(50)} == {"fail"}
    assert {found(4, 1.6) for _ in range(50)} <= {"inconclusive", "pass"}
    assert [found(60, 1.6) for _ in range(50)].count("fail") > 45
    assert [found(8, 0.3) for _ in range(50)].count("pass") > 45


def test_nothing_of_a_few_is_no_proof_and_nothing_of_many_is() -> None:
    nothing = share(np.zeros(3), np.full(3, 5.0))
    assert (nothing.value, nothing.low) == (0, 0)
    assert nothing.high == pytest.approx(1 - 0.001 ** (1 / 15))
    assert nothing.verdict(0.01, 0.16) == "inconclusive"
    assert share(np.zeros(12), np.full(12, 15.0)).verdict(0.01, 0.16) == "pass"
    assert share(np.full(4, 5.0), np.full(4, 5.0)).high == 1


def test_a_difference_may_be_negative() -> None:
    sizes, less = np.full(8, 10.0), np.full(8, 2.0)
    better = mean_difference(less * 0.9, less, sizes)
    assert better.low < better.value == pytest.approx(-0.02)
    assert better.verdict(0.01, 0.04) == "pass"
    assert mean_difference(less + 8, less, sizes).verdict(0.01, 0.04) == "fail"
    # Most of them alike and one far off: nothing is proved.
    odd = less.copy()
    odd[3] += 8
    assert mean_difference(odd, less, sizes).verdict(0.01, 0.04) == "inconclusive"


def test_a_single_text_decides_nothing() -> None:
    found = mean(np.array([0.1]), np.array([20.0]))
    assert math.isinf(found.high) and math.isinf(spread(np.array([0.1]), np.array([20.0])))
    assert found.verdict(1, 4) == "inconclusive"
    assert math.isinf(errors(1.0, 0.001))
    # One text that outweighs all others is hardly more than one.
    assert witnesses(np.array([1000.0, 1, 1, 1])) < 1.01
    assert witnesses(np.full(7, 3.0)) == pytest.approx(7)


def test_no_number_fails() -> None:
    assert mean(np.array([1, math.nan]), np.ones(2)).verdict(1, 4) == "fail"
    assert mean_difference(np.array([1, math.inf]), np.ones(2), np.ones(2)).verdict(1, 4) == "fail"


def test_how_many_texts_would_decide() -> None:
    assert Interval(0.5, 0.1, 8.0).needed(4, 1, 4) == math.ceil(4 * (7.5 / 3.5) ** 2)
    assert Interval(2.0, 0.5, 9.0).needed(6, 1, 4) == math.ceil(6 * 1.5**2)
    assert Interval(0.5, 0.0, math.inf).needed(1, 1, 4) == 4


def test_fewest_successes_that_are_no_surprise() -> None:
    from scipy import stats

    for tries in (1, 5, 12, 40):
        for chance in (0.4, 0.6, 0.9):
            least = fewest(tries, chance)
            assert stats.binom.cdf(least - 1, tries, chance) <= SURE < stats.binom.cdf(least, tries, chance)
    assert fewest(0, 0.9) == 0
