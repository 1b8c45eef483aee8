"""What an export may differ by, per file type. Every number has a reason; a certificate prints value and limit side by side.

Limits leave room above the floors (what right exports were measured at: `toolkit.parity.floors`), and stay below the smallest
damage that they are there to catch.

Every limit is meant for all texts, and is judged on a sample of them: see `toolkit.parity.sample`.

Strength bands: logits are not linear in alpha, so a tenth of the adapter missing reads 0.90 to 0.95 in the answers. Right files
of 8 bits and more read 0.99 to 1.01, and there the answers tell the one from the other. Of 4 to 6 bits they read 0.83 to 1.08:
there the bands only tell a lost or a doubled adapter, and the weights have to tell the rest. At Q8_0 the KL of a tenth missing is
inside a small model's limit: only the strength sees it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.errors import DataError
from toolkit.models.gguf_file import GGUFHeader
from toolkit.parity.floors import Floor, floor_of

SMALL_MODEL = 1_000_000_000
"""Models with fewer parameters lose more in quantization: their limits are wider, and the certificate says so."""
MANY_FALLBACKS = 0.2
DAMAGED_TIMES = 4.0
"""So many times its limit, a mean KL or the logarithm of a perplexity ratio has to be excluded for a pass."""
DAMAGED_SHARE = 0.15
"""So much beyond its limit, a share of positions has to be excluded for a pass."""


@dataclass(frozen=True)
class Limits:
    """Limits of one file type. KL in nats per position, tuned against export."""

    mean_kl: float
    p99_kl: float
    top1: float
    """Smallest share of positions with the same most probable token."""
    flip_margin: float
    """A differing top token counts as confident when the tuned model's p1 - p2 is above this."""
    perplexity_ratio: float
    strength_low: float
    strength_high: float
    stops: float
    """Share of the tuned model's self-ended answers that the export should have too; see `toolkit.parity.checks.stops`."""
    flips_allowed: float = 0.002
    """Share of positions that may flip confidently: hardly any, except where 3 bits or fewer make it a matter of course."""
    tells_tenth: bool = False
    """Whether a strength in the answers within the band proves that no tenth of the adapter is missing; else rounding bends it by
    as much as that, and only a strength outside tells something."""
    behind_pictures: float | None = None
    """Largest difference of a logit behind pictures; see `BEHIND_PICTURES`. None: it is told, not judged."""
    floor: Floor | None = None
    """What a right export of a model of this size was measured at."""


