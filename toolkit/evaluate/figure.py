"""One number that is measured of every subject over the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from toolkit.evaluate.comparison import Interval, difference, interval, kept
from toolkit.evaluate.names import BASE, TUNED

About = Literal["help", "beside", "forgetting"]
"""Whether a figure says that training helped, stands beside those, or says that something was forgotten."""


@dataclass
class Figure:
    """One number of every subject, as a weighted mean over rows."""

    name: str
    unit: str
    higher_is_better: bool
    about: About
    weights: list[float]
    values: dict[str, list[float]] = field(default_factory=dict)
    """Subject → a value for each row."""
    share: bool = False
    """Values are zero or one."""
    perplexity: bool = False
    """It is a loss in nats per token: e to the power of it is told too."""

    def of(self, subject: str) -> Interval:
        """The mean of a subject."""
        return interval(self.values[subject], self.weights, self.share)

    def as_json(self) -> dict[str, Any]:
        """The figure with its intervals, differences from the base and, for exports, from the tuned model."""
        subjects = {name: self._subject(name) for name in self.values}
        return _finite(
            {
                "name": self.name, "unit": self.unit, "higher_is_better": self.higher_is_better, "about": self.about,
                "rows": len(self.weights), "subjects": subjects,
            }
        )  # fmt: skip

    def _subject(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.of(name)._asdict()
        if self.perplexity:
            found["perplexity"] = _exponential(found["value"])
        if name != BASE and BASE in self.values:
            found["from_base"] = self.change(name, BASE)
            if name != TUNED and TUNED in self.values:
                share = kept(self.values[BASE], self.values[TUNED], self.values[name], self.weights)
                found["kept"] = share._asdict() if share else None
        if name not in (BASE, TUNED) and TUNED in self.values:
            found["from_tuned"] = self.change(name, TUNED)
        return found

    def change(self, name: str, than: str) -> dict[str, Any]:
        """How one subject differs from another."""
        return difference(
            self.values[name], self.values[than], self.weights, self.higher_is_better, self.share
        )._asdict()


def _exponential(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """Without what JSON cannot write: None stands for what is not a number, or not bounded."""
    return {key: _written(one) for key, one in value.items()}


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return _finite(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
