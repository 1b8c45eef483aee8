"""Does the language model get what the tuned model's eyes see: as many tokens, at the same places, with the same values?

The vision part in float32, as trained, against what llama.cpp's projector gives. Where training changed what is seen, how much of
the change is there is told too (the strength of the vision part); rounding to 16 bits leaves it within a percent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.parity.certificate import Check, Measure, lower_is_better

LARGEST_ERROR = 3e-2
"""Of what comes out, as a share of its size. Right ones were measured at 4e-4 to 8e-4 with random weights, and at 6e-3 to 0.0103
with those of `make car_insurance`, whose eyes are schooled to tell one colour from another sharply: ggml's convolution and its
attention are of 16 bits. Weights are judged besides, each by itself."""
FLOOR = 4.3e-4
STRENGTH_LOW, STRENGTH_HIGH = 0.95, 1.05
TELLS = 10.0
"""So many times what is off by rounding, what training changed has to be for its strength to be told."""

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SeenPicture:
    """What comes out for a golden picture, and what should."""

    image: str
    wanted_tokens: int
    found_tokens: int
    error: float
    """|found - tuned| / |tuned|; NaN: they cannot be laid beside each other."""
    effect: float
    """|tuned - base| / |tuned|: what training changed of what is seen."""
    together: float
    """<tuned - base, found - base>"""
    alone: float
    """<tuned - base, tuned - base>"""

    @classmethod
    def of(cls, image: str, tokens: int, tuned: Values, base: Values, found: Values) -> SeenPicture:
        """Compare; all [tokens, width]."""
        if tuned.shape != found.shape:
            return cls(image, tokens, len(found), math.nan, 0.0, 0.0, 0.0)
        right, before, made = (values.astype(np.float64) for values in (tuned, base, found))
        size, changed = float(np.linalg.norm(right)), right - before
        return cls(
            image, tokens, len(found), float(np.linalg.norm(made - right)) / size,
            float(np.linalg.norm(changed)) / size, float((changed * (made - before)).sum()), float((changed**2).sum()),
        )  # fmt: skip


@dataclass(frozen=True)
class ReadPrompt:
    """A golden prompt with its pictures, as llama.cpp reads it and as it was trained on."""

    name: str
    same_ids: bool
    wanted_positions: int
    """Position behind the prompt."""
    found_positions: int

    @property
    def right(self) -> bool:
        return self.same_ids and self.wanted_positions == self.found_positions

    def told(self) -> str:
        if not self.same_ids:
            return f"{self.name}: other token ids than in training"
        return f"{self.name}: {self.found_positions} positions, {self.wanted_positions} in training"


def projector_check(pictures: list[SeenPicture], prompts: list[ReadPrompt], has_base: bool) -> Check:
    """Judge what comes out for the golden pictures, and the prompts around them."""
    counts = [p for p in pictures if p.wanted_tokens != p.found_tokens]
    odd = [prompt for prompt in prompts if not prompt.right]
    error = max((p.error if math.isfinite(p.error) else math.inf for p in pictures), default=0.0)
    worst = max(pictures, key=lambda p: p.error if math.isfinite(p.error) else math.inf)
    measures = [
        lower_is_better("pictures with another number of tokens", len(counts), 0, 0),
        lower_is_better("prompts with other tokens or positions", len(odd), 0, 0),
        lower_is_better("largest relative error of a picture", error, LARGEST_ERROR, FLOOR),
    ]
    said = [f"{p.image} takes {p.found_tokens} tokens, {p.wanted_tokens} in training" for p in counts[:2]]
    said += [prompt.told() for prompt in odd[:2]]
    strength = _strength(pictures) if has_base else None
    if strength is not None:
        low = STRENGTH_LOW if strength <= 1 else STRENGTH_HIGH
        inside = STRENGTH_LOW <= strength <= STRENGTH_HIGH
        measures.append(
            Measure(
                name="strength in what is seen",
                value=strength,
                limit=low,
                floor=1.0,
                verdict="pass" if inside else "fail",
            )
        )
        if not inside:
            missing = "what was trained into the vision part is not in it" if abs(strength) < 0.1 else (
                f"what was trained into the vision part is there {strength:.3f} times"
            )  # fmt: skip
            said.append(f"{missing}: strength {strength:.3f}")
    if not said and error > LARGEST_ERROR:
        said.append(f"{worst.image} comes out otherwise: {error:.3g} of its size (limit {LARGEST_ERROR:g})")
    effect = max((p.effect for p in pictures), default=0.0)
    measures.append(Measure(name="what training changed of what is seen", value=effect))
    good = f"{len(pictures)} pictures come out as trained, within {error:.1e} of their size"
    if strength is not None:
        good += f"; strength {strength:.4f}"
    return Check.of("projector", measures, "; ".join(said) or good)


def _strength(pictures: list[SeenPicture]) -> float | None:
    """Slope of what the export changed on what training changed; None: training changed nothing that could be told apart."""
    alone = sum(p.alone for p in pictures)
    if alone <= 0 or max(p.effect for p in pictures) < TELLS * FLOOR:
        return None
    return sum(p.together for p in pictures) / alone
