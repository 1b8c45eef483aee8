"""REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740; TRL's RLOOTrainer): rewards, or a reward model that an earlier
step trained. It stands where PPO stood, which has left TRL."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import Order
from toolkit.train.methods.sampled import sampling


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """An RLOOTrainer."""
    from trl import RLOOConfig, RLOOTrainer

    return sampling(order, RLOOTrainer, RLOOConfig, examples, callbacks)
