"""The tuned model's weights, computed tensor by tensor from its base and its adapter: what an export must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from toolkit.models.adapters import LoraAdapter
from toolkit.models.checkpoint_names import CheckpointNames
from toolkit.models.merging import stack_of
from toolkit.models.peft_layers import TunedLayers
from toolkit.models.safetensors_file import Entry
from toolkit.models.weights import TrainedWeights, meta_model, weights_of
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, Quantization


class MergedWeights:
    """The tuned model's weights, computed as they are asked for; reads like `TrainedWeights`.

    Args:
        weights: what the adapter was trained on: a base, or a base with another adapter merged into it.

    Raises:
        DataError: the adapter does not fit the base.
        UsageError: a kind of adapter that has no merge.
    """

    def __init__(self, weights: TrainedWeights | MergedWeights, adapter: LoraAdapter) -> None:
        self.weights, self.adapter = weights, adapter
        self.folder: Path = weights.folder
        self.dtype: torch.dtype = weights.dtype
        self.quantization: Quantization | None = weights.quantization
        self.vocabulary: int | None = weights.vocabulary
        self.spelled: CheckpointNames = weights.spelled
        self.embedding: str = weights.embedding
        self.head: str = weights.head
        self._layers = TunedLayers(weights.structure(), adapter)
        if weights.tied_head is not None:  # one parameter, under whichever name the file holds it
            for one, other in ((weights.embedding, weights.tied_head), (weights.tied_head, weights.embedding)):
                if one in self._layers.in_place:
                    self._layers.in_place.setdefault(other, self._layers.in_place[one])
        self._split: dict[tuple[str, torch.dtype], dict[str, torch.Tensor]] = {}
        self.tied_head: str | None = None if self._unties() else weights.tied_head

    def structure(self) -> Any:
        """The merged model without its weights (torch's meta device)."""
        return meta_model(self.folder, self.vocabulary, untied=self.tied_head is None)

    def _unties(self) -> bool:
        """Whether the adapter parts two tied matrices. What a file holds of the base itself is read into both."""
        head, embedding = self.weights.tied_head, self.weights.embedding
        if head is None:
            return False
        acting = [self._layers.acts_on(name) for name in (head, embedding)]
        if not all(acting):
            return any(acting)
        return not torch.equal(
            *(self._layers.merged(n, self.weights.parameter(embedding), self._parameter) for n in (head, embedding))
        )

    def _parameter(self, name: str) -> torch.Tensor:
        return self.weights.parameter(self.weights.embedding if name == self.weights.tied_head else name)

    def names(self) -> list[str]:
        """Every tensor of the merged model."""
        head = self.weights.tied_head
        parted = [head] if head is not None and self.tied_head is None else []
        return self.weights.names() + parted

    def has(self, name: str) -> bool:
        """Whether the merged model has a tensor of this name."""
        return name in self.names()

    def entry(self, name: str) -> Entry:
        """Shape of a tensor, and the type of the base's file."""
        found = self.weights.entry(_stored(self.weights, name))
        return Entry(name, found.dtype, found.shape)

    def is_merged(self, name: str) -> bool:
        """Whether the adapter (or one below it) changes this tensor."""
        below = self.weights
        own = self._layers.touches(self.spelled.parameter(name), self._parameter)
        return own or (isinstance(below, MergedWeights) and below.is_merged(name))

    def is_quantized(self, name: str) -> bool:
        """Whether training saw this tensor of the base rounded to NF4."""
        return self.weights.is_quantized(name)

    def base(self, name: str) -> torch.Tensor:
        """The tensor as the base had it in training; a head that the adapter parts from the embedding was the embedding."""
        below = self.weights
        found = _stored(below, name)
        return below.base(found) if isinstance(below, MergedWeights) else below.load(found)

    def load(self, name: str) -> torch.Tensor:
        """One merged tensor, on the CPU: in the type that the base was trained in, or float32 where it was quantized."""
        return self.merged(name, self.base(name))

    def parameter(self, name: str) -> torch.Tensor:
        """One parameter by its name in memory; see `load`."""
        return self.spelled.assemble(name, self.load)

    def merged(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The merged tensor, computed in place of `base` (which is this tensor of the base, in any type) and in its type."""
        below = self.weights
        if isinstance(below, MergedWeights):
            base = below.merged(_stored(below, name), base)
        parameter = self.spelled.parameter(name)
        if not self._layers.touches(parameter, self._parameter):
            return base
        if self.spelled.sources(parameter) == [parameter]:
            return self._layers.merged(parameter, base, self._parameter)
        return self._part(parameter, base.dtype)[name].clone()

    def _part(self, parameter: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Of a parameter that several tensors of the files make (experts): all of them, merged; the last few are kept."""
        if (parameter, dtype) not in self._split:
            whole = self.weights.parameter(parameter).to(dtype)
            merged = self._layers.merged(parameter, whole, self._parameter)
            while len(self._split) >= KEPT:
                self._split.pop(next(iter(self._split)))
            self._split[parameter, dtype] = self.spelled.split(parameter, merged)
        return self._split[parameter, dtype]


def _stored(weights: TrainedWeights | MergedWeights, name: str) -> str:
    """The file's name of a tensor; of a tied head, which is none of its own, the embedding's."""
    return weights.spelled.sources(weights.embedding)[0] if name == weights.tied_head else name


KEPT = 4
"""A layer's two parameters of experts, in two types: their tensors lie side by side in the files."""


def merged_weights(adapter: Artifact[AdapterFacts], onto: Literal["as trained", "16-bit"]) -> MergedWeights:
    """The tuned weights on the base as it was trained, or on its original 16-bit (or float32) weights."""
    facts = adapter.facts
    quantization = facts.quantization if onto == "as trained" else None
    base = TrainedWeights(Path(facts.base.folder), facts.base_dtype, quantization, facts.vocabulary)
    first, *others = (LoraAdapter(folder) for folder in stack_of(adapter))
    merged = MergedWeights(base, first)
    for other in others:
        merged = MergedWeights(merged, other)
    return merged


def below_the_last(adapter: Artifact[AdapterFacts]) -> TrainedWeights | MergedWeights:
    """What the last adapter of a stack was trained on; of one alone, its base."""
    merged = merged_weights(adapter, "as trained") if adapter.facts.stacked else None
    return weights_of(adapter) if merged is None else merged.weights
