"""Preference pairs as tokens: one prompt, the better answer and the worse one, each with its end."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import Examples, Order
from toolkit.train.rows import pair_of, refuse_mostly_long


def examples(tokenizer: Any, rows: list[dict[str, Any]], order: Order) -> Examples:
    """prompt_ids, chosen_ids, rejected_ids. A pair of which one answer ends behind `train.max_length` is left out: cut to
    nothing, it makes the loss of ORPO and CPO no number."""
    train = order.recipe.train
    given, learnt, long = [], [], []
    for row in rows:
        chosen, rejected = pair_of(tokenizer, row, train.chat_template_kwargs)
        longest = max(len(chosen.input_ids), len(rejected.input_ids))
        if longest > train.max_length:
            long.append({**row["source"], "tokens": longest, "answers_left_out": 1})
            continue
        first = chosen.first
        given.append(
            {
                "prompt_ids": chosen.input_ids[:first],
                "chosen_ids": chosen.input_ids[first:],
                "rejected_ids": rejected.input_ids[first:],
            }
        )
        learnt.append(chosen)
    refuse_mostly_long(long, len(long), len(rows), train.max_length)
    return Examples(given, learnt, long)


def whole(examples: list[dict[str, Any]]) -> list[int]:
    """All tokens of the first four pairs: chosen ones first, as TRL's collators stack them."""
    return [
        token
        for side in ("chosen_ids", "rejected_ids")
        for row in examples[:4]
        for token in [*row["prompt_ids"], *row[side]]
    ]


def answers(examples: list[dict[str, Any]]) -> list[int]:
    """The tokens of the answers of the first four pairs, chosen ones first."""
    return [token for side in ("chosen_ids", "rejected_ids") for row in examples[:4] for token in row[side]]


def masked(ids: Any, mask: Any) -> list[int]:
    """The tokens of a batch where the mask is not 0, row by row."""
    found: list[int] = ids[mask.bool()].tolist()
    return found
