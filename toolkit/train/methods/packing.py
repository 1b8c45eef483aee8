"""Packed rows: several in one sequence, each with positions of its own, none of which may see another.

TRL packs them and gives no mask; transformers makes one of the positions. Whether a base's own code keeps to that is asked of the
model itself, before anything is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from toolkit.errors import DataError, UsageError

SHOWN = 128
"""Tokens of each of the two rows that are asked about."""


def check_packed(trainer: Any, examples: list[dict[str, Any]]) -> None:
    """Ask the trainer's dataset and collator for what it will train on, and its model whether rows see each other.

    Raises:
        DataError: it would learn from other tokens than it was given.
        UsageError: what stands before a row in its sequence changes what the model says of it.
    """
    prepared = trainer.train_dataset
    found = [row for packed in prepared for row in _unpacked(packed)]
    given = [(list(row["input_ids"]), list(row["labels"])) for row in examples]
    labels = trainer.data_collator([prepared[0]])["labels"].flatten().tolist()
    # The first token of a row follows nothing.
    wanted = [token for _, row in _unpacked(prepared[0]) for token in [-100, *row[1:]]]
    if sorted(found) != sorted(given) or labels != wanted:
        raise DataError(
            "the trainer changed the rows as it packed them: it would learn from other tokens than the answers",
            "The versions installed here do not fit together: make setup",
        )
    if len(examples) > 1 and leaks(trainer, examples[0], examples[1]):
        raise UsageError(
            "train.packing: this base lets packed rows see each other", "Train them apart: --set train.packing=false"
        )


def _unpacked(packed: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    rows, begin = [], 0
    for length in packed["seq_lengths"]:
        rows.append((packed["input_ids"][begin : begin + length], packed["labels"][begin : begin + length]))
        begin += length
    return rows


@torch.no_grad()
def leaks(trainer: Any, first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether another first row, of the same length, changes what the model says of the second behind it."""
    model = trainer.model
    was_training = model.training
    model.eval()
    before, behind = list(first["input_ids"])[:SHOWN], list(second["input_ids"])[:SHOWN]
    found = []
    for ids in (before, [token + 1 if token == 0 else token - 1 for token in before]):
        packed = {"input_ids": ids + behind, "labels": ids + behind, "seq_lengths": [len(ids), len(behind)]}
        batch = trainer._prepare_inputs(trainer.data_collator([packed]))
        batch.pop("labels")
        found.append(model(**batch, use_cache=False).logits[0, len(ids) : len(ids) + len(behind)].float())
    model.train(was_training)
    # A mask leaves exactly nothing of what it hides; a thousandth is for kernels that sum in another order.
    return bool((found[0] - found[1]).abs().max() > 1e-3 * found[0].abs().max())


@contextmanager
def without_doubts(packing: bool) -> Iterator[None]:
    """Within it TRL says nothing of attention that may not keep packed rows apart: `leaks` asks the model itself."""
    log = logging.getLogger("trl.trainer.sft_trainer")
    log.setLevel(logging.ERROR if packing else log.level)
    try:
        yield
    finally:
        log.setLevel(logging.NOTSET)
