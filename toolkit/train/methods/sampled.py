"""What grpo and rloo share: prompts that are sampled from, and functions that judge the answers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from toolkit.errors import DataError, UsageError
from toolkit.models.ends import turn_end
from toolkit.train.methods.common import Examples, Order, dataset_of, finished, settings, settle_reference
from toolkit.train.rows import answers_of, encode, refuse_mostly_long, tokenize

stderr = Console(stderr=True)


def examples(tokenizer: Any, rows: list[dict[str, Any]], order: Order) -> Examples:
    """prompt (rendered, as a server renders it) and reference (the row's own answer). A prompt that leaves no room for
    `train.max_completion_length` tokens within `train.max_length` is left out."""
    train = order.recipe.train
    given, learnt, long = [], [], []
    for row in rows:
        answer = answers_of(tokenizer, row, train.chat_template_kwargs)[-1]
        tokens = len(encode(tokenizer, answer.prompt)) + train.max_completion_length
        if tokens > train.max_length:
            long.append({**row["source"], "tokens": tokens, "answers_left_out": 1})
            continue
        given.append({"prompt": answer.prompt, "reference": str(answer.turn["content"])})
        learnt.append(tokenize(tokenizer, row, train.chat_template_kwargs)[-1])
    refuse_mostly_long(long, len(long), len(rows), train.max_length)
    return Examples(given, learnt, long)


def sampling(order: Order, trainer: Any, config: Any, examples: list[dict[str, Any]], callbacks: list[Any]) -> Any:
    """A trainer of the class `trainer`, a configuration of the class `config`: what it samples from are our own tokens, and an
    answer ends where the chat template ends a turn."""
    train, loaded = order.recipe.train, order.loaded
    beta = {} if train.beta is None else {"beta": train.beta}
    args = config(
        **settings(order), **beta,
        num_generations=train.num_generations,
        max_completion_length=train.max_completion_length,
        temperature=train.temperature,
        use_vllm=_with_vllm(order),
        **({"vllm_mode": "colocate"} if train.use_vllm else {}),
    )  # fmt: skip
    tokenizer, model = loaded.tokenizer, loaded.model
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = _ends(model, tokenizer)

    class TakesTokens(trainer):  # type: ignore[misc]
        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [encode(tokenizer, prompt) for prompt in prompts], None, {}

    TakesTokens.__name__ = trainer.__name__
    made = TakesTokens(
        model=model, args=args, reward_funcs=_judges(order, tokenizer), train_dataset=dataset_of(examples),
        processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip
    model.generation_config.eos_token_id = ends
    settle_reference(order)
    _check_prompts(made, examples)
    return finished(made, order)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    known = model.generation_config.eos_token_id
    ends = [known] if isinstance(known, int) else list(known or [])
    end = turn_end(tokenizer)
    return list(dict.fromkeys([*([end.token] if end else []), *ends]))


def _with_vllm(order: Order) -> bool:
    if not order.recipe.train.use_vllm:
        return False
    if not torch.cuda.is_available():
        stderr.print("train.use_vllm: there is no card here; answers are sampled by transformers.", style="yellow")
        return False
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "train.use_vllm: vLLM is not installed", "Install it (pip install vllm), or --set train.use_vllm=false"
        )
    return True


def _judges(order: Order, tokenizer: Any) -> list[Callable[..., list[float]]]:
    judges = [_as_trl(name, reward) for name, reward in (order.rewards or {}).items()]
    if order.judge is not None:
        judge = order.judge

        def reward_model(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
            return judge([[*encode(tokenizer, p), *ids] for p, ids in zip(prompts, completion_ids)])

        judges.append(reward_model)
    return judges


def _as_trl(name: str, reward: Callable[[list[str], list[str]], list[float]]) -> Callable[..., list[float]]:
    def judged(completions: list[str], reference: list[str], **_: Any) -> list[float]:
        return reward(completions, reference)

    judged.__name__ = name  # TRL's own name for it in the metrics
    return judged


def _check_prompts(trainer: Any, examples: list[dict[str, Any]]) -> None:
    if [dict(row) for row in trainer.train_dataset] != examples:
        raise DataError(
            "the trainer changed the prompts: it would sample from others",
            "The versions do not fit together: make setup",
        )
