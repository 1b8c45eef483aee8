"""A reward model (TRL's RewardTrainer): a number for an answer, learnt from pairs (Bradley and Terry 1952). The second of the
three stages of learning from human feedback (Ouyang et al. 2022, arXiv 2203.02155); `rloo` is the third."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import Order, check_rows, datasets_of, finished, settings, taking_tokens
from toolkit.train.methods.pairs import masked, whole


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A RewardTrainer."""
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(**settings(order), max_length=None)
    given = [_joined(row) for row in examples]
    model = order.loaded.model
    made = taking_tokens(RewardTrainer)(
        model=model, args=config, **datasets_of(order, examples, _joined), processing_class=order.loaded.tokenizer,
        callbacks=callbacks,
    )  # fmt: skip
    finished(made, order)
    check_rows(made, given, lambda b: masked(b["input_ids"], b["attention_mask"]), whole(examples))
    return made


def _joined(row: dict[str, Any]) -> dict[str, Any]:
    return {side: [*row["prompt_ids"], *row[side]] for side in ("chosen_ids", "rejected_ids")}
