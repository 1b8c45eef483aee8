"""What a comparison of weights says: is the adapter there, whole, once, on its own base, and is all else untouched?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.models.adapters import LoraAdapter
from toolkit.parity.certificate import Check, Measure, Suspect, Verdict, lower_is_better
from toolkit.parity.comparison import Comparison, TensorSums
from toolkit.parity.damage import layers_told, spoken
from toolkit.parity.limits import largest_rest
from toolkit.parity.sums import Sums

STRENGTH_ROOM = {"Q3_K": 0.06, "IQ3_S": 0.06, "IQ3_XXS": 0.06, "Q2_K": 0.12}
"""How far from 1 the strength may be where a matrix of the adapter is stored so; `STRENGTH_ROOM_ELSE` for others.

Measured (`python -m tests.bench.faults strength`), a right export and one with a tenth of the adapter missing:

                rounded as llama.cpp does     with an importance matrix
    F16, BF16, Q8_0     1.000    0.900            1.000    0.900
    Q6_K, Q5_*          1.000    0.900            0.998    0.897 ... 0.898
    Q4_*, IQ4_*         1.000    0.900            0.991 ... 0.995    0.892 ... 0.895
    Q3_K                1.000    0.900            0.971    0.872
    Q2_K                1.000    0.900            0.934    0.839

each ± 0.002 or less over a model of 1 M adapted weights, with a spread between modules of 0.008 or less.
"""
STRENGTH_ROOM_ELSE = 0.03
LAYER_LOW, LAYER_HIGH = 0.9, 1.1
"""Of a single layer, beyond twice its error: fewer weights tell less."""
MODULE_LOW = 0.5
"""Of a single module, beyond twice its error: below, what training changed there is missing."""
LARGEST_ORIGINAL_SHARE = 0.2
"""0 on the weights that were trained on, 1 on the original ones; a right Q2_K with an importance matrix was measured at 0.10."""


Part = Literal["", "language", "vision"]


@dataclass(frozen=True)
class Expected:
    """What is known of the adapter's scale, to name a wrong one."""

    r: int = 0
    """0: a whole model was trained."""
    use_rslora: bool = False
    use_dora: bool = False
    has_base: bool = True
    """See `toolkit.parity.tuning.Tuning`."""

    @classmethod
    def of(cls, adapter: LoraAdapter | None, has_base: bool = True) -> Expected:
        """From an adapter's configuration; None: a whole model was trained."""
        if adapter is None:
            return cls(has_base=has_base)
        config = adapter.config
        return cls(int(config["r"]), bool(config["use_rslora"]), bool(config["use_dora"]))

    def told(self, strength: float) -> str:
        """What a strength that is not 1 looks like."""
        if self.r == 0:
            return f"what training changed is there {strength:.3f} times"
        if abs(strength) < 0.05:
            return "the adapter is not in it"
        if self.r == 4 and not self.use_rslora and _near(strength, 2):
            return (
                f"the adapter was applied twice, or scaled as rsLoRA (at r = 4 both double it): strength {strength:.3f}"
            )
        if self.r > 1 and self.use_rslora and _near(strength, 1 / math.sqrt(self.r)):
            return f"the adapter was scaled as LoRA (alpha / r), but trained with rsLoRA: strength {strength:.3f}"
        if self.r > 1 and not self.use_rslora and _near(strength, math.sqrt(self.r)):
            return f"the adapter was scaled as rsLoRA (alpha / sqrt(r)), but trained as LoRA: strength {strength:.3f}"
        if _near(strength, 2):
            return f"the adapter was applied twice: strength {strength:.3f}"
        return f"the adapter is there {strength:.3f} times: alpha is wrong"


def _near(value: float, wanted: float) -> bool:
    return abs(value / wanted - 1) < 0.05


def weights_check(
    found: Comparison, expected: Expected, alone: bool = False, importance_matrix: bool = False, part: Part = ""
) -> Check:
    """Judge an export's weights.

    Tensors that are missing or of another shape are the structure's fault, and are not judged here.

    Args:
        alone: nothing else tells the adapter's strength, so what the weights leave undecided stays undecided.
        importance_matrix: the file says that it was rounded with one, which bends the strength at 3 bits and fewer.
        part: of a model that sees; its vision part has a check of its own.
    """
    check = _check(found, expected, alone, importance_matrix)
    if not part:
        return check
    name = "vision" if part == "vision" else check.name
    return check.model_copy(update={"name": name, "message": f"{part} part: {check.message}"})


