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

from toolkit.parity.sample import MISSED, SURE, by_text, errors, spread, witnesses

SEED = 20261
SMALLEST_EFFECT = 1e-9
"""Mean E_p[d_t ** 2], in squared nats, below which d_t is what float32 rounds, and no slope on it means anything: two float32
engines differ by some 2e-11 (twice the mean KL of F32 in docs/certificate.md, "Floors")."""
Positions = npt.NDArray[np.float64]


class Strength(NamedTuple):
    """A slope, and how far off it may be by the chance of its texts."""

    value: float
    error: float
    """Standard error over texts."""
    texts: float
    """As many of one size would tell as much; see `toolkit.parity.sample.witnesses`."""

    @property
    def low(self) -> float:
        """Hardly below this: the end that has to exclude damage (`toolkit.parity.sample.MISSED`)."""
        return self.value - errors(self.texts, MISSED) * self.error

    @property
    def high(self) -> float:
        """Hardly above this."""
        return self.value + errors(self.texts, MISSED) * self.error

    def surely(self, low: float, high: float) -> bool:
        """Whether it lies outside low … high, beyond what the chance of the texts does in one of a thousand certificates."""
        wide = errors(self.texts, SURE) * self.error
        return self.value + wide < low or self.value - wide > high


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


def strength(together: Positions, alone: Positions, texts: npt.NDArray[np.int64] | None = None) -> Strength | None:
    """The slope over all positions, and its error; None when the tuning changed no more than rounding does.

    Args:
        together: E_p[d_t d_e] per position.
        alone: E_p[d_t ** 2] per position.
        texts: number of the text that each position belongs to: positions of one text depend on each other, so it is over texts
            that the slope is seen to vary. None: every position stands for itself.
    """
    if len(alone) == 0 or not alone.mean() > SMALLEST_EFFECT:
        return None
    texts = np.arange(len(alone)) if texts is None else texts
    shown, effect = by_text(texts, together), by_text(texts, alone)
    return Strength(float(shown.sum() / effect.sum()), spread(shown, effect), witnesses(effect))
