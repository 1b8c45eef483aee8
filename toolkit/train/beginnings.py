"""What the rows of a batch begin with alike (a system text, functions, one question with several answers) is computed once.

Behind causal attention nothing of a beginning depends on what follows it. So it goes through the decoder as one row, and the rest
of every row is computed against the keys and values that it left, as a server goes on from a prompt that it knows. Values and
gradients are those of whole rows: what all rows share is summed on the way back.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

SAVED = 48
"""Tokens to be saved in a batch, at least: a second pass through the layers costs something too."""
AGREES = {False: 1e-4, True: 0.02}
"""Computes in bfloat16 → relative to the largest value. What bfloat16 rounds up or down hangs on the last bits of attention; a
model that does not go on from what it has cached is far off."""
_TRIED = 3, 24, 17
"""Rows, tokens, and those alike, on which a decoder is tried."""


def compute_once(model: Any, bfloat16: bool) -> bool:
    """Let a model's decoder compute beginnings once, in place, where that gives what whole rows give: it is tried, since not
    every family goes on from a cache while it trains.

    Args:
        model: a causal model or a PeftModel, loaded.
        bfloat16: some of its products are of that type.

    Returns:
        Whether it does.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = causal.get_decoder()
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return False  # one chance for all rows instead of one for each
    usual = decoder.forward
    ids = torch.randint(
        0, causal.config.get_text_config().vocab_size, _TRIED[:2], generator=torch.Generator().manual_seed(0)
    )
    ids[:, : _TRIED[2]] = ids[0, : _TRIED[2]]
    try:
        with torch.no_grad():
            whole = usual(input_ids=ids, use_cache=False).last_hidden_state.float()
            found = _in_two(usual, ids, None, None, _TRIED[2], {})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # it wants more than tokens, or caches in a way of its own
    if found is None or not (found.last_hidden_state - whole).abs().max() <= AGREES[bfloat16] * whole.abs().max():
        return False
    decoder.forward = functools.partial(_forward, decoder, usual)
    return True


def alike(ids: torch.Tensor, mask: torch.Tensor | None = None, positions: torch.Tensor | None = None) -> int:
    """How many tokens all rows begin with alike; at least one of each row is left over.

    Args:
        ids: [rows, length]
        mask: [rows, length], 0 where nothing is; None: something is everywhere.
        positions: [rows or 1, length]; None: they are counted from 0.
    """
    same = (ids == ids[:1]).all(0)
    if mask is not None:
        same &= mask.bool().all(0)
    if positions is not None:
        same &= (positions == positions[:1]).all(0)
    return int(same[:-1].long().cumprod(0).sum())


def _forward(decoder: Any, usual: Any, *arguments: Any, **named: Any) -> Any:
    """A decoder's forward; `usual` is its own, for all that this does not do."""
    ids = named.get("input_ids")
    if arguments or ids is None or len(ids) < 2 or not _is_plain(decoder, named):
        return usual(*arguments, **named)
    rest = {name: value for name, value in named.items() if name not in ("input_ids", "attention_mask", "position_ids")}
    mask, positions = named.get("attention_mask"), named.get("position_ids")
    length = alike(ids, mask, positions)
    if length * (len(ids) - 1) < SAVED:
        return usual(**named)
    found = _in_two(usual, ids, mask, positions, length, rest)
    return usual(**named) if found is None else found


def _is_plain(decoder: Any, named: Mapping[str, Any]) -> bool:
    """Whether tokens are all that is given, and the last hidden states all that is wanted."""
    mask, positions = named.get("attention_mask"), named.get("position_ids")
    noisy = getattr(decoder.get_input_embeddings(), "neftune_noise_alpha", None)  # its size depends on the length
    return (
        not noisy
        and not (decoder.training and getattr(decoder, "is_gradient_checkpointing", False))
        and not any(named.get(name) for name in ("use_cache", "output_hidden_states", "output_attentions"))
        and not (named.get("output_router_logits") or getattr(decoder.config, "output_router_logits", False))
        and (mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2))
        and (positions is None or positions.dim() == 2)
        and not any(
            isinstance(value, torch.Tensor) or name == "past_key_values"
            for name, value in named.items()
            if name not in ("input_ids", "attention_mask", "position_ids", "num_items_in_batch") and value is not None
        )
    )


def _in_two(
    usual: Any, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None, length: int,
    rest: Mapping[str, Any],
) -> Any:  # fmt: skip
    """What `usual` gives of whole rows, of which the first `length` tokens are alike; None: its layers keep something else than
    keys and values of all these tokens."""
    named = {name: value for name, value in rest.items() if value is not None and name != "use_cache"}
    first = usual(
        input_ids=ids[:1, :length], attention_mask=None if mask is None else mask[:1, :length],
        position_ids=None if positions is None else positions[:1, :length], use_cache=True, **named,
    )  # fmt: skip
    cache = first.past_key_values
    if not all(_keeps_all(layer, ids.shape[1]) for layer in getattr(cache, "layers", [None])):
        return None
    for layer in cache.layers:
        layer.keys, layer.values = (kept.expand(len(ids), -1, -1, -1) for kept in (layer.keys, layer.values))
    after = usual(
        input_ids=ids[:, length:], attention_mask=mask, position_ids=None if positions is None else positions[:, length:],
        past_key_values=cache, use_cache=True, **named,
    )  # fmt: skip
    begun = first.last_hidden_state.expand(len(ids), -1, -1)
    return type(after)(last_hidden_state=torch.cat([begun, after.last_hidden_state], 1))


def _keeps_all(layer: Any, length: int) -> bool:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if type(layer) is DynamicSlidingWindowLayer:
        return bool(length <= layer.sliding_window)
    return type(layer) is DynamicLayer
