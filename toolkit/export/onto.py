"""Which base a QLoRA adapter is merged onto, where the recipe leaves it to what is measured (`merge.onto: auto`)."""

from __future__ import annotations

import sys

from rich.console import Console

from toolkit.export.merge import loss_on, original_weights
from toolkit.models.weights import weights_of
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, DatasetFacts, OntoFacts


def choose_base(recipe: Recipe, dataset: Artifact[DatasetFacts], adapter: Artifact[AdapterFacts]) -> OntoFacts:
    """The base on which the adapter's loss of held-out rows is lower: the dequantized NF4 weights that it was trained on, or the
    original ones, which it never saw. Where there is one base only, or no row to tell by, as it was trained.
    """
    stderr = Console(file=sys.stderr)
    if adapter.facts.quantization is None:
        return OntoFacts(onto="as trained", loss_as_trained=None, loss_on_16_bit=None)
    trained = loss_on(recipe, adapter, dataset, weights_of(adapter))
    original = loss_on(recipe, adapter, dataset, original_weights(adapter.facts))
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
