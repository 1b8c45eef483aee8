"""Products with weights that do not change, on a CPU.

oneDNN lays a weight out once as its kernels read it. torch's own product does so again whenever it multiplies, which for a few
rows takes longer than the product itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import psutil
import torch
from torch import nn

SPARE = 3
"""Copies of weights are kept where memory has room for so many times as much: activations come on top."""
_ROWS = 512
"""That a weight is laid out for; any others are multiplied too."""
_AGREES = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""Relative to the largest value of a product."""


class FrozenWeight:
    """A weight W [out, in] that stays as it is.

    Args:
        learns: something before it does, so that what comes back is multiplied too.
        lay_out: keep it as oneDNN reads it, a copy for each direction; see `can_lay_out`.
    """

    def __init__(self, weight: torch.Tensor, learns: bool, lay_out: bool) -> None:
        self.dtype, self.rows = weight.dtype, int(weight.shape[0])
        self._ahead = _laid_out(weight) if lay_out else _times(weight.t())
        self._back = (_laid_out(weight.t()) if lay_out else _times(weight)) if learns else None

    def ahead(self, x: torch.Tensor) -> torch.Tensor:
        """x Wᵀ: [..., in] → [..., out]."""
        return self._ahead(x)

    def back(self, y: torch.Tensor) -> torch.Tensor:
        """y W: [..., out] → [..., in]."""
        assert self._back is not None, "nothing learns before this weight"  # noqa: S101
        return self._back(y)


@functools.cache
def can_lay_out(dtype: torch.dtype) -> bool:
    """Whether torch lays out weights of a type and then multiplies right, which is tried: what does it is not documented."""
    if dtype not in _AGREES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((7, 96), (80, 96)))
    wanted = x.double() @ weight.double().t()
    try:
        found = _laid_out(weight)(x).double()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool((found - wanted).abs().max() <= _AGREES[dtype] * wanted.abs().max())


def room_to_lay_out(elements: int, dtype: torch.dtype, learns: bool) -> bool:
    """Whether weights of so many elements can be laid out, and memory has room: for each direction a copy."""
    return can_lay_out(dtype) and fits((2 if learns else 1) * elements, dtype)


def fits(elements: int, dtype: torch.dtype) -> bool:
    """Whether memory has room for weights of so many elements beside the model."""
    return elements * dtype.itemsize * SPARE < psutil.virtual_memory().available


@contextmanager
def laid_out(model: Any) -> Iterator[None]:
    """Within it, the linear layers of a float32 model on a CPU multiply with weights that are laid out, where memory has room for
    them twice; nothing learns there, and no weight changes."""
    layers = _plain_layers(model)
    elements = sum(layer.weight.numel() for layer in layers)
    if torch.is_grad_enabled() or not room_to_lay_out(elements, torch.float32, learns=False):
        layers = []
    for layer in layers:
        layer.forward = functools.partial(
            _linear, FrozenWeight(layer.weight.detach(), learns=False, lay_out=True), layer.bias
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _plain_layers(model: Any) -> list[Any]:
    """Those that multiply themselves: what a layer of PEFT's computes otherwise does not ask its base layer."""
    replaced = [module for module in model.modules() if "forward" in vars(module)]
    others = {id(module) for module in replaced} | {id(getattr(module, "base_layer", None)) for module in replaced}
    return [layer for layer in model.modules() if id(layer) not in others and _is_plain(layer)]


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


def _linear(weight: FrozenWeight, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    found = weight.ahead(x)
    return found if bias is None else found + bias


def _laid_out(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """x → x Wᵀ, of the operations that torch's compiler makes of a linear layer with constant weights."""
    of_weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: cast(torch.Tensor, multiply(x, of_weight, None, "none", [], ""))


def _times(matrix: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x @ matrix
