"""Intervals and verdicts: values by hand, and how often chance is called a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from toolkit.evaluate.comparison import FEWEST, chance, difference, interval, kept


def test_a_mean_is_weighted_by_tokens_and_lies_within_its_interval() -> None:
    found = interval([1.0, 4.0, 4.0, 1.0, 4.0, 1.0], [2.0, 1.0, 1.0, 2.0, 1.0, 2.0])
    assert found.value == pytest.approx(2.0)
    assert 1.0 <= found.low < 2.0 < found.high <= 4.0


def test_the_same_rows_give_the_same_interval_and_more_rows_a_narrower_one() -> None:
    few, many = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] * 9
    first = interval(few, [1.0] * len(few))
    assert first == interval(few, [1.0] * len(few))
    more = interval(many, [1.0] * len(many))
    wide, narrow = first.high - first.low, more.high - more.low
    # About the square root of nine times as narrow; few rows are widened besides.
    assert 3.0 < wide / narrow < 6.0


def test_nobody_knows_the_interval_of_one_row_or_of_none() -> None:
    assert interval([2.0], [1.0]) == (2.0, -math.inf, math.inf)
    assert math.isnan(interval([], []).value)


@pytest.mark.parametrize("rows", range(1, FEWEST))
def test_too_few_rows_decide_nothing_however_far_apart(rows: int) -> None:
    found = difference([1.0] * rows, [0.0] * rows, [1.0] * rows, True, share=True)
    assert found.verdict == "too few" and found.rows_needed is not None and found.rows_needed >= FEWEST


def test_six_right_answers_where_all_were_wrong_are_a_help_and_six_alike_are_none() -> None:
    better = difference([1.0] * 6, [0.0] * 6, [1.0] * 6, True, share=True)
    assert better.verdict == "better" and better.low == pytest.approx(1 - (1 - 0.025 ** (1 / 6)))
    same = difference([1.0] * 6, [1.0] * 6, [1.0] * 6, True, share=True)
    assert same.verdict == "undecided" and same.value == 0.0 and same.rows_needed is None
    # What was not seen in six rows may happen in 46 of 100.
    assert same.high == pytest.approx(0.459, abs=1e-3)


def test_a_lower_loss_is_better_and_a_higher_one_worse() -> None:
    base = [3.0, 2.5, 2.0, 3.5, 2.2, 2.8, 3.1]
    lower = [value - 0.5 - 0.01 * place for place, value in enumerate(base)]
    weights = [10.0] * 7
    assert difference(lower, base, weights, False).verdict == "better"
    assert difference(base, lower, weights, False).verdict == "worse"
    # Without pairing, such losses would overlap: rows differ more from each other than models do.
    assert interval(lower, weights).high > interval(base, weights).low


def test_a_small_difference_says_how_many_rows_would_decide_it() -> None:
    values = np.array([1.2, -0.8] * 10)  # mean 0.2, standard deviation 1.03
    found = difference(values, np.zeros(20), [1.0] * 20, True)
    assert found.verdict == "undecided"
    # An interval of ± 0.48 (2.09 · 1.03 / √20) has to shrink to ± 0.2: 5.8 times as many rows.
    assert found.rows_needed is not None and 95 <= found.rows_needed <= 140
    tiny = difference(values - 0.199, np.zeros(20), [1.0] * 20, True)
    assert tiny.rows_needed is None


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_no_number_is_broken_not_better(broken: float) -> None:
    assert difference([1.0] * 7 + [broken], [2.0] * 8, [1.0] * 8, False).verdict == "broken"


def test_chance_alone_is_seldom_called_a_difference() -> None:
    generator = np.random.default_rng(7)
    for rows in (8, 16, 32):
        drawn = generator.normal(0.0, 1.0, (400, rows))
        called = [difference(one, np.zeros(rows), np.ones(rows), True).verdict for one in drawn]
        wrong = sum(verdict in ("better", "worse") for verdict in called) / len(called)
        # 5 % of 400, and three of their deviations.
        assert wrong < 0.083, (rows, wrong)


def test_what_swapping_within_rows_makes_as_often_is_chance() -> None:
    assert chance([1.0] * 6, [0.0] * 6, [1.0] * 6) == 2 / 64
    assert chance([1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0] * 3) == 1.0
    assert chance([2.0] * 3, [2.0] * 3, [1.0] * 3) == 1.0
    # Of many rows not every way is tried.
    assert chance([1.0] * 40, [0.0] * 40, [1.0] * 40) == pytest.approx(1 / 2**14)


def test_an_export_keeps_what_is_there_of_a_gain() -> None:
    base, tuned = [4.0, 3.0, 5.0, 4.5, 3.5, 4.2, 4.8], [2.0, 1.5, 2.5, 2.0, 1.7, 2.1, 2.4]
    weights = [3.0, 5.0, 2.0, 4.0, 4.0, 3.0, 6.0]
    half = [(one + other) / 2 for one, other in zip(base, tuned)]
    found = kept(base, tuned, half, weights)
    assert found is not None and found.value == pytest.approx(0.5) and found.low == pytest.approx(0.5)
    whole = kept(base, tuned, tuned, weights)
    assert whole is not None and whole.value == pytest.approx(1.0)
    assert kept(base, base, tuned, weights) is None, "nothing was gained that could be kept"
    one = kept([0.0] * 7, [0.0, *[1.0] * 6], [0.0, *[0.5] * 6], [1.0] * 7)
    assert one is not None and one == (0.5, 0.5, 0.5), "also where a draw may hold rows alone that gained nothing"
