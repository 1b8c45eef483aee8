"""How far an export's next-token distributions are from the tuned model's, position by position."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from toolkit.parity.certificate import Check, Measure, higher_is_better, lower_is_better
from toolkit.parity.limits import Limits
from toolkit.parity.strength import Strength, moments, strength

CHUNK = 32  # positions at a time: three float64 rows of a 150,000-word vocabulary each are 3.6 MB
NEAR_TIE = 0.25
"""Differing top tokens whose p1 - p2 is below this share of the file type's flip margin are near ties. Measured: a base
after 6 steps of training disagreed with its right Q8_0 export at 6 % of the positions, all with margins below 0.02."""


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
        message = no_numbers(positions)
    return Check.of("logits", measures, message, details)


def no_numbers(positions: Positions) -> str:
    return f"at {positions.broken} of {len(positions.kl)} positions the probabilities are no numbers"
