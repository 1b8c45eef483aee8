"""The rewards that were trained with, of the answers to held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toolkit.evaluate.comparison import chance
from toolkit.evaluate.figure import Figure
from toolkit.evaluate.names import SERVED, TUNED

ALL = "reward, all together"
UNIT = "points"
FALSE_ALARMS = 0.01
"""How often right exports may differ as much, either way: served and tuned model part at near ties, in both directions."""


def rewards_of(
    told: Mapping[str, list[str]], references: list[str], rewards: Mapping[str, Callable[..., Any]]
) -> list[Figure]:
    """A figure for each reward, and first for their sum, which is what was trained for; none where there are no rewards.

    A reward that is no number counts as 0, as in training.

    Args:
        told: subject → its answers.
    """
    if not rewards:
        return []
    weights = [1.0] * len(references)
    each = {
        name: {subject: [_number(value) for value in reward(answers, references)] for subject, answers in told.items()}
        for name, reward in rewards.items()
    }
    summed = {subject: [sum(row) for row in zip(*(each[name][subject] for name in each))] for subject in told}
    found = [Figure(ALL, UNIT, True, "help", weights, summed)]
    if len(each) > 1:
        found += [Figure(f"reward {name}", UNIT, True, "beside", weights, values) for name, values in each.items()]
    return found


def earns_less(figures: Sequence[Figure]) -> str:
    """A sentence where what is served earns less than the tuned model, beyond what these rows leave open; empty where not.

    All rewards together are judged, once: of many judged, one is low by chance.
    """
    found = next((figure for figure in figures if figure.name == ALL), None)
    if found is None or not {SERVED, TUNED} <= set(found.values):
        return ""
    served, tuned = found.of(SERVED), found.of(TUNED)
    by_chance = chance(found.values[SERVED], found.values[TUNED], found.weights)
    if served.value >= tuned.value or by_chance > FALSE_ALARMS:
        return ""
    return (
        f"what Ollama answers to {len(found.weights)} held-out questions earns {served.value:.2f} ({ALL}), the tuned model "
        f"{tuned.value:.2f}; right exports differ as much in {100 * by_chance:.1g} of 100 runs"
    )


def _number(value: float) -> float:
    return float(value) if math.isfinite(float(value)) else 0.0
