"""How far an export's next-token distributions are from the tuned model's, position by position."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.limits import DAMAGED_SHARE, DAMAGED_TIMES, FLOOR_BEHIND_PICTURES, Limits
from toolkit.parity.sample import Interval, by_text, mean, mean_difference, share
from toolkit.parity.strength import Strength, moments, strength

AT_ONCE = 2**19
"""Logits that are compared together: so few take half of the time that ten times as many take, with vocabularies of 512 tokens
and of 256,000 alike."""
MEAN_KL, GAIN_KEPT = "mean KL", "share of the gain kept"
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
    """Of the tuned model's favourite: in its own answers that is the token that it chose, and it is defined in any text."""
    loss_export: list[float] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    """The golden, or the further text, that each position belongs to."""
    together: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    largest_difference: float = 0.0
    """max |z_tuned - z_export| after centring under p(tuned)."""
    largest_behind_pictures: float | None = None
    """The same of golden answers behind pictures; None: nothing stands behind any. Further texts are left out: where a model is
    unsure of a picture, the last bits of what it sees move single logits several times as far."""
    flips: list[Flip] = field(default_factory=list)
    flipped: list[int] = field(default_factory=list)
    """Of each flip: the index of its position in the lists above."""

    def add(
        self,
        golden: int,
        tokens: list[int],
        tuned: npt.NDArray[np.float32],
        base: npt.NDArray[np.float32],
        export: npt.NDArray[np.float32],
        behind_pictures: bool = False,
    ) -> list[int]:
        """Take in one golden's positions; returns the export's most probable token at each.

        Args:
            golden: its number, or a number of its own for a further text.
            tokens: the completion's token ids.
            tuned, base, export: logits [len(tokens), vocabulary].
            behind_pictures: the prompt shows some.
        """
        best: list[int] = []
        before, self.largest_difference = self.largest_difference, 0.0
        together = max(1, AT_ONCE // tuned.shape[1])
        for start in range(0, len(tokens), together):
            part = slice(start, start + together)
            best += self._add(
                golden, start, tokens[part], (_double(tuned[part]), _double(base[part]), _double(export[part]))
            )
        if behind_pictures:
            self.largest_behind_pictures = _larger(self.largest_behind_pictures or 0.0, self.largest_difference)
        self.largest_difference = _larger(before, self.largest_difference)
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
        largest = (difference - kl[:, None]).abs().max().item()
        self.largest_difference = _larger(self.largest_difference, largest)
        together, alone = moments(tuned, base, export)
        self.text += [golden] * len(tokens)
        self.together += together.tolist()
        self.alone += alone.tolist()
        top = p.topk(2, dim=-1)
        margins = (top.values[:, 0] - top.values[:, 1]).tolist()
        before = len(self.margin)
        self.margin += margins
        favourite = top.indices[:, :1]
        self.loss_tuned += (-log_tuned.gather(-1, favourite)[:, 0]).tolist()
        self.loss_export += (-log_export.gather(-1, favourite)[:, 0]).tolist()
        wanted, found = favourite[:, 0].tolist(), export.argmax(-1).tolist()
        differing = [i for i, (w, f) in enumerate(zip(wanted, found)) if w != f]
        self.flips += [Flip(golden, start + i, wanted[i], found[i], margins[i]) for i in differing]
        self.flipped += [before + i for i in differing]
        return [int(token) for token in found]

    def join(self, more: Positions) -> None:
        """Take in the positions of further texts, which get numbers of their own."""
        first, before = max(self.text, default=-1) + 1, len(self.kl)
        for name in ("kl", "kl_base", "margin", "loss_tuned", "loss_export", "together", "alone"):
            getattr(self, name).extend(getattr(more, name))
        self.text += [first + text for text in more.text]
        self.flips += [flip._replace(golden=first + flip.golden) for flip in more.flips]
        self.flipped += [before + index for index in more.flipped]
        self.largest_difference = _larger(self.largest_difference, more.largest_difference)

    @property
    def texts(self) -> int:
        """How many texts the positions are of."""
        return len(set(self.text))

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
    def gain_kept(self) -> float:
        """The likelihood that the tuned model's texts gained by tuning is KL(tuned || base), and what the export loses of it is
        KL(tuned || export): the share that stays. 1 where tuning changed nothing and nothing is lost."""
        lost, gained = float(np.mean(self.kl)), float(np.mean(self.kl_base))
        return 1 - lost / gained if gained > 0 else float(lost == 0)

    @property
    def strength(self) -> Strength | None:
        return strength(np.array(self.together), np.array(self.alone), np.array(self.text))


def _larger(one: float, other: float) -> float:
    """Python's `max` would drop what is no number."""
    return float(np.maximum(one, other))


def _double(rows: npt.NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float64))


