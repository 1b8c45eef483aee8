"""Odds-ratio preference optimization (Hong et al. 2024, arXiv 2403.07691; TRL's ORPOTrainer): no reference, and the chosen
answers are learnt as in fine-tuning at the same time."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import Order, check_rows, datasets_of, finished, settings, taking_tokens
from toolkit.train.methods.pairs import answers
from toolkit.train.rows import NOT_LEARNED


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """An ORPOTrainer."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    train = order.recipe.train
    beta = {} if train.beta is None else {"beta": train.beta}
    return labelled(
        ORPOTrainer, ORPOConfig(**settings(order), max_length=train.max_length, **beta), order, examples, callbacks
    )


def labelled(trainer: Any, config: Any, order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A trainer of ORPO's kind, which takes each answer behind its prompt, with labels."""
    given = [_labelled(row) for row in examples]
    model = order.loaded.model
    made = taking_tokens(trainer)(
        model=model, args=config, **datasets_of(order, examples, _labelled), processing_class=order.loaded.tokenizer,
        callbacks=callbacks,
    )  # fmt: skip
    finished(made, order)
    check_rows(made, given, _learned, answers(examples))
    return made


def _labelled(row: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "prompt_input_ids": row["prompt_ids"],
        "prompt_attention_mask": [1] * len(row["prompt_ids"]),
    }
    for side in ("chosen", "rejected"):
        ids = [*row["prompt_ids"], *row[f"{side}_ids"]]
        made[f"{side}_input_ids"], made[f"{side}_attention_mask"] = ids, [1] * len(ids)
        made[f"{side}_labels"] = [NOT_LEARNED] * len(row["prompt_ids"]) + row[f"{side}_ids"]
    return made


def _learned(batch: Any) -> list[int]:
    found = [batch[f"{side}_labels"].flatten().tolist() for side in ("chosen", "rejected")]
    return [token for labels in found for token in labels if token != NOT_LEARNED]
