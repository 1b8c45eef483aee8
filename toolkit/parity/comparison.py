"""Are the tuned weights in the export? Tensor by tensor, against base + adapter, whatever the quantization.

What is summed up of each tensor is in `toolkit.parity.sums`. A GGUF's tensors are laid beside what the pinned converter would
make of the tuned model's (`toolkit.models.layout`), a folder's beside the tuned model's own.

The strength of every layer is known so, at 4 bits too, from the files alone; that of `toolkit.parity.strength`, from behaviour,
needs hundreds of positions for as much.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from toolkit.parity.damage import LAYER, damage, holds, whose
from toolkit.parity.exported import Exported
from toolkit.parity.rounding import rounded
from toolkit.parity.sums import Sums, sums_of
from toolkit.parity.tuning import Tuning, Weights
from toolkit.parity.units import Unit, grouped, in_order, matrix, without_ones

LARGEST = 4_000_000
LARGEST_QUANTIZED = 130_000
"""Of a tensor with more weights, evenly spaced rows are compared, from the first to the last. Rounding anew takes its time."""
FLOATS = ("F64", "F32", "F16", "BF16")
LOOKED_FOR = 4
"""Damaged tensors of an export whose values are looked for in other tensors: each look reads all of the same shape."""


class Way(NamedTuple):
    """How a right export may have come by its values."""

    in_16_bits: bool = False
    via: str = "F32"
    """Type of the file that it was quantized from."""


@dataclass
class TensorSums:
    """One tensor of an export beside the tuned one."""

    name: str
    """As the model's folder calls it; a star for several."""
    type: str
    touched: bool
    """Training could change it."""
    sums: Sums
    damage: str = ""
    """What kind of damage it looks like, where the rest is too large for rounding."""

    @property
    def layer(self) -> int | None:
        found = LAYER.search(self.name)
        return int(found[1]) if found else None


@dataclass
class Comparison:
    """An export's weights beside the tuned model's."""

    tensors: list[TensorSums] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    """Tensors that the tuned model does not have, as the export calls them."""
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    """(name, wanted, found) of tensors whose shape is another."""
    unknown: list[str] = field(default_factory=list)
    """Tensors of which nobody can tell what they are made of, so that they were not compared."""

    def split(self, chosen: Callable[[str], bool]) -> tuple[Comparison, Comparison]:
        """Of the tensors that are chosen by name, and of all others."""
        parts = []
        for wanted in (True, False):
            parts.append(
                Comparison(
                    [t for t in self.tensors if chosen(t.name) == wanted],
                    [name for name in self.missing if chosen(name) == wanted],
                    [] if wanted else self.extra,
                    [shape for shape in self.shapes if chosen(shape[0]) == wanted],
                    [name for name in self.unknown if chosen(name) == wanted],
                )
            )
        return parts[0], parts[1]

    def pooled(self, chosen: Callable[[TensorSums], bool] = lambda _: True) -> Sums:
        """Sums over the tensors that are chosen."""
        total = Sums()
        for tensor in self.tensors:
            if chosen(tensor):
                total += tensor.sums
        return total

    def by_layer(self) -> dict[int, Sums]:
        """Sums of the tensors of each layer that training could change."""
        found: dict[int, Sums] = defaultdict(Sums)
        for tensor in self.tensors:
            if tensor.touched and tensor.layer is not None and tensor.sums.along > 0:
                found[tensor.layer] += tensor.sums
        return dict(sorted(found.items()))

    def outside_layers(self) -> dict[str, Sums]:
        """Sums of the embedding, the head and the last norm, where training changed them."""
        return {t.name: t.sums for t in self.tensors if t.touched and t.layer is None and t.sums.along > 0}

    def of_training(self) -> Sums:
        """Sums over the layers that training could change; over what is outside of them where it changed nothing else.

        A head or an embedding that was trained whole would outweigh all the layers.
        """
        layers = self.pooled(lambda t: t.touched and t.layer is not None)
        return layers if layers.along > 0 else self.pooled(lambda t: t.touched)


def compare_weights(
    tuning: Tuning,
    exports: Mapping[str, Exported],
    largest_rest: Callable[[str], float],
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Comparison]:
    """Lay every tensor of every export beside the tuned one; each is computed once, whatever the number of exports.

    Args:
        largest_rest: limit of `Sums.rest` for a stored type; beyond it the damage is looked at more closely.
        tick: called after every tensor of the tuned model.
    """
    groups = grouped(tuning, exports)
    found: dict[str, Comparison] = {}
    for units, members in groups:
        known = members[0][1].layout.unknown if members[0][1].layout else {}
        for name, export in members:
            found[name] = Comparison(extra=_extra(export, [*(unit.name for unit in units), *known]))
            found[name].unknown = [one for one in known if export.has(one)]
            found[name].missing = [one for one in known if not export.has(one)]
    ways: dict[str, Way] = {}
    for members, unit, weights in in_order(tuning, groups, tick):
        for name, export in members:
            if not export.has(unit.name):
                found[name].missing += [] if unit.optional else [unit.label]
            elif without_ones(shape := export.shape(unit.name)) != without_ones(wanted := unit.shape(tuning)):
                found[name].shapes.append((unit.label, wanted, shape))
            elif not unit.sources:
                found[name].missing += [] if _same_constant(unit, export) else [f"the right {unit.name}"]
            else:
                touched = any(tuning.changes(source) for source in unit.sources)
                row = _row(unit, weights(), export, touched, ways, name)
                if row.sums.rest > largest_rest(row.type):
                    row.damage = damage(weights().tuned, matrix(export.load(unit.name)))
                found[name].tensors.append(row)
    for units, members in groups:
        for name, export in members:
            _look_for_values(tuning, units, export, found[name], largest_rest)
    return found


