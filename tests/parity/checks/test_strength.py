"""Strength is 1 for the same thing, 0 for the base, ½ for half of the change in log space, whatever the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.parity.checks.logits import Positions
from toolkit.parity.checks.strength import strength_check
from toolkit.parity.limits import limits_for
from toolkit.parity.strength import moments, strength
from toolkit.report.drawn import limit_told


def logits(seed: int, positions: int = 6, vocabulary: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tuned = torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64) * 3
    return tuned, tuned + torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(-1, 3), shift=st.floats(-50, 50))
def test_strength_is_the_share_of_the_change(seed: int, factor: float, shift: float) -> None:
    tuned, base = logits(seed)
    # A shift of all logits changes no probability, so it must not change the strength.
    together, alone = moments(tuned, base, base + factor * (tuned - base) + shift)
    found = strength(together.numpy(), alone.numpy())
    assert found is not None
    assert found.value == pytest.approx(factor, abs=1e-9)
    assert found.low == pytest.approx(factor, abs=1e-9)
    assert found.high == pytest.approx(factor, abs=1e-9)


def test_noise_that_knows_nothing_of_the_tuning_leaves_it_near_one() -> None:
    tuned, base = logits(1, positions=400)
    noise = torch.randn(tuned.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together, alone = moments(tuned, base, tuned + 0.5 * noise)
    found = strength(together.numpy(), alone.numpy())
    assert found is not None
    assert found.low < 1 < found.high
    assert found.high - found.low < 0.2
    assert not found.surely(0.99, 1.01)


def test_a_change_that_is_only_rounding_has_no_strength() -> None:
    tuned, base = logits(1, positions=400)
    noise = torch.randn(tuned.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for effect, told in ((1e-6, False), (1e-2, True)):
        together, alone = moments(tuned, tuned + effect * (base - tuned), tuned + 1e-3 * noise)
        assert (strength(together.numpy(), alone.numpy()) is not None) == told


def test_positions_of_one_text_are_no_independent_witnesses() -> None:
    """Texts differ in how much of the adapter they show: nearly all of 300 intervals hold the truth, also of few texts."""
    random = np.random.default_rng(7)
    for count in (4, 16):
        texts, each, held, held_single = np.repeat(np.arange(count), 30), count * 30, 0, 0
        for _ in range(300):
            shown = 1 + 0.1 * random.standard_normal(count)
            alone = random.exponential(1.0, each)
            together = alone * (shown[texts] + 0.1 * random.standard_normal(each))
            found, single = strength(together, alone, texts), strength(together, alone)
            assert found is not None and single is not None
            assert found.value == pytest.approx(single.value)
            assert not found.surely(1, 1)
            held += found.low < 1 < found.high
            held_single += single.low < 1 < single.high
        assert held >= 298, held
        assert held_single < 290, held_single


def test_no_tuning_has_no_strength() -> None:
    assert strength(np.zeros(4), np.zeros(4)) is None
    assert strength(np.array([]), np.array([])) is None


def positions(tuned: torch.Tensor, base: torch.Tensor, export: torch.Tensor) -> Positions:
    """Positions of texts of ten tokens each."""
    found = Positions()
    for text, start in enumerate(range(0, len(tuned), 10)):
        part = slice(start, start + 10)
        found.add(text, tuned[part].argmax(-1).tolist(), *(x[part].float().numpy() for x in (tuned, base, export)))
    return found


def test_verdicts() -> None:
    limits, _ = limits_for("Q8_0", 7_000_000_000, 0.0)
    tuned, base = logits(3, positions=300)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(tuned.shape, generator=generator, dtype=torch.float64)
    change = tuned - base
    right = positions(tuned, base, tuned + 0.05 * noise)
    assert strength_check(right, limits).verdict == "pass"
    tenth = strength_check(positions(tuned, base, base + 0.9 * change + 0.05 * noise), limits)
    assert tenth.verdict == "fail", tenth.message
    # Rounding to 4 bits bends the answers as much as that: there they prove a lost adapter, but no whole one.
    rough, _ = limits_for("Q4_K_M", 7_000_000_000, 0.0)
    open_still = strength_check(right, rough)
    assert (open_still.verdict, open_still.details["texts_needed"]) == ("inconclusive", 0)
    assert "could not be read" in open_still.message
    assert strength_check(right, rough, whole_in_weights=True).verdict == "pass"
    assert strength_check(positions(tuned, base, base + 0.5 * change), rough).verdict == "fail"
    assert strength_check(positions(tuned, base, base), limits).verdict == "fail"
    assert strength_check(positions(tuned, base, base + 0.5 * change), limits).verdict == "fail"
    assert strength_check(positions(tuned, base, base + 2 * change), limits).verdict == "fail"
    assert strength_check(positions(tuned, tuned, tuned + noise), limits).verdict == "inconclusive"
    # An effect far below the noise: whole or lost cannot be told, and that is said, with what would decide.
    faint = strength_check(positions(tuned, tuned - 0.02 * change, tuned + 0.5 * noise), limits)
    assert faint.verdict == "inconclusive"
    assert "would decide" in faint.message
    # What rounding bends is no lost adapter where the weights show it whole; without them it is.
    bent = positions(tuned, base, base + 0.8 * change)
    assert strength_check(bent, limits).verdict == "fail"
    whole = strength_check(bent, limits, whole_in_weights=True)
    assert whole.verdict == "pass"
    assert "the weights show the adapter whole" in whole.message
    assert strength_check(positions(tuned, base, base), limits, whole_in_weights=True).verdict == "fail"


@pytest.mark.parametrize(
    ("factor", "whole", "limit", "band"),
    [
        (0.5, False, 0.98, [0.98, 1.02]),
        (2.0, False, 1.02, [0.98, 1.02]),
        (0.8, True, 0.5, [0.5, 1.5]),
        (1.3, True, 1.5, [0.5, 1.5]),
        (1.0, False, 0.98, [0.98, 1.02]),
    ],
)
def test_the_limit_that_is_told_is_the_one_that_decides(
    factor: float, whole: bool, limit: float, band: list[float]
) -> None:
    tuned, base = logits(3, positions=40)
    found = strength_check(
        positions(tuned, base, base + factor * (tuned - base)), limits_for("Q8_0", 10**10, 0.0)[0], whole
    )
    value, low, high, _ = found.measures
    # At 1 both ends are as far.
    assert value.limit == (pytest.approx(limit) if factor != 1.0 else pytest.approx(1, abs=0.021))
    assert [low.limit, high.limit] == found.details["band"] == band
    if factor != 1.0:
        assert limit_told(value) == f"{'≥' if factor < 1 else '≤'} {limit:g}"
