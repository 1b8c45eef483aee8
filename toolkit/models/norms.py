"""Root-mean-square norms on a CPU in few steps (Zhang and Sennrich, arXiv:1910.07467): torch's own is made of a dozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

AGREES = 1e-5
"""Relative: torch's own norm does what a layer does."""


class RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean(x²) + epsilon) · weight, over the last dimension, in float32: x [..., width], weight [width]."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:  # type: ignore[override]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        context.save_for_backward(x, factor, weight)
        found: torch.Tensor = (x * factor).mul_(weight)
        return found

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Of x, and of the weight where it learns."""
        x, factor, weight = context.saved_tensors
        (gradient,) = gradients
        of_weight = None
        if context.needs_input_grad[1]:
            of_weight = (gradient * x).mul_(factor).flatten(0, -2).sum(0)
        of_x = gradient * weight
        # The factor, too, hangs on x.
        along = torch.linalg.vecdot(of_x, x).unsqueeze(-1).mul_(factor.pow(3)).div_(-x.shape[-1])
        return of_x.mul_(factor).addcmul_(x, along), of_weight, None


def plain_norms(model: nn.Module) -> Iterator[Any]:
    """The norms that do what torch's own does: tried on numbers, since families differ (Gemma adds 1)."""
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(epsilon, float):
            continue
        with torch.no_grad():
            tried = torch.linspace(-2, 3, 3 * len(weight)).reshape(3, -1).to(weight.dtype)
            try:
                wanted = module(tried)
            except (TypeError, RuntimeError):  # it wants more than values: a gate
                continue
            if (wanted - normed(module, tried)).abs().max() <= AGREES * wanted.abs().max():
                yield module


def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """A plain norm's forward."""
    weight: torch.Tensor = norm.weight
    if x.dtype == weight.dtype == torch.float32:
        return RootMeanSquare.apply(x, weight, norm.variance_epsilon)  # type: ignore[no-untyped-call,no-any-return]
    return nn.functional.rms_norm(x, weight.shape, weight, norm.variance_epsilon)
