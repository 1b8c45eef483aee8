"""Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306; TRL's KTOTrainer): answers with a label, no pairs."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import (
    Examples,
    Order,
    check_rows,
    datasets_of,
    finished,
    settings,
    settle_reference,
    taking_tokens,
)
from toolkit.train.methods.pairs import masked
from toolkit.train.rows import refuse_mostly_long, tokenize


def examples(tokenizer: Any, rows: list[dict[str, Any]], order: Order) -> Examples:
    """prompt_ids, completion_ids, label; and KL_completion_ids, the answer of the row before, by which the distance to the
    reference is estimated (section 4.2 of the paper)."""
    train = order.recipe.train
    given: list[dict[str, Any]] = []
    learnt, long = [], []
    for row in rows:
        found = tokenize(tokenizer, row, train.chat_template_kwargs)[-1]
        if len(found.input_ids) > train.max_length:
            long.append({**row["source"], "tokens": len(found.input_ids), "answers_left_out": 1})
            continue
        first = found.first
        prompt, answer = found.input_ids[:first], found.input_ids[first:]
        given.append({"prompt_ids": prompt, "completion_ids": answer, "label": row["label"]})
        learnt += [found] if row["label"] else []
    refuse_mostly_long(long, len(long), len(rows), train.max_length)
    for row, before in zip(given, [*given[-1:], *given]):
        row["KL_completion_ids"] = before["completion_ids"]
    return Examples(given, learnt, long)


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A KTOTrainer."""
    from trl import KTOConfig, KTOTrainer

    beta = order.recipe.train.beta
    config = KTOConfig(**settings(order), max_length=None, **({} if beta is None else {"beta": beta}))
    model = order.loaded.model
    made = taking_tokens(KTOTrainer)(
        model=model, args=config, **datasets_of(order, examples), processing_class=order.loaded.tokenizer,
        callbacks=callbacks,
    )  # fmt: skip
    settle_reference(order)
    finished(made, order)
    want = [token for row in examples[:4] for token in row["completion_ids"]]
    check_rows(made, examples, lambda b: masked(b["input_ids"], b["completion_mask"]), want)
    return made
