"""Which base a QLoRA adapter is merged onto, where the recipe leaves it to what is measured (`merge.onto: auto`)."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from toolkit.models.reference import held_out_loss
from toolkit.models.seen import seen_rows
from toolkit.models.tokenizer import load_tokenizer
from toolkit.models.weights import TrainedWeights, weights_of
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, DatasetFacts, OntoFacts

LOSS_ROWS = 16


def choose_base(recipe: Recipe, dataset: Artifact[DatasetFacts], adapter: Artifact[AdapterFacts]) -> OntoFacts:
    """The base on which the adapter's loss of held-out rows is lower: the dequantized NF4 weights that it was trained on, or the
    original ones, which it never saw. Where there is one base only, or no row to tell by, as it was trained.
    """
    stderr = Console(file=sys.stderr)
    if adapter.facts.quantization is None:
        return OntoFacts(onto="as trained", loss_as_trained=None, loss_on_16_bit=None)
    facts = adapter.facts
    trained = _loss(recipe, adapter, dataset, weights_of(adapter))
    before = TrainedWeights(Path(facts.base.folder), facts.base_dtype, None, facts.vocabulary)
    original = _loss(recipe, adapter, dataset, before)
    if trained is None or original is None:
        stderr.print(
            "No held-out row tells which base is better; the adapter is merged onto the one it was trained on."
        )
        return OntoFacts(onto="as trained", loss_as_trained=trained, loss_on_16_bit=original)
    better = "16-bit" if original < trained else "as trained"
    stderr.print(
        f"Held-out loss {trained:.4f} on the NF4 weights that were trained on, {original:.4f} on the original ones: "
        f"merged onto {'the original ones' if better == '16-bit' else 'those that were trained on'}.",
        markup=False,
    )
    return OntoFacts(
        onto="16-bit" if better == "16-bit" else "as trained", loss_as_trained=trained, loss_on_16_bit=original
    )


def _loss(
    recipe: Recipe, adapter: Artifact[AdapterFacts], dataset: Artifact[DatasetFacts], base: TrainedWeights
) -> float | None:
    """Mean loss of the adapter on a base, in nats per answer token; None: no row is short enough."""
    rows = seen_rows(dataset.folder, "validation", adapter.facts.pictures)[:LOSS_ROWS]
    tokenizer, fields = load_tokenizer(adapter.folder), adapter.facts.chat_template_kwargs
    return held_out_loss(base, adapter.folder, rows, tokenizer, recipe.train.max_length, LOSS_ROWS, fields)
