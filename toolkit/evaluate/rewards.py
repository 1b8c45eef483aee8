"""The rewards that were trained with, of the answers to held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toolkit.evaluate.figure import Figure
from toolkit.evaluate.names import SERVED, TUNED

ALL = "reward, all together"
UNIT = "points"


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


def earns_less(figures: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where what is served earns less than the tuned model, beyond what these rows leave open; empty where not.

    Args:
        figures: as evaluation.json holds them.
    """
    for figure in figures:
        served = figure["subjects"].get(SERVED)
        if figure["unit"] == UNIT and served and served.get("from_tuned", {}).get("verdict") in ("worse", "broken"):
            change, tuned = served["from_tuned"], figure["subjects"][TUNED]["value"]
            return (
                f"what Ollama answers to {figure['rows']} held-out questions earns {served['value']:.2f} ({figure['name']}), the "
                f"tuned model {tuned:.2f}: a difference of {change['low']:.2f} to {change['high']:.2f}"
            )
    return ""


def _number(value: float) -> float:
    return float(value) if math.isfinite(float(value)) else 0.0
