"""What training changed: every tensor of the base and of the tuned model, one at a time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from toolkit.export.settings import settings_of
from toolkit.models.bases import cached_sha256
from toolkit.models.checkpoint_names import CheckpointNames
from toolkit.models.layout import Layout, layout_of
from toolkit.models.merged import MergedWeights, merged_weights
from toolkit.models.safetensors_file import Entry, model_files
from toolkit.models.weights import TrainedWeights
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts


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
        self._adapter, self._fields = adapter.folder, facts.chat_template_kwargs
        if facts.method == "full":
            self._tuned = TrainedWeights(adapter.folder, facts.base_dtype, None)
            self._base = TrainedWeights(Path(facts.base.folder), facts.base_dtype, None)
        else:
            self._merged = merged_weights(adapter, onto)
        self._original: TrainedWeights | None = None
        if facts.quantization is not None and onto == "as trained":
            self._original = TrainedWeights(Path(facts.base.folder), facts.base_dtype, None)

    @functools.cached_property
    def layout(self) -> Layout:
        """What the pinned converter makes of the tuned model: the file of its language model.

        Raises:
            DataError: an architecture or tokenizer that llama.cpp does not know.
            ExternalToolError: the converter fails.
        """
        return self._layout(projector=False)

    @functools.cached_property
    def projector(self) -> Layout:
        """The same of the file that sees (mmproj)."""
        return self._layout(projector=True)

    @functools.cached_property
    def seeing(self) -> frozenset[str]:
        """The tensors that the file that sees is made of: vision layers, and what joins them to the language model."""
        return frozenset(source for name in self.projector.tensors for source in self.projector.sources(name))

    def _layout(self, projector: bool) -> Layout:
        entries = [self.entry(name) for name in self.names()]
        if self._merged is None:
            return layout_of(self.folder, entries, self.tied_head, projector)
        settings = settings_of(self._merged, self._adapter, self._fields).folder
        return layout_of(settings, entries, self.tied_head, projector)

    @functools.cached_property
    def config(self) -> Any:
        """transformers' configuration of the tuned model."""
        return (self._merged or self._tuned).structure().config

    @property
    def spelled(self) -> CheckpointNames:
        """The names of the files' tensors, and of the parameters in memory."""
        return self._merged.spelled if self._merged else self._tuned.spelled

    def names(self) -> list[str]:
        """Every tensor of the tuned model."""
        return self._merged.names() if self._merged else self._tuned.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entry(name).shape

    def entry(self, name: str) -> Entry:
        """Shape of a tensor, and the type of the base's file; of a tied head, the embedding's."""
        name = self._stored(name)
        return self._merged.entry(name) if self._merged else self._tuned.entry(name)

    @property
    def tied_head(self) -> str | None:
        """The head's name when it is the embedding itself."""
        return self._merged.tied_head if self._merged else self._tuned.tied_head

    @property
    def vocabulary(self) -> int | None:
        """Tokens that the base was resized to for training; None: as its config.json says."""
        return self._merged.vocabulary if self._merged else None

    @property
    def embedding(self) -> str:
        """The files' name of the token embedding."""
        return self.spelled.sources(self._merged.weights.embedding if self._merged else self._tuned.embedding)[0]

    def _stored(self, name: str) -> str:
        return self.embedding if name == self.tied_head else name

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
            whole = base.float()
            return Weights(whole, whole, self._original_of(name))
        tuned = self._merged.merged(name, base.float().clone())
        in_16_bits = None if base.dtype == torch.float32 else self._merged.merged(name, base.clone()).float()
        return Weights(base.float(), tuned, self._original_of(name), in_16_bits)

    def _original_of(self, name: str) -> torch.Tensor | None:
        if self._original is None or self._merged is None or not self._merged.weights.is_quantized(name):
            return None
        return self._original.load(name).float()


def _sums_of_files(folder: Path) -> set[str]:
    return {cached_sha256(path) for path in model_files(folder).values()}
