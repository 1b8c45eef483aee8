"""Noise floors: what exports that are known to be right were measured at, for every file type.

Two models stand for two kinds, and each is printed with what it was measured by:

- small: SmolLM2-135M as `make medical` tunes it (576 wide, so that most K-quants fall back): `python -m tests.bench.certificate`;
- wide: a trained Llama 256 wide, where every K-quant is real: `python -m tests.bench.faults types`.

They tell how large such a number is; another model may well come nearer to the limit, or stay below the floor.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Floor:
    """What a right export was measured at. KL in nats per position, tuned against export."""

    mean_kl: float
    p99_kl: float
    top1: float
    measured_on: str


_SMALL_ON, _WIDE_ON = "SmolLM2-135M", "a trained Llama 256 wide"

_SMALL = {
    "F32": (7.22e-12, 2.73e-11, 1),
    "F16": (3.14e-6, 1.33e-5, 0.997),
    "BF16": (0.000156, 0.000613, 0.995),
    "Q8_0": (0.00389, 0.015, 0.97),
    "Q6_K": (0.00954, 0.048, 0.925),
    "Q5_K_M": (0.0483, 0.191, 0.859),
    "Q5_K_S": (0.0625, 0.224, 0.849),
    "Q5_1": (0.0627, 0.249, 0.864),
    "Q5_0": (0.0673, 0.411, 0.849),
    "Q4_K_M": (0.0535, 0.295, 0.842),
    "Q4_K_S": (0.0842, 0.425, 0.854),
    "IQ4_XS": (0.255, 1.2, 0.693),
    "IQ4_NL": (0.263, 1.33, 0.683),
    "Q4_1": (0.217, 0.999, 0.701),
    "Q4_0": (0.341, 1.52, 0.666),
    "Q3_K_L": (0.143, 0.773, 0.779),
    "Q3_K_M": (0.169, 0.701, 0.754),
    "Q3_K_S": (0.422, 1.5, 0.593),
    "Q2_K": (0.422, 1.5, 0.593),
    "IQ3_XS": (0.194, 0.936, 0.744),
    "IQ3_XXS": (0.218, 0.912, 0.72),
    "IQ2_M": (0.514, 2.09, 0.605),
}
"""398 positions of 16 goldens. Of 4 bits and fewer only Q4_K_M and Q2_K pass: a model this small does lose too much in them."""

_WIDE = {
    "F32": (2.94e-13, 3.45e-12, 1),
    "F16": (1.05e-7, 8.89e-7, 1),
    "BF16": (7.37e-6, 9.28e-5, 1),
    "Q8_0": (6.83e-5, 0.000486, 0.994),
    "Q6_K": (0.000722, 0.0106, 1),
    "Q5_K_M": (0.00111, 0.0107, 0.994),
    "Q5_K_S": (0.00112, 0.0103, 0.994),
    "Q5_1": (0.00123, 0.013, 0.994),
    "Q5_0": (0.0018, 0.0164, 0.994),
    "Q4_K_M": (0.00443, 0.0496, 0.983),
    "Q4_K_S": (0.00532, 0.052, 0.989),
    "IQ4_XS": (0.00616, 0.0525, 0.989),
    "IQ4_NL": (0.00558, 0.0369, 1),
    "Q4_1": (0.0062, 0.0668, 0.994),
    "Q4_0": (0.00811, 0.12, 0.989),
    "Q3_K_L": (0.0129, 0.135, 0.972),
    "Q3_K_M": (0.0141, 0.126, 0.972),
    "Q3_K_S": (0.0215, 0.128, 0.972),
    "Q2_K": (0.193, 1.75, 0.933),
    "IQ3_XS": (0.0432, 0.378, 0.966),
    "IQ3_XXS": (0.0486, 0.537, 0.983),
    "IQ2_M": (0.0909, 1.64, 0.938),
}
"""178 positions; every type passes. Those that need an importance matrix have one of the rows that were learnt."""


def floor_of(file_type: str, small: bool) -> Floor:
    """The floor of a file type.

    Args:
        small: under a billion parameters, or most tensors too narrow for the type's own quantization.
    """
    return Floor(*(_SMALL if small else _WIDE)[file_type], _SMALL_ON if small else _WIDE_ON)
