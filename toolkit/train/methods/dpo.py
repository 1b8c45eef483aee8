"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290; TRL's DPOTrainer). The reference is the model as it
was when training began: the adapter off, or the adapter that an earlier step left, kept beside the one that is trained."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import (
    Order,
    check_rows,
    datasets_of,
    finished,
    settings,
    settle_reference,
    taking_tokens,
)
from toolkit.train.methods.pairs import answers, masked


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A DPOTrainer."""
    from trl import DPOConfig, DPOTrainer

    beta = order.recipe.train.beta
    config = DPOConfig(**settings(order), max_length=None, **({} if beta is None else {"beta": beta}))
    model = order.loaded.model
    made = taking_tokens(DPOTrainer)(
        model=model, args=config, **datasets_of(order, examples), processing_class=order.loaded.tokenizer,
        callbacks=callbacks,
    )  # fmt: skip
    settle_reference(order)
    finished(made, order)
    check_rows(made, examples, lambda b: masked(b["input_ids"], b["completion_mask"]), answers(examples))
    return made
