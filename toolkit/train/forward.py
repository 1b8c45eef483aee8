"""The forward that trained: what the trainer's own model loses on a few rows when its training ends.

An engine may compute another function than inference does: soft caps or windows left out, positions counted otherwise, a kernel
of its own. The adapter then learnt for that function, every file made of it is right, and what runs is word salad. The golden
stage computes the same losses in float32 (`toolkit.parity.golden.training_rows`), the certificate compares them
(`toolkit.parity.checks.forward`).

`forward.jsonl`, a sequence each: split, index (the line in the split's file, from 0), part (which sequence of that row, from 0),
tokens (of the answers), loss (nats per answer token).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from toolkit.models.chat_template import NOTHING_TOLD
from toolkit.models.seen import given
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import write_jsonl
from toolkit.train.pictures import example_of
from toolkit.train.rows import NOT_LEARNED, TokenizedRow, tokenize
from toolkit.train.world import is_first

FORWARD_FILE = "forward.jsonl"
ROWS = 8
"""Spread over all lengths: a window or a position shows in a long row only."""
_SHORT_TYPES: dict[torch.dtype, Literal["bfloat16", "float16"]] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True)
class Place:
    """Where a sequence is from."""

    split: str
    index: int
    """The line in the split's file, from 0."""
    part: int
    """Which sequence of that row, from 0."""


def chosen_rows(
    tokenizer: Any, splits: dict[str, list[dict[str, Any]]], max_length: int, fields: Mapping[str, Any] = NOTHING_TOLD
) -> list[tuple[Place, TokenizedRow]]:
    """The sequences that are recorded: of the first split with enough of at most `max_length` tokens.

    Args:
        fields: what the chat template is told.
    """
    fitting: list[tuple[Place, TokenizedRow]] = []
    for split, rows in splits.items():
        found = [
            (Place(split, index, part), row)
            for index, whole in enumerate(rows[: 32 * ROWS])
            for part, row in enumerate(tokenize(tokenizer, whole, fields))
            if len(row.input_ids) <= max_length
        ]
        fitting += sorted(found, key=lambda one: len(one[1].input_ids))
        if len(fitting) >= ROWS:
            break
    last = len(fitting) - 1
    return [fitting[i] for i in sorted({round(last * i / (ROWS - 1)) for i in range(ROWS)})] if fitting else []


def record_forward(
    trainer: Any, tokenizer: Any, splits: dict[str, list[dict[str, Any]]], recipe: Recipe, out: Path
) -> None:
    """Write `forward.jsonl` into `out`: each row alone through the trainer's own model and autocast, and where the objective's
    loss is that of an answer, through its own collator and loss.

    With gradients, as in training: kernels differ with them and without. Only dropout is left out, since it is chance.
    """
    loss_of = _by_trainer if recipe.train.objective in ("sft", "pretrain") else _by_model
    recorded = []
    with _without_dropout(trainer.model):
        for place, row in chosen_rows(tokenizer, splits, recipe.train.max_length, recipe.train.chat_template_kwargs):
            with torch.enable_grad(), trainer.compute_loss_context_manager():
                loss = float(loss_of(trainer, row))
            recorded.append({**asdict(place), "tokens": row.learnt, "loss": loss})
    if is_first():
        write_jsonl(out / FORWARD_FILE, recorded)


def _by_trainer(trainer: Any, row: TokenizedRow) -> torch.Tensor:
    example = example_of(row) if row.pictures else row.example()
    batch = trainer._prepare_inputs(trainer.data_collator([example]))
    loss: torch.Tensor = trainer.compute_loss(trainer.model, batch).detach()
    return loss


def _by_model(trainer: Any, row: TokenizedRow) -> torch.Tensor:
    device = next(trainer.model.parameters()).device
    ids = torch.tensor([row.input_ids], device=device)
    found = trainer.model(input_ids=ids, use_cache=False, **given(ids, row.pictures)).logits[0, :-1]
    labels = torch.tensor(row.labels[1:], device=device)
    return torch.nn.functional.cross_entropy(found.float(), labels, ignore_index=NOT_LEARNED).detach()


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    training = model.training
    dropping = {module: module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    model.train()
    for module in dropping:
        module.p = 0.0
    try:
        yield
    finally:
        model.train(training)
        for module, share in dropping.items():
            module.p = share


def computed_in(model: Any, args: Any) -> Literal["float32", "bfloat16", "float16"]:
    """The coarsest type that the trainer computes in: of its autocast, of the weights, or of the 4-bit layers."""
    if args.bf16 or args.fp16:
        return "bfloat16" if args.bf16 else "float16"
    types = {parameter.dtype for parameter in model.parameters()}
    types |= {getattr(module, "compute_dtype", None) for module in model.modules()}
    return next((name for dtype, name in _SHORT_TYPES.items() if dtype in types), "float32")
