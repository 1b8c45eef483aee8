"""What an export's tensors should be: each made of the tuned model's as the pinned converter makes it, few held at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from toolkit.models.layout import Layout
from toolkit.parity.exported import Exported
from toolkit.parity.tuning import Tuning, Weights


def matrix(values: torch.Tensor) -> torch.Tensor:
    """A tensor with more axes as a matrix [rows, row length]; one row, or a vector, as a vector."""
    values = values.reshape(without_ones(tuple(values.shape)))
    return values if values.dim() < 3 else values.reshape(-1, values.shape[-1])


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of length 1 at its beginning: GGUF writes them in a converted file, and not in a quantized one."""
    first = next((i for i, size in enumerate(shape[:-1]) if size != 1), max(len(shape) - 1, 0))
    return shape[first:]


@dataclass(frozen=True)
class Unit:
    """A tensor of an export, and the model's tensors that it is made of."""

    name: str
    """As the export calls it."""
    label: str
    """As the model's folder calls it."""
    sources: tuple[str, ...]
    layout: Layout | None = None
    made_as: str = ""
    """The layout's name for what it is made of; a head of its own is made as the embedding that it should be."""
    optional: bool = False

    def weights(self, load: Callable[[str], Weights]) -> Weights:
        """Its weights, each made as the converter makes it; matrices, of tensors with more axes [rows, row length]."""
        loaded = {source: load(source) for source in self.sources}

        def part(chosen: Callable[[Weights], torch.Tensor]) -> torch.Tensor:
            return self._made(lambda source: chosen(loaded[source]))

        base = part(lambda w: w.base)
        tuned = base if all(w.tuned is w.base for w in loaded.values()) else part(lambda w: w.tuned)
        original = in_16_bits = None
        if any(w.original is not None for w in loaded.values()):
            original = part(lambda w: w.base if w.original is None else w.original)
        if any(w.in_16_bits is not None for w in loaded.values()):
            in_16_bits = part(lambda w: w.tuned if w.in_16_bits is None else w.in_16_bits)
        return Weights(base, tuned, original, in_16_bits)

    def shape(self, tuning: Tuning) -> tuple[int, ...]:
        """In transformers' order of the axes."""
        return tuning.shape(self.sources[0]) if self.layout is None else self.layout.shape(self.made_as or self.name)

    def _made(self, load: Callable[[str], torch.Tensor]) -> torch.Tensor:
        made = load(self.sources[0]) if self.layout is None else self.layout.make(self.made_as or self.name, load)
        return matrix(made)


def units_of(tuning: Tuning, layout: Layout | None) -> list[Unit]:
    """The tensors that a right export has; last, and optional, a head that is the embedding itself."""
    tied = tuning.tied_head
    if layout is None:
        return [Unit(n, n, (n,)) for n in tuning.names()] + ([Unit(tied, tied, (tied,), optional=True)] if tied else [])
    units = [Unit(name, layout.label(name), tuple(layout.sources(name)), layout) for name in layout.tensors]
    embedding = next((unit for unit in units if unit.sources == (tuning.embedding,)), None)
    if tied and layout.tied_head and embedding is not None:
        units.append(Unit(layout.tied_head, tied, embedding.sources, layout, embedding.name, optional=True))
    return units


Group = tuple[list[Unit], list[tuple[str, Exported]]]
"""Units, and the exports that should have them."""


def grouped(tuning: Tuning, exports: Mapping[str, Exported]) -> list[Group]:
    """The exports by what their tensors are made of."""
    by_layout: dict[int, list[tuple[str, Exported]]] = defaultdict(list)
    for name, export in exports.items():
        by_layout[id(export.layout)].append((name, export))
    return [(units_of(tuning, members[0][1].layout), members) for members in by_layout.values()]


def in_order(
    tuning: Tuning, groups: list[Group], tick: Callable[[], None]
) -> Iterator[tuple[list[tuple[str, Exported]], Unit, Callable[[], Weights]]]:
    """Every unit when the last of its sources comes by, so that few tensors are held at once."""
    names = [*tuning.names(), *([tuning.tied_head] if tuning.tied_head else [])]
    place = {name: number for number, name in enumerate(names)}
    due: dict[int, list[tuple[list[tuple[str, Exported]], Unit]]] = defaultdict(list)
    uses: Counter[str] = Counter()
    for units, members in groups:
        for unit in units:
            due[max((place[source] for source in unit.sources), default=0)].append((members, unit))
            uses.update(unit.sources)
    held: dict[str, Weights] = {}

    def load(name: str) -> Weights:
        if name not in held:
            held[name] = tuning.load(name)
        return held[name]

    for number, _ in enumerate(names):
        for members, unit in due[number]:
            made: list[Weights] = []

            def weights(unit: Unit = unit, made: list[Weights] = made) -> Weights:
                if not made:
                    made.append(unit.weights(load))
                return made[0]

            yield members, unit, weights
            uses.subtract(unit.sources)
            for source in unit.sources:
                if uses[source] <= 0:
                    held.pop(source, None)
        tick()
