"""The figures of an evaluation in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from toolkit.evaluate.comparison import Interval, rows_that_decide
from toolkit.recipe.schema import Objective
from toolkit.run.facts import Measured

_TUNED, _BASE = "tuned", "base"
_FIRST: dict[str, str] = {
    "grpo": "reward all together", "rloo": "reward all together", "dpo": "margin of the better answer",
    "orpo": "margin of the better answer", "simpo": "margin of the better answer",
}  # fmt: skip
"""By what an objective is judged; the others by the held-out loss."""
NOTICED = 0.02
"""Nats a token of general texts: a smaller loss is not worth a word, however sure."""


def sentences(measures: Sequence[Measured], objective: Objective, served_type: str | None) -> list[str]:
    """Did it help, did it forget, what does the export keep; a sentence each, as far as it was measured."""
    by_name = {measure.name: measure for measure in measures}
    told = []
    judged = by_name.get(_FIRST.get(objective, "held-out loss"))
    if judged is not None and _TUNED in judged.changes:
        told.append(_helped(judged))
        if served_type is not None and served_type in judged.values:
            told.append(_kept(judged, served_type))
        elif "served" in judged.values:
            told.append(_kept(judged, "served"))
    general = by_name.get("loss of general texts")
    if general is not None and _TUNED in general.changes:
        told.append(_forgot(general, by_name.get("general questions right")))
    return told


def _helped(measure: Measured) -> str:
    before, after = measure.values[_BASE][0], measure.values[_TUNED][0]
    change = Interval(*measure.changes[_TUNED])
    shown = f"{measure.name} {before:.2f} → {after:.2f} over {measure.rows} held-out rows"
    low, high = sorted((abs(change.low), abs(change.high)))
    by = f"{abs(change.value):.2f} ({low:.2f} to {high:.2f})"
    if not change.decided:
        return f"Not shown to help: {shown}. About {rows_that_decide(change, measure.rows):,} rows would decide."
    better = (change.value > 0) == (measure.better == "higher")
    return f"Helped, by {by}: {shown}." if better else f"Made it worse, by {by}: {shown}."


def _kept(measure: Measured, subject: str) -> str:
    before, after, export = (measure.values[who][0] for who in (_BASE, _TUNED, subject))
    if not Interval(*measure.changes[_TUNED]).decided:
        return f"{subject} has {measure.name} {export:.2f}, the tuned model {after:.2f}."
    return f"{subject} keeps {(export - before) / (after - before):.0%} of that ({export:.2f})."


def _forgot(general: Measured, known: Measured | None) -> str:
    change = Interval(*general.changes[_TUNED])
    before, after = (math.exp(general.values[who][0]) for who in (_BASE, _TUNED))
    shown = f"perplexity of {general.rows} general texts {before:.1f} → {after:.1f}"
    if known is not None:
        right = [known.values[who][0] for who in (_BASE, _TUNED)]
        shown += f", {known.rows} general questions {right[0]:.0%} → {right[1]:.0%} right"
    lost = known is not None and _TUNED in known.changes and Interval(*known.changes[_TUNED]).high < 0
    if (change.low > 0 and change.value > NOTICED) or lost:
        return f"Forgot: {shown}. Mixing general rows in helps against it (data.sources, docs/data.md)."
    return f"Forgot nothing that this can see: {shown}."
