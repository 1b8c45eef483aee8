"""Are the tuned weights in the export? Tensor by tensor, against base + adapter, whatever the quantization.

What is summed up of each tensor is in `toolkit.parity.sums`.

The strength of every layer is known so, at 4 bits too, from the files alone; that of `toolkit.parity.strength`, from behaviour,
needs hundreds of positions for as much.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from toolkit.models.bases import cached_sha256
from toolkit.models.merged import MergedWeights, merged_weights
from toolkit.models.safetensors_file import model_files
from toolkit.models.weights import TrainedWeights
from toolkit.parity.exported import Exported
from toolkit.parity.rounding import rounded
from toolkit.parity.sums import Sums, sums_of
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts

LARGEST = 4_000_000
LARGEST_QUANTIZED = 130_000
"""Of a tensor with more weights, evenly spaced rows are compared, from the first to the last. Rounding anew takes its time."""
FLOATS = ("F64", "F32", "F16", "BF16")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


class Weights(NamedTuple):
    """One tensor's weights, float32, on the CPU."""

    base: torch.Tensor
    """As trained on."""
    tuned: torch.Tensor
    """Computed in float32."""
    original: torch.Tensor | None = None
    """The base's original weights, where they differ from those that were trained on."""
    in_16_bits: torch.Tensor | None = None
    """Tuned, computed in the type of a 16-bit base. Some tools merge so, some in float32: both are right."""


class Way(NamedTuple):
    """How a right export may have come by its values."""

    in_16_bits: bool = False
    via: str = "F32"
    """Type of the file that it was quantized from."""


class Tuning:
    """Base and tuned weights by name: of an adapter, or of a whole model that was trained.

    Args:
        adapter: what was trained, and on what.
        onto: what the export was merged onto; see `toolkit.recipe.schema.Merge`.

    Raises:
        DataError: the adapter does not fit its base.
    """

    def __init__(self, adapter: Artifact[AdapterFacts], onto: Literal["as trained", "16-bit"]) -> None:
        facts = adapter.facts
        self.folder = adapter.folder if facts.method == "full" else Path(facts.base.folder)
        """Holds the config.json of what was trained."""
        whole_model = facts.method == "full" and not facts.trained_here
        self.has_base = not whole_model or _sums_of_files(adapter.folder) != _sums_of_files(Path(facts.base.folder))
        """False for a model whose base is not known: then nobody can tell what training changed."""
        self._merged: MergedWeights | None = None
        if facts.method == "full":
            self._tuned = TrainedWeights(adapter.folder, facts.base_dtype, None)
            self._base = TrainedWeights(Path(facts.base.folder), facts.base_dtype, None)
        else:
            self._merged = merged_weights(adapter, onto)
        self._original: TrainedWeights | None = None
        if facts.quantization is not None and onto == "as trained":
            self._original = TrainedWeights(Path(facts.base.folder), facts.base_dtype, None)

    def names(self) -> list[str]:
        """Every tensor of the tuned model."""
        return self._merged.names() if self._merged else self._tuned.names()

    def shape(self, name: str) -> tuple[int, ...]:
        name = self._stored(name)
        return self._merged.entry(name).shape if self._merged else self._tuned.entry(name).shape

    @property
    def tied_head(self) -> str | None:
        """The head's name when it is the embedding itself."""
        return self._merged.tied_head if self._merged else self._tuned.tied_head

    def _stored(self, name: str) -> str:
        if name != self.tied_head:
            return name
        return self._merged.weights.embedding if self._merged else self._tuned.embedding

    def changes(self, name: str) -> bool:
        """Whether training could change this tensor."""
        return self._merged.is_merged(self._stored(name)) if self._merged else True

    def load(self, name: str) -> Weights:
        """One tensor's weights; of a tied head, the embedding's."""
        name = self._stored(name)
        if self._merged is None:
            return Weights(self._base.load(name).float(), self._tuned.load(name).float())
        base = self._merged.base(name)
        if not self.changes(name):
            return Weights(base.float(), base.float(), self._original_of(name))
        tuned = self._merged.merged(name, base.float().clone())
        in_16_bits = None if base.dtype == torch.float32 else self._merged.merged(name, base.clone()).float()
        return Weights(base.float(), tuned, self._original_of(name), in_16_bits)

    def _original_of(self, name: str) -> torch.Tensor | None:
        if self._original is None or self._merged is None or not self._merged.weights.is_quantized(name):
            return None
        return self._original.load(name).float()


def _sums_of_files(folder: Path) -> set[str]:
    return {cached_sha256(path) for path in model_files(folder).values()}


