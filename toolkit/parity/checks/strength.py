"""Is the adapter there, whole, once, as the answers tell it?"""

from __future__ import annotations

import numpy as np

from toolkit.parity.certificate import Check, Measure, Verdict, within
from toolkit.parity.checks.logits import Positions, no_numbers
from toolkit.parity.limits import POWER, Limits
from toolkit.parity.strength import Strength

WHOLE_LOW, WHOLE_HIGH = 0.5, 1.5
"""Rounding bends what a short training changed: a right Q4_K_M export after 16 steps was measured at 0.835 [0.818, 0.853] in
its answers, and at 1.000 in its weights. Where the weights show the adapter whole, the answers may differ by so much; how far
rounding may move them is judged by the logits."""
PRECISE = 0.05
"""Half the width of a strength's interval that tells a whole adapter from half of one, whatever the file's noise."""


def strength_check(positions: Positions, limits: Limits, whole_in_weights: bool = False) -> Check:
    """Is the adapter there, whole, once, as the answers tell it?

    pass: the 95 % interval lies inside the file type's band, and either the tuned model is ten times farther from its base
    than from its export, or the interval is at most ± 0.05 wide: precise enough to tell without it.
    fail: the interval lies outside the band. Anything else is inconclusive, which never passes. Where the weights have shown
    that the adapter is in the file, whole and once, a wider band is enough: see `WHOLE_LOW`.
    """
    effect, distance = float(np.mean(positions.kl_base)), float(np.mean(positions.kl))
    power = effect / max(distance, 1e-12)
    details = {"positions": len(positions.kl), "effect_kl": effect, "band": [limits.strength_low, limits.strength_high]}
    if positions.broken:
        return Check(name="strength", verdict="fail", message=no_numbers(positions), details=details)
    found = positions.strength
    if found is None:
        return Check(
            name="strength",
            verdict="inconclusive",
            message="the tuning changed nothing on the goldens, or no more than rounding does",
            details=details,
        )
    low, high = limits.strength_low, limits.strength_high
    inside = low <= found.low and found.high <= high
    outside = found.high < low or found.low > high
    precise = found.half_width <= PRECISE
    verdict: Verdict = "fail" if outside else "pass" if inside and (power >= POWER or precise) else "inconclusive"
    said = within(found.value, found.low, found.high, (low, high))
    if verdict != "pass" and whole_in_weights and WHOLE_LOW <= found.value <= WHOLE_HIGH:
        verdict = "pass"
        low, high = WHOLE_LOW, WHOLE_HIGH
        said += f"; rounding moves it, and the weights show the adapter whole: then [{low:g}, {high:g}] is enough"
    if verdict == "inconclusive":
        said += f"; {_needed(found, limits, len(positions.kl))}"
    details["band"] = [low, high]
    measures = [
        Measure(name="strength", value=found.value, verdict=verdict, limit=high if found.value > 1 else low, floor=1.0),
        Measure(name="strength low", value=found.low, limit=low),
        Measure(name="strength high", value=found.high, limit=high),
        Measure(name="effect / distance", value=power, limit=POWER),
    ]
    return Check(name="strength", verdict=verdict, message=said, measures=measures, details=details)


def _needed(found: Strength, limits: Limits, positions: int) -> str:
    room = min(found.value - limits.strength_low, limits.strength_high - found.value)
    if room <= 0 or found.half_width <= 0:
        return "more golden prompts, or a longer training, would decide"
    # The interval narrows with the square root of the number of positions.
    needed = int(positions * max((found.half_width / room) ** 2, 1.5)) + 1
    return f"about {needed} positions would decide (now {positions}): add golden prompts"
