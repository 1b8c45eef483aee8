"""How far an export's next-token distributions are from the tuned model's, position by position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from toolkit.parity.certificate import Check, Measure, Verdict, higher_is_better, lower_is_better
from toolkit.parity.limits import POWER, Limits
from toolkit.parity.strength import Strength, moments, strength

CHUNK = 32  # positions at a time: three float64 rows of a 150,000-word vocabulary each are 3.6 MB
NEAR_TIE = 0.25
"""Differing top tokens whose p1 - p2 is below this share of the file type's flip margin are near ties. Measured: a base
after 6 steps of training disagreed with its right Q8_0 export at 6 % of the positions, all with margins below 0.02."""


WHOLE_LOW, WHOLE_HIGH = 0.5, 1.5
"""Rounding bends what a short training changed: a right Q4_K_M export after 16 steps was measured at 0.835 [0.818, 0.853] in
its answers, and at 1.000 in its weights. Where the weights show the adapter whole, the answers may differ by so much; how far
rounding may move them is judged by the logits."""


PRECISE = 0.05
"""Half the width of a strength's interval that tells a whole adapter from half of one, whatever the file's noise."""


class Flip(NamedTuple):
    """A position where the most probable token differs."""

    golden: int
    """Index of the golden prompt."""
    position: int
    """Index in its completion."""
    tuned: int
    export: int
    margin: float
    """The tuned model's p1 - p2."""


@dataclass
class Positions:
    """Measures per teacher-forced position, over all goldens; KL and likelihoods in nats."""

    kl: list[float] = field(default_factory=list)
    """KL(tuned || export)."""
    kl_base: list[float] = field(default_factory=list)
    """KL(tuned || base): what the tuning changed."""
    margin: list[float] = field(default_factory=list)
    loss_tuned: list[float] = field(default_factory=list)
    loss_export: list[float] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    """The golden, or the further text, that each position belongs to."""
    together: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    largest_difference: float = 0.0
    """max |z_tuned - z_export| after centring under p(tuned)."""
    flips: list[Flip] = field(default_factory=list)

    def add(
        self,
        golden: int,
        tokens: list[int],
        tuned: npt.NDArray[np.float32],
        base: npt.NDArray[np.float32],
        export: npt.NDArray[np.float32],
    ) -> list[int]:
        """Take in one golden's positions; returns the export's most probable token at each.

        Args:
            golden: its number, or a number of its own for a further text.
            tokens: the completion's token ids.
            tuned, base, export: logits [len(tokens), vocabulary].
        """
        best: list[int] = []
        for start in range(0, len(tokens), CHUNK):
            part = slice(start, start + CHUNK)
            best += self._add(
                golden, start, tokens[part], (_double(tuned[part]), _double(base[part]), _double(export[part]))
            )
        return best

    def _add(
        self, golden: int, start: int, tokens: list[int], logits: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> list[int]:
        tuned, base, export = logits
        log_tuned, log_export = tuned.log_softmax(-1), export.log_softmax(-1)
        p = log_tuned.exp()
        difference = log_tuned - log_export
        kl = (p * difference).sum(-1)
        self.kl += kl.clamp_min(0).tolist()
        self.kl_base += (p * (log_tuned - base.log_softmax(-1))).sum(-1).clamp_min(0).tolist()
        # Python's `max` would drop a NaN.
        largest = (difference - kl[:, None]).abs().max().item()
        self.largest_difference = float(np.maximum(self.largest_difference, largest))
        chosen = torch.tensor(tokens)[:, None]
        self.loss_tuned += (-log_tuned.gather(-1, chosen)[:, 0]).tolist()
        self.loss_export += (-log_export.gather(-1, chosen)[:, 0]).tolist()
        together, alone = moments(tuned, base, export)
        self.text += [golden] * len(tokens)
        self.together += together.tolist()
        self.alone += alone.tolist()
        top = p.topk(2, dim=-1)
        margins = (top.values[:, 0] - top.values[:, 1]).tolist()
        self.margin += margins
        wanted, found = top.indices[:, 0].tolist(), export.argmax(-1).tolist()
        self.flips += [
            Flip(golden, start + i, w, f, m) for i, (w, f, m) in enumerate(zip(wanted, found, margins)) if w != f
        ]
        return [int(token) for token in found]

    @property
    def broken(self) -> int:
        """Positions where a logit is no number."""
        return int((~np.isfinite([self.kl, self.together, self.alone])).any(0).sum())

    @property
    def top1(self) -> float:
        return 1 - len(self.flips) / len(self.kl)

    @property
    def perplexity_ratio(self) -> float:
        return float(np.exp(np.mean(self.loss_export) - np.mean(self.loss_tuned)))

    @property
    def strength(self) -> Strength | None:
        return strength(np.array(self.together), np.array(self.alone), np.array(self.text))


def _double(rows: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float64))


