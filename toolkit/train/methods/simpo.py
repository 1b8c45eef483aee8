"""Simple preference optimization (Meng et al. 2024, arXiv 2405.14734): no reference, and answers are compared by their mean
log-likelihood a token. In TRL it is CPO's trainer with the loss "simpo" and no part of the chosen answers' own loss."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import Order, settings
from toolkit.train.methods.orpo import labelled

BETA = 2.0
"""As in the paper's experiments; CPO's own, which TRL would take, is a twentieth of that."""


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A CPOTrainer."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    train = order.recipe.train
    config = CPOConfig(
        **settings(order), max_length=train.max_length, loss_type="simpo", cpo_alpha=0.0,
        beta=BETA if train.beta is None else train.beta,
    )  # fmt: skip
    return labelled(CPOTrainer, config, order, examples, callbacks)
