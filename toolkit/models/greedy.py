"""Greedy answers of a model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.progress import track
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from toolkit.models.processor import causal_of
from toolkit.models.products import laid_out
from toolkit.models.reference import TeacherForced, stderr
from toolkit.models.seen import given

GENERATED_TOGETHER = 32
_ENDED = 4
"""Rows that have ended are left behind when they are one of so many."""


@torch.no_grad()
def greedy(
    model: Any, prompts: Sequence[TeacherForced], ends: list[int], new_tokens: int, title: str
) -> list[list[int]]:
    """Greedy completions, token ids up to and with the end token; batches are padded on the left.

    Args:
        model: a transformers causal model or PeftModel in eval mode, on any device.
        prompts: without answers.
        ends: tokens at which it ends.
        title: shown beside the progress bar.
    """
    causal_of(model).generation_config = GenerationConfig(eos_token_id=ends)
    answers: list[list[int]] = []
    batches = [prompts[i : i + GENERATED_TOGETHER] for i in range(0, len(prompts), GENERATED_TOGETHER)]
    with laid_out(model):
        for batch in track(batches, title, console=stderr, transient=True):
            answers += _answers(model, batch, ends, new_tokens)
    return answers


def _answers(model: Any, batch: Sequence[TeacherForced], ends: list[int], new_tokens: int) -> list[list[int]]:
    device = next(model.parameters()).device
    longest = max(len(prompt.ids) for prompt in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(batch):
        ids[row, longest - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, longest - len(prompt.ids) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    seen = given(ids, [picture for prompt in batch for picture in prompt.pictures])
    # A configuration of its own: a base's may hold a repetition penalty, and then the most probable token is not chosen.
    settings = GenerationConfig(
        do_sample=False, max_length=longest + new_tokens, eos_token_id=ends, pad_token_id=ends[0] if ends else 0,
        use_cache=True, return_dict_in_generate=True,
    )  # fmt: skip
    criterion = _SomeEnded(longest, ends)
    stops = [criterion] if ends and not seen and _rows_can_leave(model) else []
    answers: dict[int, list[int]] = {}
    rows, cache = torch.arange(len(batch), device=device), None
    while len(rows):
        found = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, stopping_criteria=stops, past_key_values=cache,
            **seen,
        )  # fmt: skip
        ids, cache = found.sequences, found.past_key_values
        left = ~criterion.ended(ids) if stops and ids.shape[1] < longest + new_tokens else torch.zeros_like(rows).bool()
        for row, tokens in zip(rows[~left].tolist(), ids[~left, longest:].tolist()):
            answers[row] = _until_end(tokens, ends)
        mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)
        rows, ids, mask = rows[left], ids[left], mask[left]
        if len(rows):
            cache.batch_select_indices(left.nonzero()[:, 0])
    return [answers[row] for row in range(len(batch))]


def _rows_can_leave(model: Any) -> bool:
    """Whether what a model keeps of its rows can be kept of some alone, as keys and values can."""
    causal = causal_of(model)
    # What sees or hears keeps more of a row than its cache (Qwen's `rope_deltas`), whatever it was asked.
    if getattr(causal, "_is_stateful", False) or causal.config.get_text_config() is not causal.config:
        return False
    layers = DynamicCache(config=causal.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


class _SomeEnded(StoppingCriteria):  # type: ignore[misc]
    """Stops a batch when some of its rows have ended.

    Args:
        start: where answers begin.
    """

    def __init__(self, start: int, ends: list[int]) -> None:
        self._start, self._ends = start, ends

    def ended(self, ids: torch.Tensor) -> torch.Tensor:
        """Of each row, whether an end is in its answer: [rows]."""
        return torch.isin(ids[:, self._start :], torch.tensor(self._ends, device=ids.device)).any(1)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Of each row, whether it stops: [rows]."""
        ended = self.ended(input_ids)
        return ended | (ended.sum() * _ENDED >= len(ended))


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return tokens[: stop + 1]