_TABLE = {
    "F32": Limits(1e-6, 1e-5, 0.999, 0.001, 1.0001, 0.99, 1.01, 0.9, tells_tenth=True),
    "F16": Limits(1e-4, 1e-3, 0.995, 0.02, 1.001, 0.99, 1.01, 0.9, tells_tenth=True),
    "BF16": Limits(1e-3, 1e-2, 0.99, 0.05, 1.003, 0.98, 1.02, 0.9, tells_tenth=True),
    "Q8_0": Limits(3e-3, 3e-2, 0.97, 0.10, 1.005, 0.98, 1.02, 0.8, tells_tenth=True),
    "Q6_K": Limits(1e-2, 0.1, 0.955, 0.20, 1.01, 0.88, 1.12, 0.8),
    "Q5_K_M": Limits(2e-2, 0.2, 0.94, 0.30, 1.02, 0.82, 1.18, 0.7),
    "Q5_K_S": Limits(2e-2, 0.2, 0.94, 0.30, 1.02, 0.82, 1.18, 0.7),
    "Q5_1": Limits(2e-2, 0.2, 0.94, 0.30, 1.02, 0.82, 1.18, 0.7),
    "Q5_0": Limits(3e-2, 0.3, 0.93, 0.30, 1.03, 0.82, 1.18, 0.7),
    "Q4_K_M": Limits(5e-2, 0.5, 0.90, 0.50, 1.04, 0.80, 1.20, 0.6),
    "Q4_K_S": Limits(6e-2, 0.6, 0.89, 0.50, 1.05, 0.80, 1.20, 0.6),
    "IQ4_XS": Limits(6e-2, 0.6, 0.89, 0.50, 1.05, 0.80, 1.20, 0.6),
    "IQ4_NL": Limits(6e-2, 0.6, 0.89, 0.50, 1.05, 0.80, 1.20, 0.6),
    "Q4_1": Limits(7e-2, 0.7, 0.88, 0.50, 1.06, 0.80, 1.20, 0.6),
    "Q4_0": Limits(8e-2, 0.8, 0.87, 0.50, 1.07, 0.80, 1.20, 0.6),
    "Q3_K_L": Limits(0.11, 1.3, 0.85, 0.60, 1.10, 0.70, 1.30, 0.5, flips_allowed=0.01),
    "Q3_K_M": Limits(0.13, 1.5, 0.83, 0.60, 1.12, 0.70, 1.30, 0.5, flips_allowed=0.01),
    "Q3_K_S": Limits(0.20, 2.2, 0.80, 0.60, 1.18, 0.70, 1.30, 0.5, flips_allowed=0.01),
    "IQ3_XS": Limits(0.18, 2.0, 0.81, 0.60, 1.16, 0.70, 1.30, 0.5, flips_allowed=0.01),
    "IQ3_XXS": Limits(0.22, 2.4, 0.79, 0.60, 1.20, 0.70, 1.30, 0.5, flips_allowed=0.01),
    "Q2_K": Limits(0.40, 4.0, 0.70, 0.60, 1.40, 0.60, 1.40, 0.4, flips_allowed=0.03),
    "IQ2_M": Limits(0.40, 4.0, 0.70, 0.60, 1.40, 0.60, 1.40, 0.4, flips_allowed=0.03),
}


BEHIND_PICTURES, FLOOR_BEHIND_PICTURES = 1.0, 0.3
"""Largest difference of a logit behind pictures in golden answers, and what right F16 files of `make car_insurance` came to (0.2
and 0.3), whose vision part llama.cpp computes within 8.2e-3; with the base's mmproj 14. Their mean KL was 4e-5 nats in golden
answers, and 2.3e-4 with texts put together anew (`toolkit.parity.more`), where the model is unsure, one logit differed by 1.7.

Measured on random models (`python -m tests.bench.behind_pictures`; Qwen2-VL's shape), by file type:

    mmproj             F32      F16      BF16     Q8_0     Q6_K     Q4_K_M
    right              0.0057   0.014    0.082    0.27     0.75     2.3
    of the base        1.4      1.4      1.5      1.4      1.8      3.0
    of another model   10       10       10       10       10       10
"""
TELLS_EYES = ("F32", "F16")
"""File types of which it is judged. In others rounding alone moves single logits by as much as a stale mmproj does: of right
files of trained models, with text, by up to 3 at Q8_0 and 12 at Q4_K_M."""

_FTYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 22: "IQ3_XS", 23: "IQ3_XXS",
    25: "IQ4_NL", 29: "IQ2_M", 30: "IQ4_XS", 32: "BF16",
}  # fmt: skip
"""`general.file_type`: llama.cpp's `llama_ftype`, include/llama.h."""


