"""What all objectives share: what is asked for, the trainer's settings, and the guard over what it learns from.

Imports of TRL are inside functions on purpose: Unsloth patches what is imported after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from toolkit.errors import DataError
from toolkit.models.peft_layers import NAME
from toolkit.models.pictures import PictureRules
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import Train
from toolkit.train.model import Loaded, autocast_of
from toolkit.train.own_rewards import Reward
from toolkit.train.reporters import reporting
from toolkit.train.rows import TokenizedRow


@dataclass(frozen=True)
class Order:
    """What is to be trained."""

    recipe: Recipe
    """As the step sees it (`Recipe.at`)."""
    loaded: Loaded
    checkpoints: Path
    goes_on: bool = False
    """The adapter was trained by an earlier step."""
    held_out: Sequence[dict[str, Any]] = ()
    """Examples to look at while training, where the recipe says `eval_steps` or `early_stopping_patience`."""
    rewards: Mapping[str, Reward] | None = None
    """Of grpo and rloo, by name."""
    judge: Callable[[list[list[int]]], list[float]] | None = None
    """Of rloo: a reward model; token ids of prompts with answers → a number for each."""
    rules: PictureRules | None = None
    """How a server shows the rows' pictures; None: they show none."""


class Examples(NamedTuple):
    """Rows as a trainer takes them."""

    given: list[dict[str, Any]]
    learnt: list[TokenizedRow]
    """The answers that are learnt from, one sequence or more a row; of a pair the chosen one."""
    long: list[dict[str, Any]]
    """A row each that is left out, or of which something is, for `train.max_length`: file, line, tokens."""


def settings(order: Order) -> dict[str, Any]:
    """What every configuration of TRL is told, on purpose where its own default would be silent trouble: mixed precision and
    gradient checkpointing are on by default, on a CPU too."""
    train = order.recipe.train
    return {
        "output_dir": str(order.checkpoints),
        "per_device_train_batch_size": train.per_device_train_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "num_train_epochs": train.num_train_epochs,
        "max_steps": train.max_steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": _optimizer(train),
        **autocast_of(order.recipe),
        "gradient_checkpointing": train.gradient_checkpointing,
        "logging_steps": train.logging_steps,
        "save_steps": train.save_steps,
        "save_total_limit": 2,
        "seed": train.seed,
        "data_seed": train.seed,
        **reporting(train.reporters, order.checkpoints.parent),
        **_looking(train),
        **({"neftune_noise_alpha": train.neftune_noise_alpha} if train.neftune_noise_alpha else {}),
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,  # what is trained is used in every step
        "disable_tqdm": True,
    }


def _optimizer(train: Train) -> str:
    """The same numbers in one pass over each matrix, where torch has that and every process holds whole matrices."""
    fused = train.optim == "adamw_torch" and not torch.cuda.is_available() and train.distributed == "none"
    return "adamw_torch_fused" if fused else train.optim


def _looking(train: Train) -> dict[str, Any]:
    """How often the held-out examples are looked at. Each look is a checkpoint, so that the best can be kept."""
    if train.looks_every is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": train.looks_every,
        "save_steps": train.looks_every,
        "per_device_eval_batch_size": train.per_device_train_batch_size,
        "load_best_model_at_end": train.early_stopping_patience is not None,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True,  # else a killed run would have its patience anew
    }


def datasets_of(
    order: Order, examples: list[dict[str, Any]], as_taken: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> dict[str, Any]:
    """What a trainer trains on, and looks at where the recipe says so.

    Args:
        as_taken: an example as the trainer takes it.
    """
    held_out = order.held_out if order.recipe.train.looks_every is not None else ()
    return {
        "train_dataset": dataset_of([as_taken(row) for row in examples]),
        "eval_dataset": dataset_of([as_taken(row) for row in held_out]) if held_out else None,
    }


def dataset_of(examples: list[dict[str, Any]]) -> Any:
    """A dataset of the examples, in memory."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset.from_list(examples)


def taking_tokens(trainer: Any) -> Any:
    """A class of TRL that takes tokens as they are: it renders rows in a way of its own, and cuts what is too long."""

    class TakesTokens(trainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def tokenize_row(self, row: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
            return row

    TakesTokens.__name__ = trainer.__name__
    return TakesTokens


def finished(trainer: Any, order: Order) -> Any:
    """The trainer as all of them are used here: what is trained is float32, and its own lines are off the screen.

    TRL rounds the adapter of a quantized base to bfloat16; a resumed run would then go on in float32, elsewhere.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

    train = order.recipe.train
    for parameter in order.loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if train.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(train.early_stopping_patience))
    if train.loraplus_lr_ratio is not None:
        _with_two_rates(trainer, train)
    return trainer


def _with_two_rates(trainer: Any, train: Train) -> None:
    """Let the trainer make LoRA+'s optimizer, when it makes one."""
    from peft.optimizers import create_loraplus_optimizer

    def create(model: Any = None) -> Any:
        if trainer.optimizer is None:
            kind, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
            trainer.optimizer = create_loraplus_optimizer(
                trainer.model if model is None else model, kind, loraplus_lr_ratio=train.loraplus_lr_ratio,
                loraplus_lr_embedding=train.loraplus_lr_embedding, loraplus_weight_decay=train.weight_decay, **arguments,
            )  # fmt: skip
        return trainer.optimizer

    trainer.create_optimizer = create


def settle_reference(order: Order) -> None:
    """TRL keeps a copy of every adapter that it is given, as its reference. Where the adapter is fresh it changes nothing yet:
    the reference is the model with the adapter off. Where it is not, the copy has to be whole; TRL copies what lies in modules,
    not what lies in lists of parameters (IA3, LoHa, LoKr, rows of tokens).

    An adapter that began with a part of the base is not fresh: with it off the model is not the base.
    """
    model = order.loaded.model
    if "ref" not in getattr(model, "peft_config", {}):
        return
    if not order.goes_on and not order.loaded.start:
        model.delete_adapter("ref")
        return
    for name, parameter in model.named_parameters():
        if name.endswith(f".{NAME}"):
            model.get_parameter(f"{name.removesuffix(NAME)}ref").data.copy_(parameter.data)


def check_rows(
    trainer: Any, examples: list[dict[str, Any]], learned: Callable[[Any], list[int]], want: list[int]
) -> None:
    """Ask the trainer's own dataset and collator for what it will train on: nothing cut, nothing else learned.

    Args:
        learned: the tokens that a collated batch of the first four examples learns from, in order.
        want: these tokens, by the examples themselves.

    Raises:
        DataError: they differ.
    """
    prepared = trainer.train_dataset
    kept = len(prepared) == len(examples) and all(
        all(row[key] == example[key] for key in example) for row, example in zip(prepared, examples)
    )
    if kept:
        batch = trainer.data_collator([prepared[index] for index in range(min(4, len(examples)))])
        if learned(batch) == want:
            return
    raise DataError(
        "the trainer changed the rows: it would learn from other tokens than the answers",
        "The versions installed here do not fit together: make setup",
    )
