"""How much of a tuning is in an export's weights: strength and rest, from sums over the weights.

With q the rounding of the export's stored type (and of the 16-bit file that it was made from), W_t the tuned and W_b the base's
weights as training saw them, d = W_t - W_b is what the adapter changes, D_t = q(W_t) - q(W_b) what is left of it when stored,
and D_e = W_e - q(W_b) what the export W_e changed. Two numbers tell exports apart:

    strength = <d, D_e> / <d, D_t>                1: the adapter is there whole, 0: lost, 1/2: at half its alpha
    rest     = |D_e - strength D_t| / max(|W_t|, |W_e|)   what is neither base nor adapter: another rounding, or damage

Both weights are rounded, because rounding has a direction: NF4 weights lie on a grid, and what Q4_K makes of a small step away
from it is, in the mean, larger than the step. Against unrounded weights a right Q4_K_M export was measured at a strength of 1.15,
and rounded without the 16 bits in between at 0.96. And both are laid along d, not along D_t: D_t holds rounding errors too, which
another rounding than ours (one with an importance matrix) does not share (an instrument, as statistics calls it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

AT_ONCE = 2**16
"""Weights, so few that their differences stay in a core's cache."""
LARGEST_SLOPE = 3.0
"""A larger strength than this is no wrong scale any more, and excuses no larger rest."""


@dataclass
class Sums:
    """Sums over weights; sums of tensors add up to those of a layer or a model.

    o = the base's original weights - those that it was trained on, O = what the export would hold besides D_t if it had been
    merged onto the original ones, stored; both 0 where the base was trained on as it is.
    """

    count: int = 0
    tuned: float = 0.0
    """|W_t| ** 2"""
    export: float = 0.0
    """|W_e| ** 2"""
    plain: float = 0.0
    """<d, d>"""
    along: float = 0.0
    """<d, D_t>"""
    along_export: float = 0.0
    """<d, D_e>"""
    along_original: float = 0.0
    """<d, O>"""
    across: float = 0.0
    """<o, D_t>"""
    across_export: float = 0.0
    """<o, D_e>"""
    across_original: float = 0.0
    """<o, O>"""
    alone: float = 0.0
    """<D_t, D_t>"""
    together: float = 0.0
    """<D_t, D_e>"""
    changed: float = 0.0
    """<D_e, D_e>"""
    original: float = 0.0
    """<O, O>"""
    tuned_original: float = 0.0
    """<D_t, O>"""
    export_original: float = 0.0
    """<D_e, O>"""

    def __iadd__(self, other: Sums) -> Sums:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def strength(self) -> float | None:
        """None where the tuning changed nothing, or nothing that is left when stored."""
        return self._slopes[0] if self.along > 0 else None

    @property
    def original_share(self) -> float:
        """1 when the adapter stands on the original weights instead of the rounded ones that it was trained on."""
        return self._slopes[1]

    @property
    def strength_error(self) -> float:
        """Two standard errors of the strength, were the rest without direction."""
        return 2 * math.sqrt(self._rest * self.plain / self.count) / self.along if self.along > 0 else math.inf

    @property
    def rest(self) -> float:
        """Root of what is neither base nor adapter, as a share of the larger of the tuned and the export's weights.

        Infinite where a weight is no number.

        With three roundings of the error n, D_e - s D_t holds (1 + s² + (1 - s)²) n²: at s = 2 three times as much as at 1.
        """
        if not math.isfinite(self._rest):
            return math.inf
        if self.tuned <= 0:
            return math.sqrt(self.changed)
        slope = min(max(self.strength or 0.0, 0.0), LARGEST_SLOPE)
        roundings = max(1.0, (1 + slope**2 + (1 - slope) ** 2) / 2)
        return math.sqrt(self._rest / max(self.tuned, self.export) / roundings)

    @property
    def difference(self) -> float:
        """|W_e - W_t| / |W_t|."""
        return math.sqrt(max(0.0, self.changed - 2 * self.together + self.alone) / self.tuned) if self.tuned else 0.0

    @property
    def _slopes(self) -> tuple[float, float]:
        """(s, m) of D_e = s D_t + m O + rest, where the rest has no part along d and none along o."""
        alone = self.along_export / self.along if self.along > 0 else 0.0
        if self.original <= 0 or self.across_original <= 0:
            return alone, 0.0
        determinant = self.along * self.across_original - self.along_original * self.across
        if (
            determinant <= 1e-9 * self.along * self.across_original
        ):  # nothing was tuned here, or both lie along one line
            return alone, 0.0 if self.along > 0 else self.across_export / self.across_original
        strength = self.along_export * self.across_original - self.along_original * self.across_export
        share = self.along * self.across_export - self.across * self.along_export
        return strength / determinant, share / determinant

    @property
    def _rest(self) -> float:
        s, m = self._slopes
        explained = s * self.together + m * self.export_original
        modelled = s * s * self.alone + 2 * s * m * self.tuned_original + m * m * self.original
        rest = self.changed - 2 * explained + modelled
        return max(0.0, rest) if math.isfinite(rest) else math.inf


def sums_of(
    base: torch.Tensor,
    tuned: torch.Tensor,
    export: torch.Tensor,
    direction: torch.Tensor,
    original: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Sums:
    """Sums of one tensor, or of some rows of it, float32.

    Args:
        base, tuned, export: as stored: q(W_b), q(W_t), W_e.
        direction: d = W_t - W_b, not rounded.
        original: the tuned weights on the base's original ones, as stored, and o, not rounded.
    """
    parts = [base, tuned, export, direction, *(original or ())]
    total = Sums()
    for part in zip(*(torch.split(weights.reshape(-1), AT_ONCE) for weights in parts)):
        # Differences of large sums: in float32 they would leave a rest of 1e-4 where there is none.
        total += _sums(*(weights.double() for weights in part))
    return total


def _sums(
    base: torch.Tensor, tuned: torch.Tensor, export: torch.Tensor, direction: torch.Tensor, *original: torch.Tensor
) -> Sums:
    by_tuning, by_export = tuned - base, export - base
    found = Sums(
        count=tuned.numel(), tuned=_dot(tuned, tuned), export=_dot(export, export), plain=_dot(direction, direction),
        along=_dot(direction, by_tuning), along_export=_dot(direction, by_export), alone=_dot(by_tuning, by_tuning),
        together=_dot(by_tuning, by_export), changed=_dot(by_export, by_export),
    )  # fmt: skip
    if original:
        onto, across = original[0] - tuned, original[1]
        found.along_original, found.across = _dot(direction, onto), _dot(across, by_tuning)
        found.across_export, found.across_original = _dot(across, by_export), _dot(across, onto)
        found.original, found.tuned_original = _dot(onto, onto), _dot(by_tuning, onto)
        found.export_original = _dot(by_export, onto)
    return found


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.dot(a, b).item()