def _row(unit: Unit, weights: Weights, export: Exported, touched: bool, ways: dict[str, Way], name: str) -> TensorSums:
    if export.type(unit.name) in FLOATS:
        row = _nearest(unit, weights, export, ("F32",))[1]
    else:
        if name not in ways and touched:
            ways[name] = _nearest(unit, weights, export, ("F16", "BF16", "F32"))[0]
        row = _compared(unit, weights, export, ways.get(name, Way()))
    row.touched = touched
    return row


def _extra(export: Exported, names: list[str]) -> list[str]:
    """Tensors that the model does not have; a list of RoPE factors that are all 1 changes nothing."""
    found = export.others(names)
    return [n for n in found if not (n.startswith("rope_") and bool((export.load(n) == 1).all()))]


def _same_constant(unit: Unit, export: Exported) -> bool:
    """Whether a tensor that the converter adds holds the converter's values."""
    if unit.layout is None:
        return True
    wanted = unit.layout.constant(unit.name)
    return torch.allclose(export.load(unit.name).reshape(wanted.shape), wanted.float(), rtol=1e-4)


def _look_for_values(
    tuning: Tuning, units: list[Unit], export: Exported, found: Comparison, largest_rest: Callable[[str], float]
) -> None:
    """Say of damaged tensors whose values they hold, where another tensor's are there in their place."""
    strange = [row for row in found.tensors if row.damage in ("other values", "its rows are in another order")]
    by_label = {unit.label: unit for unit in units}
    for row in strange[:LOOKED_FOR] if len(strange) <= LOOKED_FOR else []:
        unit = by_label[row.name]
        values = _sampled(export.load(unit.name))
        for other in units:
            if not other.sources or other.sources == unit.sources or other.shape(tuning) != unit.shape(tuning):
                continue
            if holds(_sampled(other.weights(tuning.load).tuned), values, largest_rest(row.type)):
                row.damage = f"holds {whose(other.label, unit.label)} values"
                break


def _sampled(values: torch.Tensor) -> torch.Tensor:
    values = matrix(values)
    return values[torch.linspace(0, len(values) - 1, min(64, len(values))).round().long()]


def _nearest(unit: Unit, weights: Weights, export: Exported, vias: tuple[str, ...]) -> tuple[Way, TensorSums]:
    """How an export came by a tensor: with the right way, the least is left to explain."""
    merges = (False,) if weights.in_16_bits is None else (False, True)
    ways = [Way(merge, via) for merge in merges for via in vias]
    return min(((way, _compared(unit, weights, export, way)) for way in ways), key=lambda found: found[1].sums.rest)


def _compared(unit: Unit, weights: Weights, export: Exported, way: Way) -> TensorSums:
    kind = export.type(unit.name)
    base, tuned, original, in_16_bits = weights
    rows = _rows(tuned, LARGEST if kind in FLOATS else LARGEST_QUANTIZED)
    found = matrix(export.load(unit.name, rows))

    means = export.importance(unit.name)

    def stored(weight: torch.Tensor) -> torch.Tensor:
        chosen = weight if rows is None else weight[rows]
        if means is None or len(means) == 1:
            return rounded(chosen, kind, way.via, None if means is None else means[0])
        whose_rows = (torch.arange(len(weight)) if rows is None else rows) // (len(weight) // len(means))
        made = torch.empty_like(chosen)
        for matrix_number in sorted(set(whose_rows.tolist())):
            own = whose_rows == matrix_number
            made[own] = rounded(chosen[own], kind, way.via, means[matrix_number])
        return made

    direction = tuned - base if rows is None else tuned[rows] - base[rows]
    wanted = stored(in_16_bits if way.in_16_bits and in_16_bits is not None else tuned)
    other = None
    if original is not None:
        # The original weights with the adapter's change: what an export merged onto them would hold.
        other = (stored(original + (tuned - base)), original - base if rows is None else original[rows] - base[rows])
    return TensorSums(unit.label, kind, True, sums_of(stored(base), wanted, found, direction, other))


def _rows(tensor: torch.Tensor, largest: int) -> torch.Tensor | None:
    if tensor.dim() < 2 or tensor.numel() <= largest:
        return None
    wanted = max(2, largest // tensor.shape[1])
    return torch.linspace(0, tensor.shape[0] - 1, wanted).round().long()