def _check(found: Comparison, expected: Expected, alone: bool, importance_matrix: bool) -> Check:
    pooled = found.of_training()
    damaged = [t for t in found.tensors if t.sums.rest > largest_rest(t.type)]
    off = Off(layers_off(found), others_off(found), modules_off(found))
    measures = _measures(found, pooled, off, len(damaged), alone and expected.has_base, importance_matrix)
    details: dict[str, Any] = {
        "layers": {
            layer: {"strength": round(sums.strength or 0, 4), "error": round(sums.strength_error, 4)}
            for layer, sums in found.by_layer().items()
        },
        "others": {name: round(sums.strength or 0, 4) for name, sums in found.outside_layers().items()},
        "damaged": [
            {"tensor": t.name, "type": t.type, "rest": t.sums.rest, "limit": largest_rest(t.type), "looks": t.damage}
            for t in sorted(damaged, key=_beyond, reverse=True)[:20]
        ],
    }
    if all(measure.verdict != "fail" for measure in measures):
        undecided = any(measure.verdict == "inconclusive" for measure in measures)
        return Check.of("weights", measures, _undecided(pooled) if undecided else _good(pooled), details)
    message, suspect = _blamed(found, expected, damaged, off)
    return Check.of("weights", measures, message, details, suspect)


@dataclass(frozen=True)
class Off:
    """Where the strength is certainly not 1."""

    layers: dict[int, float]
    others: dict[str, float]
    modules: dict[int, list[str]]


def _beyond(tensor: TensorSums) -> float:
    return tensor.sums.rest / largest_rest(tensor.type)


def layers_off(found: Comparison) -> dict[int, float]:
    """Layers whose strength is certainly not 1: layer → strength."""
    return {layer: s for layer, sums in found.by_layer().items() if (s := _off(sums)) is not None}


def others_off(found: Comparison) -> dict[str, float]:
    """Embedding, head and last norm, where their strength is certainly not 1: tensor → strength."""
    return {name: s for name, sums in found.outside_layers().items() if (s := _off(sums)) is not None}


def modules_off(found: Comparison) -> dict[int, list[str]]:
    """Modules that training changed and whose change is certainly not there: layer → modules."""
    missing: dict[int, list[str]] = {}
    for t in found.tensors:
        if t.touched and t.layer is not None and t.sums.strength is not None:
            error = 2 * t.sums.strength_error
            if t.sums.strength + error < MODULE_LOW and abs(t.sums.strength) - error < 0.1:
                missing.setdefault(t.layer, []).append(t.name.split(".")[-2])
    return missing


def _off(sums: Sums) -> float | None:
    strength, error = sums.strength, 2 * sums.strength_error
    if strength is not None and (strength + error < LAYER_LOW or strength - error > LAYER_HIGH):
        return strength
    return None


def _measures(
    found: Comparison, pooled: Sums, off: Off, damaged: int, alone: bool, importance_matrix: bool
) -> list[Measure]:
    strength, error = pooled.strength, pooled.strength_error
    undecided: Verdict | None = "inconclusive" if alone else None
    measures = []
    if strength is None and alone:
        measures.append(Measure(name="strength in the weights", value=math.nan, verdict=undecided))
    if strength is not None:
        low, high = strength - error, strength + error
        room = max((STRENGTH_ROOM.get(t.type, STRENGTH_ROOM_ELSE) for t in found.tensors if t.touched), default=0.0)
        # Without a word of an importance matrix, what only one would explain proves nothing either way: a tenth of the adapter
        # missing reads 0.9, and somebody may have taken the word out.
        sure = room if importance_matrix else min(room, STRENGTH_ROOM_ELSE)
        outside = high < 1 - room or low > 1 + room
        inside = low >= 1 - sure and high <= 1 + sure
        # Undecided is not judged where the strength in the answers decides.
        verdict: Verdict | None = "fail" if outside else "pass" if inside else undecided
        measures.append(
            Measure(
                name="strength in the weights", value=strength, floor=1.0, verdict=verdict,
                limit=1 + room if strength > 1 else 1 - room,
            )
        )  # fmt: skip
        measures.append(Measure(name="its error", value=error))
    missing = sum(len(modules) for modules in off.modules.values())
    measures.append(lower_is_better("layers with another strength", len(off.layers), 0, 0))
    measures.append(lower_is_better("modules whose change is missing", missing, 0, 0))
    measures.append(lower_is_better("other tensors with another strength", len(off.others), 0, 0))
    worst = max((_beyond(t) for t in found.tensors), default=0.0)
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


