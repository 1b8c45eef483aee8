"""What a comparison of weights says: is the adapter there, whole, once, on its own base, and is all else untouched?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from toolkit.lora import LoraAdapter
from toolkit.parity.certificate import Check, Measure, Suspect, lower_is_better
from toolkit.parity.limits import largest_rest
from toolkit.parity.weights import Comparison, Sums, TensorSums, layers_told

STRENGTH_LOW, STRENGTH_HIGH = 0.97, 1.03
"""Right exports were measured within 0.995 … 1.005 at every quantization; the smallest damage to be caught is a tenth."""
LAYER_LOW, LAYER_HIGH = 0.9, 1.1
"""Of a single layer, beyond twice its error: fewer weights tell less."""
LARGEST_ORIGINAL_SHARE = 0.1
"""0 on the weights that were trained on, 1 on the original ones."""


@dataclass(frozen=True)
class Expected:
    """What is known of the adapter's scale, to name a wrong one."""

    r: int = 0
    use_rslora: bool = False

    @classmethod
    def of(cls, adapter: LoraAdapter | None) -> Expected:
        """From an adapter's configuration; None: a whole model was trained."""
        if adapter is None:
            return cls()
        return cls(int(adapter.config["r"]), bool(adapter.config["use_rslora"]))

    def told(self, strength: float) -> str:
        """What a strength that is not 1 looks like."""
        if abs(strength) < 0.05:
            return "the adapter is not in it"
        if self.r > 1 and self.use_rslora and _near(strength, 1 / math.sqrt(self.r)):
            return f"the adapter was scaled as LoRA (alpha / r), but trained with rsLoRA: strength {strength:.3f}"
        if self.r > 1 and not self.use_rslora and _near(strength, math.sqrt(self.r)):
            return f"the adapter was scaled as rsLoRA (alpha / sqrt(r)), but trained as LoRA: strength {strength:.3f}"
        if _near(strength, 2):
            return f"the adapter was applied twice: strength {strength:.3f}"
        return f"the adapter is there {strength:.3f} times: alpha is wrong"


def _near(value: float, wanted: float) -> bool:
    return abs(value / wanted - 1) < 0.05


def weights_check(found: Comparison, expected: Expected) -> Check:
    """Judge an export's weights.

    Tensors that are missing or of another shape are the structure's fault, and are not judged here.
    """
    pooled = found.pooled(lambda tensor: tensor.touched)
    damaged = [t for t in found.tensors if t.sums.rest > largest_rest(t.type)]
    off = layers_off(found)
    measures = _measures(found, pooled, off, len(damaged))
    details: dict[str, Any] = {
        "layers": {
            layer: {"strength": round(sums.strength or 0, 4), "error": round(sums.strength_error, 4)}
            for layer, sums in found.by_layer().items()
        },
        "damaged": [
            {"tensor": t.name, "type": t.type, "rest": t.sums.rest, "limit": largest_rest(t.type), "looks": t.damage}
            for t in sorted(damaged, key=lambda t: -t.sums.rest / largest_rest(t.type))[:20]
        ],
    }
    verdict_of_strength = measures[0].verdict
    if verdict_of_strength != "fail" and not off and not damaged and measures[-1].verdict != "fail":
        return Check.of("weights", measures, _good(pooled), details)
    message, suspect = _blamed(found, expected, damaged, off)
    return Check.of("weights", measures, message, details, suspect)


def layers_off(found: Comparison) -> dict[int, float]:
    """Layers whose strength is certainly not 1: layer → strength."""
    off = {}
    for layer, sums in found.by_layer().items():
        strength, error = sums.strength, 2 * sums.strength_error
        if strength is not None and (strength + error < LAYER_LOW or strength - error > LAYER_HIGH):
            off[layer] = strength
    return off


def _measures(found: Comparison, pooled: Sums, off: dict[int, float], damaged: int) -> list[Measure]:
    strength, error = pooled.strength, pooled.strength_error
    measures = []
    if strength is None:
        measures.append(Measure(name="strength in the weights", value=math.nan))
    else:
        low, high = strength - error, strength + error
        outside = high < STRENGTH_LOW or low > STRENGTH_HIGH
        inside = low >= STRENGTH_LOW and high <= STRENGTH_HIGH
        # Undecided is not judged here: the strength in the answers then decides alone.
        verdict: Any = "fail" if outside else "pass" if inside else None
        measures.append(
            Measure(
                name="strength in the weights", value=strength, floor=1.0, verdict=verdict,
                limit=STRENGTH_HIGH if strength > 1 else STRENGTH_LOW,
            )
        )  # fmt: skip
        measures.append(Measure(name="its error", value=error))
    measures.append(lower_is_better("layers with another strength", len(off), 0, 0))
    worst = max((t.sums.rest / largest_rest(t.type) for t in found.tensors), default=0.0)
    measures.append(Measure(name="largest rest, as a share of its type's limit", value=worst, limit=1.0))
    measures.append(lower_is_better("tensors with more than rounding", damaged, 0, 0))
    if pooled.original > 0:
        measures.append(
            lower_is_better("share of the original base", abs(pooled.original_share), LARGEST_ORIGINAL_SHARE, 0.0)
        )
    return measures


def _good(pooled: Sums) -> str:
    if pooled.strength is None:
        return "every tensor is the tuned one but for rounding"
    return f"strength {pooled.strength:.4f} ± {pooled.strength_error:.4f}, and nothing else but rounding"


def _blamed(
    found: Comparison, expected: Expected, damaged: list[TensorSums], off: dict[int, float]
) -> tuple[str, Suspect]:
    """The fault in words, and the link that makes such a fault."""
    untouched = [t for t in found.tensors if not t.touched]
    broken = [t for t in damaged if not t.touched]
    if untouched and len(broken) > len(untouched) / 2:
        return (
            f"it was made from another base, or another revision of it: {len(broken)} of {len(untouched)} tensors that the "
            f"adapter does not change differ, first {broken[0].name}",
            "merge",
        )
    pooled = found.pooled(lambda tensor: tensor.touched)
    if pooled.original > 0 and abs(pooled.original_share) > LARGEST_ORIGINAL_SHARE:
        return (
            "the adapter was merged onto the original weights, not onto the NF4 weights that it was trained on "
            f"(share of the original base {pooled.original_share:.2f})",
            "merge",
        )
    if damaged:
        first = max(damaged, key=lambda t: t.sums.rest / largest_rest(t.type))
        return (
            f"{len(damaged)} of {len(found.tensors)} tensors are damaged; {first.name} ({first.type}): {first.damage}, "
            f"{first.sums.rest:.3g} of its size is neither base nor adapter (limit {largest_rest(first.type):.3g})",
            "conversion",
        )
    layers = found.by_layer()
    if off and len(off) < len(layers):
        values = sorted(off.values())
        return (
            f"{layers_told(off)} of {len(layers)}: {_parts(found, off)} (strength {values[0]:.3f}{_to(values)})",
            "merge",
        )
    return expected.told(pooled.strength or 0.0), "merge"


def _to(values: list[float]) -> str:
    return f" to {values[-1]:.3f}" if len(values) > 1 else ""


def _parts(found: Comparison, off: dict[int, float]) -> str:
    if all(abs(strength) < 0.1 for strength in off.values()):
        return "the adapter is missing there"
    modules = sorted(
        {
            t.name.split(".")[-2]
            for t in found.tensors
            if t.layer in off and t.sums.strength is not None and abs(t.sums.strength) + t.sums.strength_error < 0.5
        }
    )
    return (
        f"the adapter of {', '.join(modules)} is missing there" if modules else "the adapter has another strength there"
    )
