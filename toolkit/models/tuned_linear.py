"""Linear layers with a LoRA each that are given the same values, such as a block's q, k and v, as one step.

Each is x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ with a frozen W (LoRA: Hu et al., arXiv:2106.09685); together they are one product with
all their W, one with all their A, and keep one copy of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from toolkit.models.products import FrozenWeight

Slices = tuple[tuple[slice, slice], ...]
"""Of each layer, its columns among all outputs, and its rows among all A."""


class TunedLinear(torch.autograd.Function):
    """Outputs [n, out] of layers that are given x [n, in].

    Products with W are of its type; A [rank, in], B [out, rank], and what comes back for them, stay float32.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any, x: torch.Tensor, weight: FrozenWeight, bias: torch.Tensor | None, scalings: Sequence[float],
        *factors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """
        Args:
            weight: all W, one behind the other.
            bias: of all; None: none has one.
            factors: every A, then every B.
        """
        down, up = factors[: len(scalings)], factors[len(scalings) :]
        a = one_behind_the_other(down)
        given, low = x.to(weight.dtype), x.to(a.dtype) @ a.t()
        made = weight.ahead(given)
        context.slices, found = _slices(down, up), []
        for (columns, rows), b, scaling in zip(context.slices, up, scalings):
            out = made[:, columns].to(a.dtype)
            if bias is not None:
                out += bias[columns]
            # Added in float32: what little a young adapter changes is below the last bit of a bfloat16 sum.
            found.append(out.addmm_(low[:, rows], b.t(), alpha=scaling).to(x.dtype))
        context.save_for_backward(given, low, a, *up)
        context.weight, context.scalings = weight, scalings
        return tuple(found)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Of x, every A and every B; W and its bias are frozen."""
        given, low, a, *up = context.saved_tensors
        weight: FrozenWeight = context.weight
        behind = torch.empty((len(given), weight.rows), dtype=weight.dtype)
        of_low, of_b = torch.empty_like(low), []
        for (columns, rows), b, scaling, gradient in zip(context.slices, up, context.scalings, gradients):
            behind[:, columns] = gradient
            of_low[:, rows] = (gradient.to(b.dtype) @ b).mul_(scaling)
            # As it stands, low.t() being the narrow one, half as long as behind.t() @ low.
            of_b.append((low[:, rows].to(weight.dtype).t() @ behind[:, columns]).t().to(b.dtype) * scaling)
        of_a = (of_low.to(weight.dtype).t() @ given).to(a.dtype)
        of_x = None
        if context.needs_input_grad[0]:
            of_x = weight.back(behind).to(a.dtype).addmm_(of_low, a).to(gradients[0].dtype)
        return of_x, None, None, None, *(of_a[rows] for _, rows in context.slices), *of_b


def one_behind_the_other(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their rows in one matrix; one alone is not copied."""
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices))


def _slices(down: Sequence[torch.Tensor], up: Sequence[torch.Tensor]) -> Slices:
    found, column, row = [], 0, 0
    for a, b in zip(down, up):
        found.append((slice(column, column + len(b)), slice(row, row + len(a))))
        column, row = column + len(b), row + len(a)
    return tuple(found)


class Together:
    """PEFT's layers that are given the same values: when the first is called, all are computed.

    Args:
        layers: linear ones with one LoRA that does nothing besides, in the order of their calls.
        weight: all their frozen weights, one behind the other.
    """

    def __init__(self, layers: Sequence[Any], weight: FrozenWeight) -> None:
        self.layers, self.weight = layers, weight
        self._sizes = [layer.get_base_layer().out_features for layer in layers]
        biases = [layer.get_base_layer().bias for layer in layers]
        self._bias = None
        if any(bias is not None for bias in biases):
            found = [torch.zeros(size) if bias is None else bias.detach() for bias, size in zip(biases, self._sizes)]
            self._bias = torch.cat([bias.float() for bias in found])
        self._given: torch.Tensor | None = None
        self._made: dict[int, torch.Tensor] = {}
        """Of each later layer what it is going to be asked for."""

    def output(self, number: int, x: torch.Tensor) -> torch.Tensor:
        """Of one of the layers, for x [..., in]."""
        if x is not self._given or number not in self._made:
            self._made = dict(enumerate(self._computed(x)))
            self._given = x
        found = self._made.pop(number)
        if not self._made:
            self._given = None
        return found

    def _computed(self, x: torch.Tensor) -> list[torch.Tensor]:
        flat = x.reshape(-1, x.shape[-1])
        shape = x.shape[:-1]
        if self.layers[0].disable_adapters:
            made = self.weight.ahead(flat.to(self.weight.dtype))
            if self._bias is not None:
                made = made + self._bias.to(made.dtype)
            return [part.to(x.dtype).view(*shape, -1) for part in torch.split(made, self._sizes, 1)]
        names = [layer.active_adapters[0] for layer in self.layers]
        down = [layer.lora_A[name].weight for layer, name in zip(self.layers, names)]
        up = [layer.lora_B[name].weight for layer, name in zip(self.layers, names)]
        scalings = [layer.scaling[name] for layer, name in zip(self.layers, names)]
        outs = TunedLinear.apply(flat, self.weight, self._bias, scalings, *down, *up)  # type: ignore[no-untyped-call]
        return [out.view(*shape, -1) for out in outs]


def given_the_same(model: Any, layers: Sequence[nn.Module]) -> list[list[Any]]:
    """Which of a model's layers are given one and the same tensor, in the order of their calls: a few tokens are tried. A layer
    that they do not reach, or all where tokens alone are not enough, stands by itself.

    Args:
        model: a causal model or a PeftModel, loaded.
    """
    calls: list[tuple[Any, torch.Tensor]] = []

    def called(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments:
            calls.append((layer, arguments[0]))

    hooks = [layer.register_forward_pre_hook(called) for layer in layers]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(2)[None], use_cache=False)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        calls.clear()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    found: list[list[Any]] = []
    before = None
    for layer, x in calls:
        if any(layer is other for group in found for other in group):
            continue
        if x is before:
            found[-1].append(layer)
        else:
            found.append([layer])
        before = x
    reached = {id(layer) for group in found for layer in group}
    return found + [[layer] for layer in layers if id(layer) not in reached]