def logits_check(positions: Positions, limits: Limits, heat: list[dict[str, Any]] | None = None) -> Check:
    """Near enough to the tuned model? Mean and p99 KL, top-1 agreement, confident flips, perplexity ratio.

    Args:
        heat: the KL along some goldens, for whoever draws it; see `toolkit.parity.heat`.
    """
    kl = np.array(positions.kl)
    count = len(kl)
    confident = [flip for flip in positions.flips if flip.margin > limits.flip_margin]
    # A near tie is decided by the last bits, and a flat model has many: they say nothing. One more position may differ.
    real = [flip for flip in positions.flips if flip.margin > limits.flip_margin * NEAR_TIE]
    top1_limit, floor = min(limits.top1, 1 - 1 / count), limits.floor
    measures = [
        lower_is_better("mean KL", float(kl.mean()), limits.mean_kl, floor.mean_kl if floor else None, "nats"),
        lower_is_better("p99 KL", float(np.quantile(kl, 0.99)), limits.p99_kl, floor.p99_kl if floor else None, "nats"),
        Measure(name="max KL", value=float(kl.max()), unit="nats"),
        Measure(name="max |logit difference|", value=positions.largest_difference),
        Measure(name="top-1 agreement", value=positions.top1, floor=floor.top1 if floor else None),
        higher_is_better("top-1 agreement but for near ties", 1 - len(real) / count, top1_limit, 1.0),
        lower_is_better("confident flips", len(confident), limits.flips_allowed * count, 0),
        lower_is_better("perplexity ratio", positions.perplexity_ratio, limits.perplexity_ratio, 1.0),
    ]
    details = {
        "positions": count,
        "flip_margin": limits.flip_margin,
        "floors_measured_on": floor.measured_on if floor else "",
        "flips": [flip._asdict() for flip in sorted(positions.flips, key=lambda f: -f.margin)[:20]],
        "heat": heat or [],
    }
    broken = [m.told() for m in measures if m.verdict == "fail"]
    message = "; ".join(broken) if broken else f"mean KL {kl.mean():.1e}, top-1 {positions.top1:.1%}"
    if positions.broken:
        message = _no_numbers(positions)
    return Check.of("logits", measures, message, details)


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
        return Check(name="strength", verdict="fail", message=_no_numbers(positions), details=details)
    found = positions.strength
    if found is None:
        return Check(
            name="strength",
            verdict="inconclusive",
            message="the tuning changed nothing on the goldens, or no more than rounding does",
            details=details,
        )
    low, high = limits.strength_low, limits.strength_high
    wanted = f"wanted within [{low:g}, {high:g}]"
    inside = low <= found.low and found.high <= high
    outside = found.high < low or found.low > high
    precise = found.half_width <= PRECISE
    verdict: Verdict = "fail" if outside else "pass" if inside and (power >= POWER or precise) else "inconclusive"
    said = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], {wanted}"
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


def _no_numbers(positions: Positions) -> str:
    return f"at {positions.broken} of {len(positions.kl)} positions the probabilities are no numbers"


def _needed(found: Strength, limits: Limits, positions: int) -> str:
    room = min(found.value - limits.strength_low, limits.strength_high - found.value)
    if room <= 0 or found.half_width <= 0:
        return "more golden prompts, or a longer training, would decide"
    # The interval narrows with the square root of the number of positions.
    needed = int(positions * max((found.half_width / room) ** 2, 1.5)) + 1
    return f"about {needed} positions would decide (now {positions}): add golden prompts"