def _undecided(pooled: Sums) -> str:
    if pooled.strength is None:
        return "nothing that training changed is left when it is stored, so nobody can tell whether it is there"
    return f"strength {pooled.strength:.4f} ± {pooled.strength_error:.4f}: too wide to tell whether the adapter is there whole"


def _blamed(found: Comparison, expected: Expected, damaged: list[TensorSums], off: Off) -> tuple[str, Suspect]:
    """The fault in words, and the link that makes such a fault."""
    pooled = found.of_training()
    # First: weights of a stranger lie along the original ones too, since rounding to NF4 anew is a coin thrown again.
    if message := _other_base(found, expected, damaged):
        return message, "merge" if expected.has_base else "conversion"
    if pooled.original > 0 and abs(pooled.original_share) > LARGEST_ORIGINAL_SHARE:
        return (
            "the adapter was merged onto the original weights, not onto the NF4 weights that it was trained on "
            f"(share of the original base {pooled.original_share:.2f})",
            "merge",
        )
    if damaged:
        first = max(damaged, key=_beyond)
        how = f" {first.damage}" if first.damage.startswith("holds ") else f": {first.damage}"
        told = f"{len(damaged)} of {len(found.tensors)} tensors are damaged; {spoken(first.name)} ({first.type}){how}"
        if math.isfinite(first.sums.rest):
            limit = largest_rest(first.type)
            told += f", {first.sums.rest:.3g} of its size is neither base nor adapter (limit {limit:.3g})"
        return told, "conversion"
    return _wrong_strength(found, expected, off), "merge"


def _other_base(found: Comparison, expected: Expected, damaged: list[TensorSums]) -> str:
    """Most tensors hold other values, not the same ones moved or cut: then no converter did it. Empty when it is not so."""
    strange = [t for t in damaged if t.damage == "other values"]
    untouched = [t for t in found.tensors if not t.touched]
    broken = [t for t in strange if not t.touched]
    if untouched and len(broken) > len(untouched) / 2:
        return (
            f"it was made from another base, or another revision of it: {len(broken)} of {len(untouched)} tensors that the "
            f"adapter does not change differ, first {broken[0].name}"
        )
    touched = [t for t in found.tensors if t.touched]
    broken = [t for t in strange if t.touched]
    if not touched or len(broken) <= len(touched) / 2:
        return ""
    if not expected.has_base:
        first = broken[0].name
        return (
            f"it was made from another model: {len(broken)} of {len(touched)} tensors hold other values, first {first}"
        )
    told = f"{len(broken)} of {len(touched)} tensors that training changed hold neither base nor adapter, first {broken[0].name}"
    if expected.use_dora:
        return f"the adapter was not applied as DoRA, or with another alpha, or to another base: {told}"
    return f"it was made from another base, or another revision of it: {told}"


def _wrong_strength(found: Comparison, expected: Expected, off: Off) -> str:
    layers = found.by_layer()
    lost = {layer: strength for layer, strength in off.layers.items() if abs(strength) < 0.1}
    parts = {layer: names for layer, names in off.modules.items() if layer not in lost}
    if parts:
        names = sorted({name for names in parts.values() for name in names})
        return f"{layers_told(parts)} of {len(layers)}: the adapter of {', '.join(names)} is missing there"
    if lost and len(off.layers) < len(layers):
        return f"{layers_told(lost)} of {len(layers)}: the adapter is missing there ({_strengths(lost)})"
    if off.layers and len(off.layers) < len(layers):
        return f"{layers_told(off.layers)} of {len(layers)}: the adapter has another strength there ({_strengths(off.layers)})"
    if off.others and not off.layers:
        told = ", ".join(f"{name} {strength:.3f} times" for name, strength in off.others.items())
        return f"what training changed outside of the layers is not there whole, once: {told}"
    return expected.told(found.of_training().strength or 0.0)


def _strengths(off: dict[int, float]) -> str:
    values = sorted(off.values())
    return f"strength {values[0]:.3f}" + (f" to {values[-1]:.3f}" if len(values) > 1 else "")
