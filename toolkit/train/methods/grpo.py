"""Group relative policy optimization (Shao et al. 2024, arXiv 2402.03300; TRL's GRPOTrainer): several answers to each prompt,
each judged by rewards and compared with the others."""

from __future__ import annotations

from typing import Any

from toolkit.train.methods.common import Order
from toolkit.train.methods.sampled import sampling


def trainer(order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A GRPOTrainer."""
    from trl import GRPOConfig, GRPOTrainer

    return sampling(order, GRPOTrainer, GRPOConfig, examples, callbacks)
