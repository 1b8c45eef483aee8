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
SMALLEST_EFFECT = 1e-9
"""Mean E_p[d_t ** 2], in squared nats, below which d_t is what float32 rounds, and no slope on it means anything: two float32
engines differ by some 2e-11 (twice the mean KL of F32 in docs/certificate.md, "Floors")."""
_AT_ONCE = 50
Positions = npt.NDArray[np.float64]


class Strength(NamedTuple):
    """A slope and its 95 % interval, by bootstrap."""

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


def strength(
    together: Positions, alone: Positions, texts: npt.NDArray[np.int64] | None = None, seed: int = SEED
) -> Strength | None:
    """The slope over all positions with its bootstrap interval; None when the tuning changed no more than rounding does.

    Positions of one text depend on each other, so whole texts are drawn (a cluster bootstrap). Where there are few texts that
    alone would be too narrow, so single positions are drawn as well, and the wider limits count.

    Args:
        together: E_p[d_t d_e] per position.
        alone: E_p[d_t ** 2] per position.
        texts: number of the text that each position belongs to; None: every position stands for itself.
    """
    if len(alone) == 0 or not alone.mean() > SMALLEST_EFFECT:
        return None
    single = np.arange(len(alone))
    limits = [_interval(together, alone, group, seed) for group in (single, texts) if group is not None]
    return Strength(float(together.sum() / alone.sum()), min(low for low, _ in limits), max(high for _, high in limits))


def _interval(together: Positions, alone: Positions, texts: npt.NDArray[np.int64], seed: int) -> tuple[float, float]:
    _, group = np.unique(texts, return_inverse=True)
    sums, sums_alone = np.bincount(group, together), np.bincount(group, alone)
    random = np.random.default_rng(seed)
    slopes: list[npt.NDArray[np.float64]] = []
    for _ in range(RESAMPLES // _AT_ONCE):
        chosen = random.integers(0, len(sums), (_AT_ONCE, len(sums)))
        totals = sums_alone[chosen].sum(axis=1)
        slopes.append(sums[chosen].sum(axis=1)[totals > 0] / totals[totals > 0])
    low, high = np.quantile(np.concatenate(slopes), [0.025, 0.975])
    return float(low), float(high)
