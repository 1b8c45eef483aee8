"""Rotary positions on a CPU in few steps (Su et al., arXiv:2104.09864): a family's own function turns halves of queries and keys
in a dozen, and as many on the way back."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

NAME = "apply_rotary_pos_emb"
"""As nearly every family of transformers calls it: (q, k, cos, sin, unsqueeze_dim=1) → both, turned."""
AGREES = 1e-5
"""Relative to the largest value."""

Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class Rotated(torch.autograd.Function):
    """x · cos + (-second half of x, first half of x) · sin, x [batch, heads, tokens, size], both [batch, 1, tokens, size]."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        context.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        found = x * cos
        found[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        found[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return found

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Of x."""
        cos, sin = context.saved_tensors
        (gradient,) = gradients
        half = gradient.shape[-1] // 2
        found = gradient * cos
        found[..., :half].addcmul_(gradient[..., half:], sin[..., half:])
        found[..., half:].addcmul_(gradient[..., :half], sin[..., :half], value=-1)
        return found, None, None


def rotate_in_few_steps(model: nn.Module) -> Callable[[], None]:
    """Let the layers of a model's family turn queries and keys so, for all models of the family in this process; families whose
    function gives something else when it is tried keep it.

    Returns:
        What undoes it.
    """
    modules = {sys.modules[type(module).__module__] for module in model.modules()}
    usual: dict[ModuleType, Any] = {module: getattr(module, NAME) for module in modules if hasattr(module, NAME)}
    changed = {module: rotation for module, rotation in usual.items() if _is_plain(rotation)}
    for module, rotation in changed.items():
        setattr(module, NAME, functools.partial(_rotated, rotation))

    def undo() -> None:
        for module, rotation in changed.items():
            setattr(module, NAME, rotation)

    return undo


def _is_plain(usual: Any) -> bool:
    if getattr(usual, "func", None) is _rotated:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (
        torch.randn(shape, generator=generator) for shape in ((2, 3, 5, 8), (2, 1, 5, 8), (2, 5, 8), (2, 5, 8))
    )
    try:
        wanted = usual(q, k, cos, sin)
    except (IndexError, RuntimeError, TypeError, ValueError):  # it wants something else
        return False
    found = _rotated(usual, q, k, cos, sin)
    return all(
        one.shape == other.shape and bool((one - other).abs().max() <= AGREES * one.abs().max())
        for one, other in zip(wanted, found)
    )


def _rotated(
    usual: Rotation,
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *arguments: Any,
    **named: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A family's function; `usual` is its own, for all that this does not do."""
    sizes = {q.shape[-1], k.shape[-1], cos.shape[-1], sin.shape[-1]}
    types = {values.dtype for values in (q, k, cos, sin)}
    if arguments or named or types != {torch.float32} or len(sizes) > 1 or q.shape[-1] % 2 or cos.requires_grad:
        return usual(q, k, cos, sin, *arguments, **named)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return Rotated.apply(q, cos, sin), Rotated.apply(k, cos, sin)  # type: ignore[no-untyped-call]
