"""The cross entropy of answers behind a frozen output head, with its gradient computed on the way forward.

TRL's own computes each chunk's logits twice, fills the last chunk up, and keeps log-probabilities, probabilities and entropies
beside each other. Here a chunk of logits is made once, turned into its gradient in place, and multiplied back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from toolkit.models.processor import chunks
from toolkit.models.products import FrozenWeight, room_to_lay_out
from toolkit.train.rows import NOT_LEARNED

VALUES_AT_ONCE = 1 << 23
"""Logits in memory: 32 MiB."""


class AnswerLoss(torch.autograd.Function):
    """Sum of the nats of `labels` [n] behind `hidden` [n, width] and a head W [vocabulary, width]; counts of right tokens and the
    sum of entropies come along."""

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any, hidden: torch.Tensor, head: FrozenWeight, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        given = hidden.to(head.dtype)
        loss, right, entropy = (torch.zeros((), dtype=torch.float32) for _ in range(3))
        gradient = torch.empty_like(given)
        for part in chunks(len(labels), head.rows, VALUES_AT_ONCE):
            logits = head.ahead(given[part]).float()
            wanted = labels[part, None]
            at_wanted = logits.gather(1, wanted).squeeze(1)
            best = logits.amax(1)
            right += (at_wanted >= best).sum()
            shares = torch.softmax(logits, 1)
            # log of the sum of all exponentials: that of the largest share says it.
            total = best - shares.amax(1).log()
            loss += (total - at_wanted).sum()
            entropy += total.sum() - torch.dot(shares.flatten(), logits.flatten())
            shares.scatter_add_(1, wanted, torch.full_like(at_wanted, -1.0)[:, None])
            gradient[part] = head.back(shares.to(head.dtype))
        context.save_for_backward(gradient)
        context.dtype = hidden.dtype
        context.mark_non_differentiable(right, entropy)
        return loss, right, entropy

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Of the hidden states; the head is frozen."""
        (gradient,) = context.saved_tensors
        return (gradient * gradients[0].to(gradient.dtype)).to(context.dtype), None, None


Loss = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


def use_in_trl(bfloat16: bool) -> None:
    """Let TRL's chunked loss (of its SFTTrainer, `loss_type` chunked_nll) be this one wherever it gives the same.

    Args:
        bfloat16: multiply by the head in bfloat16.
    """
    from trl.trainer import sft_trainer

    usual = getattr(sft_trainer._chunked_cross_entropy_loss, "usual", sft_trainer._chunked_cross_entropy_loss)
    ours = functools.partial(_loss, usual, torch.bfloat16 if bfloat16 else torch.float32, [])
    ours.usual = usual  # type: ignore[attr-defined]
    sft_trainer._chunked_cross_entropy_loss = ours


def _loss(
    usual: Loss, dtype: torch.dtype, kept: list[Any], hidden_states: torch.Tensor,
    lm_head_weight: torch.Tensor, chunk_size: int, labels: torch.Tensor | None = None, **named: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    items = named.pop("num_items_in_batch", None)
    plain = all(value is None or (name == "logit_scale" and value == 1.0) for name, value in named.items())
    if labels is None or not plain or lm_head_weight.requires_grad or hidden_states.device.type != "cpu":
        return usual(hidden_states, lm_head_weight, chunk_size, labels=labels, num_items_in_batch=items, **named)
    if not kept or kept[0].data_ptr() != lm_head_weight.data_ptr():
        # With the head itself, which keeps its place from another's.
        around_zero = _around_zero(lm_head_weight.detach()).to(dtype)
        lay_out = room_to_lay_out(around_zero.numel(), dtype, learns=True)
        kept[:] = lm_head_weight.detach(), FrozenWeight(around_zero, learns=True, lay_out=lay_out)
    learnt = labels[:, 1:] != NOT_LEARNED
    loss, right, entropy = AnswerLoss.apply(  # type: ignore[no-untyped-call]
        hidden_states[:, :-1][learnt], kept[1], labels[:, 1:][learnt]
    )
    count = learnt.sum()
    return loss / (count.clamp(min=1) if items is None else items), right, entropy, count


def _around_zero(head: torch.Tensor) -> torch.Tensor:
    """The head without the mean of its rows: the same shares and gradients, since only differences of logits count, and the rows
    of a head have much in common, which bfloat16 would spend its eight bits on."""
    return head.float() - head.float().mean(0, keepdim=True)
