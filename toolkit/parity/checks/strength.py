"""Is the adapter there, whole, once, as the answers tell it?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from toolkit.parity.certificate import Check, Measure, Verdict, within
from toolkit.parity.checks.logits import Positions, no_numbers
from toolkit.parity.limits import Limits
from toolkit.parity.strength import Strength

WHOLE_LOW, WHOLE_HIGH = 0.5, 1.5
"""Rounding bends what a short training changed: a right Q4_K_M export after 16 steps was measured at 0.835 in its answers, and at
1.000 in its weights. Where the weights show the adapter whole, the answers may differ by so much; how far rounding may move them
is judged by the logits."""


def strength_verdict(found: Strength, limits: Limits, whole_in_weights: bool) -> Verdict:
    """Is this the strength of a whole adapter?

    fail: surely outside the band. pass: surely inside, where that excludes a tenth missing (`Limits.tells_tenth`); or the weights
    have shown the adapter whole, and the answers agree roughly.
    """
    if whole_in_weights:
        if WHOLE_LOW <= found.value <= WHOLE_HIGH:
            return "pass"
        return "fail" if found.surely(WHOLE_LOW, WHOLE_HIGH) else "inconclusive"
    if found.surely(limits.strength_low, limits.strength_high):
        return "fail"
    inside = limits.strength_low <= found.low and found.high <= limits.strength_high
    return "pass" if inside and limits.tells_tenth else "inconclusive"


def strength_check(positions: Positions, limits: Limits, whole_in_weights: bool = False) -> Check:
    """Is the adapter there, whole, once, as the answers tell it? See `strength_verdict`.

    `texts_needed` among the details, where it is above 0, is how many texts would about decide.
    """
    effect, distance = float(np.mean(positions.kl_base)), float(np.mean(positions.kl))
    low, high = (WHOLE_LOW, WHOLE_HIGH) if whole_in_weights else (limits.strength_low, limits.strength_high)
    details: dict[str, Any] = {
        "positions": len(positions.kl), "texts": positions.texts, "texts_needed": 0, "effect_kl": effect, "band": [low, high]
    }  # fmt: skip
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
    verdict = strength_verdict(found, limits, whole_in_weights)
    said = within(found.value, found.low, found.high, (low, high))
    if whole_in_weights:
        said += ", since the weights show the adapter whole, and rounding moves the answers"
    if verdict == "inconclusive":
        details["texts_needed"] = texts_needed(found, limits, positions.texts, low, high)
        said += f"; {undecided(details['texts_needed'], positions.texts)}"
    measures = [
        Measure(name="strength", value=found.value, low=found.low, high=found.high, verdict=verdict,
                limit=high if found.value > 1 else low, floor=1.0),
        Measure(name="strength low", value=found.low, limit=low),
        Measure(name="strength high", value=found.high, limit=high),
        Measure(name="effect / distance", value=effect / max(distance, 1e-12)),
    ]  # fmt: skip
    return Check(name="strength", verdict=verdict, message=said, measures=measures, details=details)


def texts_needed(found: Strength, limits: Limits, texts: int, low: float, high: float) -> int:
    """How many texts would about decide; 0: no number would. The interval narrows with the square root of their number."""
    if low <= found.value <= high:
        if not limits.tells_tenth:
            return 0
        room = min(found.value - low, high - found.value)
    else:
        room = max(low - found.value, found.value - high)
    wide = (found.high - found.low) / 2
    share = wide / room if math.isfinite(wide) and room > 0 else 2.0
    return max(texts + 1, 4, math.ceil(texts * min(share**2, 10)))


def undecided(needed: int, texts: int) -> str:
    """What would decide."""
    if needed:
        return f"about {needed} texts would decide (now {texts}): add golden prompts"
    return (
        "its weights could not be read, and rounding to so few bits moves the answers as much as a tenth of the adapter missing "
        "would: of F16, BF16 and Q8_0 it can be told"
    )
