"""What does not go together in a recipe, of the adapter's kinds and the settings of training; told when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit.recipe.lora import Lora

if TYPE_CHECKING:
    from toolkit.recipe.rows import Data
    from toolkit.recipe.schema import Recipe
    from toolkit.recipe.training import Train

_HARMLESS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora")
"""Keys of `lora` that a recipe for several methods may have, though full training has no adapter."""


def _steps(recipe: Recipe) -> list[tuple[str, Data | None, Train]]:
    """(where, data, train) of all steps, in order."""
    earlier = [(f"earlier.{name}: ", step.data, step.train) for name, step in recipe.earlier.items()]
    return [*earlier, ("", recipe.data, recipe.train)]


def faults_of_adapter(recipe: Recipe) -> list[str]:
    """What does not go together, of the adapter and of added tokens."""
    lora, method = recipe.lora, recipe.train.method
    faults = []
    if method == "full" and lora != Lora():
        given = [k for k, f in Lora.model_fields.items() if getattr(lora, k) != f.default and k not in _HARMLESS]
        faults += [f"lora.{key} goes with train.method qlora or lora, not full" for key in given]
    if method == "qlora" and lora.peft_type in ("LOHA", "LOKR"):
        faults.append(f"lora.peft_type: PEFT puts no {lora.peft_type} on a base in NF4: train.method lora")
    if lora.start and method == "qlora":
        faults.append(
            f"lora.init_lora_weights: {lora.start} takes a part out of the base before it is rounded to NF4, so what is trained "
            "on cannot be made anew for the export: train.method lora"
        )
    if lora.start and recipe.earlier:
        faults.append(
            f"lora.init_lora_weights: {lora.start} begins with a part of the base, an earlier step's adapter with what it "
            "learnt: a second step would take that part once more. Leave it out, or train in one step"
        )
    if recipe.adapter is not None and recipe.merge.onto == "auto":
        faults.append(
            "merge.onto: auto reads held-out rows, and an adapter made elsewhere brings none: say which, or leave it out"
        )
    if recipe.adapter is not None and recipe.export.measures_imatrix:
        faults.append(
            "export.imatrix: true reads rows of the training split, and an adapter made elsewhere brings none: name a file "
            "that llama-imatrix wrote"
        )
    if recipe.tokens.add:
        if recipe.adapter is not None:
            faults.append("tokens.add is for training; an adapter has the tokens that it was trained with")
        if lora.peft_type != "LORA" and method != "full":
            faults.append(f"tokens.add needs lora.peft_type LORA: PEFT trains new rows beside no {lora.peft_type}")
        targets = lora.target_modules if isinstance(lora.target_modules, list) else []
        if clash := [name for name in lora.vocabulary_modules if name in targets]:
            faults.append(
                f"tokens.add trains rows of {', '.join(clash)}, which a LoRA on the whole of it would change too: take it out of "
                "lora.target_modules, or name it in lora.modules_to_save"
            )
        if any(train.objective == "reward" for _, _, train in _steps(recipe)):
            faults.append("tokens.add does not go with an earlier reward model, which would not know the tokens")
    return faults


def faults_of_knobs(recipe: Recipe) -> list[str]:
    """What does not go together, of the settings of training that only some objectives have."""
    from toolkit.recipe.training import SAMPLED

    faults = []
    for where, data, train in _steps(recipe):
        text = train.objective in ("sft", "pretrain")
        for key in ("packing", "neftune_noise_alpha"):
            if getattr(train, key) and not text:
                faults.append(f"{where}train.{key} goes with objective sft or pretrain, not {train.objective}")
        if train.loraplus_lr_ratio is not None and (train.method == "full" or recipe.lora.peft_type != "LORA"):
            faults.append(
                f"{where}train.loraplus_lr_ratio is of the matrices A and B: it needs an adapter of peft_type LORA"
            )
        if train.looks_every is not None and train.objective in SAMPLED:
            faults.append(
                f"{where}train.eval_steps and early_stopping_patience look at the loss of held-out answers, which "
                f"{train.objective} does not learn from: its rewards say how far it came"
            )
        elif train.looks_every is not None and data is not None and data.validation == 0:
            faults.append(
                f"{where}train.early_stopping_patience and eval_steps need held-out rows: data.validation above 0"
            )
    return faults
