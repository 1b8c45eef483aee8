"""What all objectives share: what is asked for, the trainer's settings, and the guard over what it learns from.

Imports of TRL are inside functions on purpose: Unsloth patches what is imported after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from toolkit.errors import DataError
from toolkit.recipe.schema import Recipe
from toolkit.train.model import Loaded, autocast_of
from toolkit.train.rows import TokenizedRow

Reward = Callable[[list[str], list[str]], list[float]]
"""(answers, references) → a number for each answer."""


@dataclass(frozen=True)
class Order:
    """What is to be trained."""

    recipe: Recipe
    """As the step sees it (`Recipe.at`)."""
    loaded: Loaded
    checkpoints: Path
    goes_on: bool = False
    """The adapter was trained by an earlier step."""
    rewards: Mapping[str, Reward] | None = None
    """Of grpo and rloo, by name."""
    judge: Callable[[list[list[int]]], list[float]] | None = None
    """Of rloo: a reward model; token ids of prompts with answers → a number for each."""


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
    if train.report_to == "tensorboard":
        # Beside the artifact, not in it: its files tell times and hosts.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(order.checkpoints.parent.parent / "tensorboard")
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
        "optim": train.optim,
        **autocast_of(order.recipe),
        "gradient_checkpointing": train.gradient_checkpointing,
        "logging_steps": train.logging_steps,
        "save_steps": train.save_steps,
        "save_total_limit": 2,
        "seed": train.seed,
        "data_seed": train.seed,
        "report_to": train.report_to,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,  # what is trained is used in every step
        "disable_tqdm": True,
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


def finished(trainer: Any, model: Any) -> Any:
    """The trainer as all of them are used here: what is trained is float32, and its own lines are off the screen.

    TRL rounds the adapter of a quantized base to bfloat16; a resumed run would then go on in float32, elsewhere.
    """
    from transformers import PrinterCallback, ProgressCallback

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def without_needless_reference(order: Order) -> None:
    """Where the adapter is fresh, it changes nothing yet: the reference is the model with the adapter off. TRL keeps a copy of
    every adapter that it is given."""
    model = order.loaded.model
    if "ref" in getattr(model, "peft_config", {}) and not order.goes_on:
        model.delete_adapter("ref")


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