_NAMED_BY_TENSORS = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Of the file types that share a tensor type, the usual one."""


def file_type_of(header: GGUFHeader, path: Path) -> str:
    """A GGUF's file type: what it says of itself, or else the commonest type of its matrices.

    Raises:
        DataError: one that there are no limits for.
    """
    number = header.metadata.get("general.file_type")
    matrices = Counter(tensor.type for tensor in header.tensors if len(tensor.shape) > 1)
    if not matrices:
        raise DataError(
            f"{path} holds no matrix, so it is no whole model", "Name the model's file, or convert it again."
        )
    commonest = matrices.most_common(1)[0][0]
    named = _FTYPES.get(number, "") if isinstance(number, int) else ""
    found = named or _NAMED_BY_TENSORS.get(commonest, commonest)
    if found not in _TABLE:
        raise DataError(f"{path} is of the type {found}, which there are no limits for", f"Known: {', '.join(_TABLE)}.")
    return found


def fallback_share(header: GGUFHeader, file_type: str) -> float:
    """Share of a file's tensors that could not take its type's own quantization: rows that are no multiple of 256 (0…1)."""
    if not file_type.endswith(("_K", "_K_S", "_K_M", "_K_L", "_XS", "_XXS", "IQ2_M")):
        return 0.0
    return sum(len(t.shape) > 1 and t.shape[0] % 256 != 0 for t in header.tensors) / max(1, len(header.tensors))


def limits_for(file_type: str, parameters: int, fallback_share: float, pictures: bool = False) -> tuple[Limits, str]:
    """Limits of a file type, and why they were widened (empty when they were not).

    Small models lose more only in quantized types: at 16 bits and above they stay as close as large ones.

    Args:
        parameters: of the model.
        fallback_share: share of the file's tensors that could not take the type's own quantization (0…1).
        pictures: goldens show some, of which llama.cpp computes what is seen less exactly than it computes texts.
    """
    reasons = []
    if parameters < SMALL_MODEL:
        reasons.append(f"{parameters / 1e6:.0f} M parameters, under 1000 M")
    if fallback_share > MANY_FALLBACKS:
        reasons.append(f"{fallback_share:.0%} of the tensors fell back to another quantization")
    limits = replace(
        _TABLE[file_type],
        floor=floor_of(file_type, small=bool(reasons)),
        behind_pictures=BEHIND_PICTURES if file_type in TELLS_EYES else None,
    )
    if pictures and file_type in ("F32", "F16"):
        seen = _TABLE["BF16"]
        limits = replace(
            limits, mean_kl=seen.mean_kl, p99_kl=seen.p99_kl, top1=seen.top1, flip_margin=seen.flip_margin,
            perplexity_ratio=seen.perplexity_ratio,
        )  # fmt: skip
        return limits, "as BF16: goldens show pictures, and what llama.cpp sees in them is exact to some thousandths"
    if not reasons or file_type in ("F32", "F16", "BF16"):
        return limits, ""
    wider = replace(
        limits,
        mean_kl=limits.mean_kl * 5,
        p99_kl=limits.p99_kl * 5,
        top1=1 - (1 - limits.top1) * 2,
        flip_margin=min(limits.flip_margin * 2, 0.6),
        perplexity_ratio=1 + (limits.perplexity_ratio - 1) * 3,
    )
    return wider, f"KL x 5, disagreement x 2, flip margin x 2, (perplexity ratio - 1) x 3: {'; '.join(reasons)}"


_LARGEST_REST = {
    "F64": 1e-5, "F32": 1e-5, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 0.012, "Q6_K": 0.03, "Q5_K": 0.06, "Q5_1": 0.06, "Q5_0": 0.07,
    "Q4_K": 0.12, "Q4_1": 0.12, "Q4_0": 0.14, "IQ4_NL": 0.13, "IQ4_XS": 0.13, "Q3_K": 0.25, "IQ3_S": 0.25, "IQ3_XXS": 0.3,
    "Q2_K": 0.45,
}  # fmt: skip
"""Largest rest of a right tensor (`toolkit.parity.sums`), as a share of its size, by stored type.

A file that llama.cpp rounded leaves none: it is rounded anew, to the same bytes (BF16 made by way of F16: 0.0015). What an
importance matrix leaves, measured as the largest of 14 trained matrices (`python -m tests.bench.faults strength`):

    Q6_K 0.023   Q5_K 0.051   Q5_1 0.054   Q5_0 0.051   Q4_K 0.098   Q4_1 0.110   Q4_0 0.102   IQ4_NL 0.093   IQ4_XS 0.094
    Q3_K 0.173   Q2_K 0.366
"""


def largest_rest(stored: str) -> float:
    """What rounding to a stored type (of safetensors or ggml) may leave of a tensor; see `toolkit.parity.sums.Sums`."""
    return _LARGEST_REST.get(stored, 0.6)
