"""Adapter strength: is what the tuning changed there in the export, whole, once?

With logits z at each teacher-forced position, d_t = z_tuned - z_base is what the tuning changed and
d_e = z_export - z_base what the export changed. Centred under p = softmax(z_tuned) (which takes the normalizing
constants out),

    strength = sum_positions E_p[d_t d_e] / sum_positions E_p[d_t ** 2],

the slope of d_e on d_t: 1 when the adapter is there whole, 0 when it is lost, about 1/2 at half its scale. Unlike KL, it
hardly moves with quantization noise, which is mostly uncorrelated with d_t. What correlation remains is its bias: up to
0.05 at 4 bits, which is why the accepted bands widen with fewer bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

SEED = 20261
RESAMPLES = 2000
Positions = npt.NDArray[np.float64]


class Strength(NamedTuple):
    """A slope and its 95 % interval, by bootstrap over positions."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def moments(tuned: torch.Tensor, base: torch.Tensor, export: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E_p[d_t d_e] and E_p[d_t ** 2] of each position, float64 [positions].

    Args:
        tuned, base, export: float64 logits [positions, vocabulary].
    """
    p = tuned.softmax(-1)
    by_tuning, by_export = tuned - base, export - base
    by_tuning = by_tuning - (p * by_tuning).sum(-1, keepdim=True)
    by_export = by_export - (p * by_export).sum(-1, keepdim=True)
    weighted = p * by_tuning
    return (weighted * by_export).sum(-1), (weighted * by_tuning).sum(-1)


def strength(together: Positions, alone: Positions, seed: int = SEED) -> Strength | None:
    """The slope over all positions with its bootstrap interval; None when the tuning changed nothing.

    Args:
        together: E_p[d_t d_e] per position.
        alone: E_p[d_t ** 2] per position.
    """
    if len(alone) == 0 or not alone.sum() > 0:
        return None
    random = np.random.default_rng(seed)
    slopes = []
    for _ in range(RESAMPLES):
        chosen = random.integers(0, len(alone), len(alone))
        total = alone[chosen].sum()
        if total > 0:
            slopes.append(together[chosen].sum() / total)
    low, high = np.quantile(slopes, [0.025, 0.975])
    return Strength(float(together.sum() / alone.sum()), float(low), float(high))
