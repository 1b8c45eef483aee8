"""Layers on a CPU at the processor's speed, in training and where a model reads or answers: the same numbers in fewer steps.

Layers with a LoRA that are given the same values are one autograd function that keeps x, x Aᵀ and nothing else; norms and rotary
positions take a few steps each way; NF4 weights are unpacked once instead of in every forward; where the recipe says bf16 and the
processor has such products, these are computed in bfloat16 with float32 sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from toolkit.models.norms import normed, plain_norms
from toolkit.models.products import FrozenWeight, fits, laid_out, room_to_lay_out
from toolkit.models.rotations import rotate_in_few_steps
from toolkit.models.tuned_linear import Together, given_the_same, one_behind_the_other
from toolkit.models.weights import unpacked

Forward = Callable[..., torch.Tensor]


def speed_up(model: Any, bfloat16: bool, learns: bool = True) -> Callable[[], None]:
    """Let a model with an adapter compute faster on a CPU, in place; what cannot be done faster stays as it was.

    Args:
        model: a PeftModel, loaded.
        bfloat16: compute the products of layers with a LoRA in bfloat16.
        learns: gradients are wanted.

    Returns:
        What gives the model's family its own rotation of positions back; see `toolkit.models.rotations`.
    """
    layers = [layer for layer in model.modules() if _is_plain(layer)]
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    lay_out = room_to_lay_out(sum(_elements(layer) for layer in layers), dtype, learns)
    if lay_out or fits(sum(_elements(layer) for layer in layers if bfloat16 or _is_packed(layer)), dtype):
        # What is not copied stays where it is.
        for group in given_the_same(model, layers) if lay_out else [[layer] for layer in layers]:
            weight = one_behind_the_other([_weight(layer, dtype) for layer in group])
            together = Together(group, FrozenWeight(weight, learns, lay_out))
            for number, layer in enumerate(group):
                layer.compute_dtype = dtype
                layer.forward = functools.partial(_forward, together, number, layer.forward)
    for norm in plain_norms(model):
        norm.forward = functools.partial(normed, norm)
    return rotate_in_few_steps(model)


@contextmanager
def sped_up(model: Any) -> Iterator[None]:
    """Within it, a float32 model on a CPU computes faster, and nothing learns; behind it, as before."""
    first = next(model.parameters())
    if first.device.type != "cpu" or first.dtype != torch.float32:
        yield
        return
    own_rotation = speed_up(model, bfloat16=False, learns=False)
    try:
        with laid_out(model):
            yield
    finally:
        own_rotation()
        for module in model.modules():
            if getattr(vars(module).get("forward"), "func", None) in (_forward, normed):
                del module.forward
                vars(module).pop("compute_dtype", None)


def causal_of(model: Any) -> Any:
    """The causal model itself, of a PeftModel on it too."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def attend_without_mask(model: Any) -> None:
    """Leave out the mask of a batch whose padding is behind its rows: nothing before it sees it, and without a mask attention
    takes its faster, causal path.

    Args:
        model: a causal model or a PeftModel, loaded.
    """
    causal_of(model).register_forward_pre_hook(_without_padding_mask, with_kwargs=True)


def _forward(
    together: Together, number: int, usual: Forward, x: torch.Tensor, *arguments: Any, **named: Any
) -> torch.Tensor:
    """A PEFT layer's forward; `usual` is its own, for all that this does not do."""
    if arguments or named or together.layers[number].merged:
        return usual(x, *arguments, **named)
    return together.output(number, x)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a linear one with one LoRA that does nothing besides."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
        return False
    names = [*layer.lora_A]
    if len(names) != 1 or layer.active_adapters != names:
        return False
    (name,) = names
    return (
        not layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_B[name].bias is None
        and not getattr(layer, "fan_in_fan_out", False)
        and not any(p.requires_grad for p in layer.get_base_layer().parameters())
    )


def _is_packed(layer: Any) -> bool:
    return getattr(layer.get_base_layer().weight, "quant_state", None) is not None


def _elements(layer: Any) -> int:
    base = layer.get_base_layer()
    return int(base.in_features * base.out_features)


def _weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """A layer's frozen weight, unpacked, [out, in]."""
    weight = layer.get_base_layer().weight
    if not _is_packed(layer):
        return weight.detach().to(dtype)  # type: ignore[no-any-return]
    return unpacked(weight.data, weight.quant_state).to(dtype)


def _without_padding_mask(_model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    mask = named.get("attention_mask")
    learns = named.get("labels") is not None and named.get("position_ids") is None and named.get("pixel_values") is None
    if not learns or not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    if bool((mask[:, 1:] > mask[:, :-1]).any()):  # padding before it
        return None
    return arguments, {**named, "attention_mask": None}


def chunks(rows: int, columns: int, most: int) -> Iterator[slice]:
    """Slices of rows, so that a slice's values (rows times columns) are at most `most`, and at least a row."""
    step = max(1, most // columns)
    for chunk in range(math.ceil(rows / step)):
        yield slice(chunk * step, (chunk + 1) * step)
