"""How an objective is trained: a file each, from recipe, rows and loaded model to a trainer of TRL.

Everything around it (base, adapter, checkpoints, progress, memory advice) is in `toolkit.train.training`. What an objective
learns from is rendered by `toolkit.train.rows` alone; trainers take tokens, and render nothing themselves.
"""

from __future__ import annotations

from typing import Any

from toolkit.recipe.training import Objective
from toolkit.train.methods.common import Examples, Order


def examples_of(objective: Objective, tokenizer: Any, rows: list[dict[str, Any]], order: Order) -> Examples:
    """The rows as the objective's trainer takes them.

    Args:
        rows: of a split; see `toolkit.run.facts.DatasetFacts`.

    Raises:
        DataError: most rows are longer than `train.max_length`, or the template refuses one; with file and line.
    """
    match objective:
        case "sft" | "pretrain":
            from toolkit.train.methods.sft import examples
        case "dpo" | "orpo" | "simpo" | "reward":
            from toolkit.train.methods.pairs import examples
        case "kto":
            from toolkit.train.methods.kto import examples
        case "grpo" | "rloo":
            from toolkit.train.methods.sampled import examples
    return examples(tokenizer, rows, order)


def trainer_of(objective: Objective, order: Order, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A trainer of TRL, ready to train on the examples.

    Raises:
        DataError: the trainer would learn from other tokens than it was given.
    """
    match objective:
        case "sft":
            from toolkit.train.methods.sft import trainer
        case "pretrain":
            from toolkit.train.methods.pretrain import trainer
        case "dpo":
            from toolkit.train.methods.dpo import trainer
        case "orpo":
            from toolkit.train.methods.orpo import trainer
        case "simpo":
            from toolkit.train.methods.simpo import trainer
        case "kto":
            from toolkit.train.methods.kto import trainer
        case "reward":
            from toolkit.train.methods.reward import trainer
        case "grpo":
            from toolkit.train.methods.grpo import trainer
        case "rloo":
            from toolkit.train.methods.rloo import trainer
    return trainer(order, examples, callbacks)
