"""The tuned model's weights, computed tensor by tensor from its base and its adapter: what an export must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from toolkit.models.adapters import LoraAdapter
from toolkit.models.safetensors_file import Entry
from toolkit.models.weights import TrainedWeights
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts


class MergedWeights:
    """The tuned model's weights, computed as they are asked for; reads like `TrainedWeights`.

    Raises:
        DataError: the adapter does not fit the base.
    """

    def __init__(self, weights: TrainedWeights, adapter: LoraAdapter) -> None:
        adapter.check_fits(weights)
        self.weights, self.adapter = weights, adapter
        self.folder = weights.folder
        self.tied_head = None if self._unties() else weights.tied_head

    def _unties(self) -> bool:
        # An adapter on only one of two tied matrices parts them, unless PEFT was told to keep them tied.
        head, embedding = self.weights.tied_head, self.weights.embedding
        if head is None or self.adapter.config.get("ensure_weight_tying"):
            return False
        return any(name in self.adapter.replaced or self._changed(name) for name in (head, embedding))

    def _changed(self, name: str) -> bool:
        module, _, kind = name.rpartition(".")
        change = self.adapter.changes.get(module)
        return change is not None and (kind == "weight" or (kind == "bias" and "bias" in change.parts))

    def names(self) -> list[str]:
        """Every tensor of the merged model."""
        head = self.weights.tied_head
        parted = [head] if head is not None and self.tied_head is None else []
        return self.weights.names() + parted

    def entry(self, name: str) -> Entry:
        """Shape of a tensor, and the type of the base's file."""
        found = self.weights.entry(self.weights.embedding if name == self.weights.tied_head else name)
        return Entry(name, found.dtype, found.shape)

    def is_merged(self, name: str) -> bool:
        """Whether the adapter changes this tensor."""
        return name in self.adapter.replaced or self._changed(name)

    def base(self, name: str) -> torch.Tensor:
        """The tensor as the base had it in training; a head that the adapter parts from the embedding was the embedding."""
        return self.weights.load(self.weights.embedding if name == self.weights.tied_head else name)

    def load(self, name: str) -> torch.Tensor:
        """One merged tensor, on the CPU: in the type that the base was trained in, or float32 where it was quantized."""
        return self.merged(name, self.base(name))

    def merged(self, name: str, base: torch.Tensor) -> torch.Tensor:
        """The merged tensor, computed in place of `base` and in its type."""
        weight = base
        if name in self.adapter.replaced:
            # PEFT saves an embedding beside the change that it gets.
            weight = self.adapter.tensor(self.adapter.replaced[name]).to(base.dtype)
        if not self._changed(name):
            return weight
        module, _, kind = name.rpartition(".")
        return self.adapter.apply(module, weight) if kind == "weight" else self.adapter.apply_bias(module, weight)


def merged_weights(adapter: Artifact[AdapterFacts], onto: Literal["as trained", "16-bit"]) -> MergedWeights:
    """The tuned weights on the base as it was trained, or on its original 16-bit (or float32) weights."""
    facts = adapter.facts
    quantization = facts.quantization if onto == "as trained" else None
    return MergedWeights(
        TrainedWeights(Path(facts.base.folder), facts.base_dtype, quantization), LoraAdapter(adapter.folder)
    )