def logits_check(positions: Positions, limits: Limits, heat: list[dict[str, Any]] | None = None) -> Check:
    """Near enough to the tuned model? Mean and p99 KL, top-1 agreement, confident flips, perplexity ratio.

    Each is judged as the positions allow: see `toolkit.parity.sample`.

    Args:
        heat: the KL along some goldens, for whoever draws it; see `toolkit.parity.heat`.
    """
    kl = np.array(positions.kl)
    judged = _judged(positions, limits)
    needed = max((one.needed for one in judged if one.measure.verdict == "inconclusive"), default=0)
    measures = [
        *(one.measure for one in judged),
        Measure(name=GAIN_KEPT, value=positions.gain_kept),
        Measure(name="max KL", value=float(kl.max()), unit="nats"),
        Measure(name="max |logit difference|", value=positions.largest_difference),
        *_behind_pictures(positions, limits),
        Measure(name="top-1 agreement", value=positions.top1, floor=limits.floor.top1 if limits.floor else None),
    ]
    details = {
        "positions": len(kl),
        "texts": positions.texts,
        "texts_needed": needed,
        "flip_margin": limits.flip_margin,
        "floors_measured_on": limits.floor.measured_on if limits.floor else "",
        "flips": [flip._asdict() for flip in sorted(positions.flips, key=lambda f: -f.margin)[:20]],
        "heat": heat or [],
    }
    broken = [m.told() for m in measures if m.verdict == "fail"]
    message = "; ".join(broken) if broken else f"mean KL {kl.mean():.1e}, top-1 {positions.top1:.1%}"
    if needed and not broken:
        open_still = "; ".join(m.told() for m in measures if m.verdict == "inconclusive")
        message = f"too few texts to tell: {open_still}; about {needed} would decide (now {positions.texts}): add golden prompts"
    if positions.broken:
        message = no_numbers(positions)
    return Check.of("logits", measures, message, details)


def _behind_pictures(positions: Positions, limits: Limits) -> list[Measure]:
    """The most probable token hardly notices a wrong mmproj; where rounding leaves room to tell, the largest difference does."""
    name, found = "max |logit difference| behind pictures", positions.largest_behind_pictures
    if found is None:
        return []
    if limits.behind_pictures is None:
        return [Measure(name=name, value=found)]
    return [lower_is_better(name, found, limits.behind_pictures, FLOOR_BEHIND_PICTURES)]


class _Judged(NamedTuple):
    measure: Measure
    needed: int
    """Texts that would decide, about."""


def _judged(positions: Positions, limits: Limits) -> list[_Judged]:
    kl, texts, margins = np.array(positions.kl), np.array(positions.text), np.array(positions.margin)
    sizes = by_text(texts, np.ones(len(kl)))
    differs = np.zeros(len(kl), dtype=bool)
    differs[positions.flipped] = True

    def judge(
        name: str, found: Interval, limit: float, damage: float, shown: Callable[[float], float] = float, one: float = 0.0,
        **told: Any,
    ) -> _Judged:  # fmt: skip
        low, high = sorted((shown(found.low), shown(found.high)))
        measure = Measure(
            name=name, value=shown(found.value), low=low, high=high, limit=shown(max(limit, one)),
            verdict=found.verdict(limit, damage, one), **told,
        )  # fmt: skip
        return _Judged(measure, found.needed(len(sizes), limit, damage))

    def judge_share(
        name: str, found: npt.NDArray[np.bool_], allowed: float, shown: Callable[[float], float] = float, **told: Any
    ) -> _Judged:
        counted = share(by_text(texts, found), sizes)
        return judge(name, counted, allowed, allowed + DAMAGED_SHARE, shown, 1 / len(kl), **told)

    floor, log_ratio = limits.floor, math.log(limits.perplexity_ratio)
    losses = mean_difference(by_text(texts, positions.loss_export), by_text(texts, positions.loss_tuned), sizes)
    p99 = judge_share("p99 KL", kl > limits.p99_kl, 0.01, unit="nats", floor=floor.p99_kl if floor else None)
    largest = {"value": float(np.quantile(kl, 0.99, method="lower")), "limit": limits.p99_kl, "low": None, "high": None}
    return [
        judge(MEAN_KL, mean(by_text(texts, kl), sizes), limits.mean_kl, limits.mean_kl * DAMAGED_TIMES,
              unit="nats", floor=floor.mean_kl if floor else None),
        p99._replace(measure=p99.measure.model_copy(update=largest)),
        # A near tie is decided by the last bits, and a flat model has many: they say nothing.
        judge_share("top-1 agreement but for near ties", differs & (margins > limits.flip_margin * NEAR_TIE), 1 - limits.top1,
                    lambda differing: 1 - differing, floor=1.0),
        judge_share("confident flips", differs & (margins > limits.flip_margin), limits.flips_allowed,
                    lambda flipped: flipped * len(kl), floor=0.0),
        judge("perplexity ratio", losses, log_ratio, log_ratio * DAMAGED_TIMES,
              lambda nats: math.exp(min(nats, 700.0)), floor=1.0),
    ]  # fmt: skip


def no_numbers(positions: Positions) -> str:
    return f"at {positions.broken} of {len(positions.kl)} positions the probabilities are no numbers"
