"""Supervised fine-tuning (TRL's SFTTrainer): loss on the answers alone."""

from __future__ import annotations

from typing import Any

from toolkit.train.adapter import head_is_wrapped
from toolkit.train.methods.common import Examples, Order, check_rows, datasets_of, finished, settings
from toolkit.train.methods.packing import check_packed, without_doubts
from toolkit.train.pictures import Showing, example_of
from toolkit.train.rows import NOT_LEARNED, tokenized


def examples(tokenizer: Any, rows: list[dict[str, Any]], order: Order) -> Examples:
    """Token ids with labels."""
    train = order.recipe.train
    sequences, long = tokenized(tokenizer, rows, train.max_length, train.chat_template_kwargs)
    # Every example has every column.
    made = [row.example() if order.rules is None else example_of(row) for row in sequences]
    return Examples(made, sequences, long)


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """An SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    train, loaded = order.recipe.train, order.loaded
    # Of a row with a picture a thousand tokens are no answer; TRL's chunks would be filled up with them.
    alone = not loaded.through_unsloth and (order.rules is not None or head_is_wrapped(loaded.model))
    config = SFTConfig(
        **settings(order),
        # `tokenized` left longer rows out; TRL would cut them.
        max_length=train.max_length if train.packing else None,
        packing=train.packing,
        eval_packing=False,
        train_sampling_strategy=train.train_sampling_strategy,
        # Never all logits at once: by TRL's loss, or by Unsloth's own, which TRL's would push aside. TRL's reads the head's
        # weight, and would not see what an adapter makes of it.
        loss_type="nll" if loaded.through_unsloth or alone else "chunked_nll",
        remove_unused_columns=order.rules is None,
        include_num_input_tokens_seen="non_padding",  # TRL counts them too, Unsloth's trainer does not
    )
    seeing = {}
    if order.rules is not None:
        seeing["data_collator"] = Showing(loaded.tokenizer, order.rules, answers_alone=alone)
    # As tokens with labels: TRL and Unsloth each render conversations in their own way.
    with without_doubts(train.packing):
        made = SFTTrainer(
            model=loaded.model, args=config, **datasets_of(order, examples), processing_class=loaded.tokenizer,
            callbacks=callbacks, **seeing,
        )  # fmt: skip
    finished(made, order)
    if train.packing:
        check_packed(made, examples)
    else:
        check(made, examples)
    return made


def check(trainer: Any, examples: list[dict[str, Any]]) -> None:
    """Raises as `check_rows`. A batch is one row where the trainer does without padding, as Unsloth may."""
    check_rows(trainer, examples, lambda batch: _learned(batch["labels"].flatten().tolist()), _wanted(examples))


def _learned(labels: list[int]) -> list[int]:
    return [token for token in labels if token != NOT_LEARNED]


def _wanted(examples: list[dict[str, Any]]) -> list[int]:
    return [token for row in examples[:4] for token in _learned(row["labels"])]