@dataclass
class TensorSums:
    """One tensor of an export beside the tuned one."""

    name: str
    type: str
    touched: bool
    """Training could change it."""
    sums: Sums
    damage: str = ""
    """What kind of damage it looks like, where the rest is too large for rounding."""

    @property
    def layer(self) -> int | None:
        found = _LAYER.search(self.name)
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
        tick: called after every tensor.
    """
    tied = tuning.tied_head
    names = [*tuning.names(), *([tied] if tied else [])]
    found = {name: Comparison(extra=export.others(names)) for name, export in exports.items()}
    ways: dict[str, Way] = {}
    for tensor in names:
        present = {}
        for name, export in exports.items():
            if not export.has(tensor):
                # An export may write a tied head as a tensor of its own, which then has to be the embedding.
                found[name].missing += [tensor] if tensor != tied else []
            elif (shape := export.shape(tensor)) != tuning.shape(tensor):
                found[name].shapes.append((tensor, tuning.shape(tensor), shape))
            else:
                present[name] = export
        if present:
            weights = tuning.load(tensor)
            for name, export in present.items():
                if export.type(tensor) in FLOATS:
                    row = _nearest(tensor, weights, export, ("F32",))[1]
                else:
                    if name not in ways and tuning.changes(tensor):
                        ways[name] = _nearest(tensor, weights, export, ("F16", "BF16", "F32"))[0]
                    row = _compared(tensor, weights, export, ways.get(name, Way()))
                row.touched = tuning.changes(tensor)
                if row.sums.rest > largest_rest(row.type):
                    row.damage = damage(weights[1], export.load(tensor))
                found[name].tensors.append(row)
        tick()
    return found


def _nearest(name: str, weights: Weights, export: Exported, vias: tuple[str, ...]) -> tuple[Way, TensorSums]:
    """How an export came by a tensor: with the right way, the least is left to explain."""
    merges = (False,) if weights.in_16_bits is None else (False, True)
    ways = [Way(merge, via) for merge in merges for via in vias]
    return min(((way, _compared(name, weights, export, way)) for way in ways), key=lambda found: found[1].sums.rest)


def _compared(name: str, weights: Weights, export: Exported, way: Way) -> TensorSums:
    kind = export.type(name)
    base, tuned, original, in_16_bits = weights
    rows = _rows(tuned, LARGEST if kind in FLOATS else LARGEST_QUANTIZED)

    def stored(weight: torch.Tensor) -> torch.Tensor:
        return rounded(weight if rows is None else weight[rows], kind, way.via)

    direction = tuned - base if rows is None else tuned[rows] - base[rows]
    wanted = stored(in_16_bits if way.in_16_bits and in_16_bits is not None else tuned)
    if original is None:
        return TensorSums(name, kind, True, sums_of(stored(base), wanted, export.load(name, rows), direction))
    # The original weights with the adapter's change: what an export merged onto them would hold.
    other = (stored(original + (tuned - base)), original - base if rows is None else original[rows] - base[rows])
    return TensorSums(name, kind, True, sums_of(stored(base), wanted, export.load(name, rows), direction, other))


def _rows(tensor: torch.Tensor, largest: int) -> torch.Tensor | None:
    if tensor.dim() < 2 or tensor.numel() <= largest:
        return None
    wanted = max(2, largest // tensor.shape[1])
    return torch.linspace(0, tensor.shape[0] - 1, wanted).round().long()


def damage(tuned: torch.Tensor, export: torch.Tensor) -> str:
    """What a tensor's damage looks like: rows in another order, transposed, rows or all of it zero, or just another."""
    if not torch.isfinite(export).all():
        return "holds values that are no numbers"
    if tuned.dim() < 2:
        return "all zero" if not export.any() else "other values"
    zero = (export.abs().amax(1) == 0) & (tuned.abs().amax(1) > 0)
    if zero.all():
        return "all zero"
    if zero.any():
        return f"{int(zero.sum())} rows are zero, the first is row {int(zero.nonzero()[0])}"
    if _reordered(tuned, export):
        return "its rows are in another order"
    if tuned.shape[0] == tuned.shape[1] and (_near(tuned.T, export) or _lengths_of_columns(tuned, export)):
        return "transposed"
    return "other values"


def _reordered(tuned: torch.Tensor, export: torch.Tensor) -> bool:
    """Whether most rows of the export are rows of the tuned tensor, at other places."""
    sample = torch.linspace(0, len(export) - 1, min(64, len(export))).round().long()
    rows = torch.nn.functional.normalize(export[sample], dim=1)
    likest = (rows @ torch.nn.functional.normalize(tuned, dim=1).T).max(1)
    found = likest.values > 0.9
    return bool(found.float().mean() > 0.5 and (likest.indices != sample)[found].any())


def _lengths_of_columns(tuned: torch.Tensor, export: torch.Tensor) -> bool:
    """Whether the export's rows are as long as the tuned columns: a tensor that was transposed in llama.cpp's order of rows."""
    lengths, columns, rows = (
        torch.sort(t / t.mean()).values for t in (export.norm(dim=1), tuned.norm(dim=0), tuned.norm(dim=1))
    )
    off = (lengths - columns).abs().mean()
    return bool(off < 0.004 and off < (lengths - rows).abs().mean() / 2)


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() < 0.5 * a.norm())


def layers_told(layers: Iterable[int]) -> str:
    """'layer 3', 'layers 0-5 and 7'."""
    ordered, parts = sorted(layers), []
    while ordered:
        end = next((i for i, layer in enumerate(ordered) if layer != ordered[0] + i), len(ordered))
        parts.append(f"{ordered[0]}-{ordered[end - 1]}" if end > 1 else str(ordered[0]))
        ordered = ordered[end:]
    one = len(parts) == 1 and "-" not in parts[0]
    return f"layer{'' if one else 's'} " + (
        " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    )
