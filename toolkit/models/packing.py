"""The rows of a batch go through the layers as one row, packed: what one begins with as an earlier one does is computed once, and
padding not at all.

A system text, functions, one question with several answers: behind causal attention nothing of a beginning depends on what
follows it, and all else in a layer is done token by token. So only attention sees whole rows, put together for it; values and
gradients are those of whole rows, and what rows share is summed on the way back.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from toolkit.models.processor import causal_of
from toolkit.models.shared_prefix import PrefixAttention, SharedPrefix, can_attend, is_faster

NAME = "packed_rows"
"""Of the attention function, as transformers calls it by `config._attn_implementation`."""
SAVED = 0.05
"""Share of a batch's tokens that must be saved, at least: rows are put together and taken apart in every layer."""
AGREES = {False: 1e-4, True: 0.02}
"""Computes in bfloat16 → relative to the largest value. What bfloat16 rounds up or down hangs on the last bits of attention; a
model that does more than attention across tokens is far off."""
_ALIKE = (15, 5)
"""Of the 24 tokens that are tried: with and without attention of its own for what rows begin with."""
_TOKENS = ("input_ids", "attention_mask", "position_ids")


class Packed(NamedTuple):
    """Where the tokens of padded rows are among the packed ones."""

    shape: tuple[int, int]
    """(rows, length) of the padded rows."""
    taken: torch.Tensor
    """Of each packed token, its place in the padded rows, counted through: [packed]."""
    places: torch.Tensor
    """Of each place in the padded rows, counted through, its packed token; of padding, any: [rows * length]."""
    prefix: SharedPrefix | None
    """What all rows begin with, where it is much of them."""


_now: list[Packed] = []
"""What the decoder computes at this moment."""


def pack(ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None) -> Packed | None:
    """How rows are packed; None: there is padding before one of them.

    Args:
        ids: [rows, length]
        mask: [rows, length], 0 where nothing is; None: something is everywhere.
        positions: [rows or 1, length]; None: they are counted from 0.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    if bool((real[:, 1:] > real[:, :-1]).any()):
        return None
    alike = (ids[:, None] == ids) & real[:, None] & real
    if positions is not None:
        alike &= positions.expand(ids.shape)[:, None] == positions
    # [row, earlier row]: how many tokens they begin with alike. In bytes: it is rows times rows times length.
    lengths, earlier = alike.cumprod(2, dtype=torch.uint8).sum(2).tril(-1).max(1)
    own = real & (torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None])
    taken = own.flatten().nonzero().flatten()
    places = torch.zeros_like(ids)
    places.view(-1)[taken] = torch.arange(len(taken), device=ids.device)
    for row, (length, like) in enumerate(zip(lengths.tolist(), earlier.tolist())):
        places[row, :length] = places[like, :length]
    shape = (ids.shape[0], ids.shape[1])
    alike_in_all = int(lengths[1:].min()) if len(ids) > 1 else 0
    around = is_faster(alike_in_all, len(taken), shape)
    prefix = SharedPrefix(alike_in_all, places, taken, shape) if around else None
    return Packed(shape, taken, places.flatten(), prefix)


def pack_rows(model: Any, bfloat16: bool) -> bool:
    """Let a model's decoder pack the rows of a batch, in place, where that gives what whole rows give: it is tried, since not
    every family's layers do nothing but attention across tokens.

    Args:
        model: a causal model or a PeftModel, loaded.
        bfloat16: some of its products are of that type.

    Returns:
        Whether it does so in training; not with dropout, which would be one chance for rows that share a beginning.
    """
    from transformers import AttentionInterface

    causal = causal_of(model)
    decoder = causal.get_decoder()
    if decoder is not causal.base_model:
        return False  # a part that sees stands before it, and gives it embeddings
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    drops = drops or bool(getattr(decoder.config, "attention_dropout", 0))
    if getattr(vars(decoder).get("forward"), "func", None) is _forward:
        return not drops
    AttentionInterface.register(NAME, _attention)
    usual = decoder.forward
    tokens = causal.config.get_text_config().vocab_size
    training = decoder.training
    decoder.eval()
    try:
        agree = all(_agree(decoder, usual, _tried(tokens, alike), AGREES[bfloat16]) for alike in _ALIKE)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # it wants more than tokens
    finally:
        decoder.train(training)
    if not agree:
        return False
    decoder.forward = functools.partial(_forward, decoder, usual, drops)
    return not drops


def _tried(tokens: int, alike: int) -> torch.Tensor:
    """Three rows of 24 tokens that begin alike."""
    ids = torch.randint(0, tokens, (3, 24), generator=torch.Generator().manual_seed(0))
    ids[:, :alike] = ids[0, :alike]
    return ids


def _agree(decoder: Any, usual: Any, ids: torch.Tensor, most: float) -> bool:
    if not _is_plain(decoder, {"input_ids": ids, "use_cache": False}):
        return False
    with torch.no_grad():
        whole = usual(input_ids=ids, use_cache=False).last_hidden_state
        found = _forward(decoder, usual, False, input_ids=ids, use_cache=False).last_hidden_state
    return bool((found - whole).abs().max() <= most * whole.abs().max())


def _forward(decoder: Any, usual: Any, drops: bool, *arguments: Any, **named: Any) -> Any:
    """A decoder's forward; `usual` is its own, for all that this does not do."""
    if arguments or (drops and decoder.training) or not _is_plain(decoder, named):
        return usual(*arguments, **named)
    ids, mask, positions = named["input_ids"], named.get("attention_mask"), named.get("position_ids")
    packed = pack(ids, mask, positions)
    if packed is None or len(packed.taken) > (1 - SAVED) * ids.numel():
        return usual(**named)
    if positions is None:
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rest = {name: value for name, value in named.items() if name not in _TOKENS}
    decoder.config._attn_implementation = NAME
    _now.append(packed)
    try:
        found = usual(
            input_ids=ids.flatten()[packed.taken][None],
            position_ids=positions.expand(ids.shape).flatten()[packed.taken][None],
            **rest,
        )
    finally:
        _now.pop()
        decoder.config._attn_implementation = "sdpa"
    hidden = found.last_hidden_state[0].index_select(0, packed.places)
    return type(found)(last_hidden_state=hidden.view(*ids.shape, -1))


def _is_plain(decoder: Any, named: Mapping[str, Any]) -> bool:
    """Whether several rows of tokens are all that is given, and their last hidden states all that is wanted."""
    ids, mask, positions = (named.get(name) for name in _TOKENS)
    config = decoder.config
    cached = named.get("use_cache")
    windows = (getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None))
    noise = getattr(decoder.get_input_embeddings(), "neftune_noise_alpha", None)  # its size depends on the length
    return (
        ids is not None
        and len(ids) > 1
        and (mask is None or mask.shape == ids.shape)
        and (positions is None or positions.dim() == 2)
        and config._attn_implementation == "sdpa"
        and all(window is None or ids.shape[1] <= window for window in windows)
        and not (getattr(config, "use_cache", True) if cached is None else cached)
        and not (decoder.training and decoder.is_gradient_checkpointing)
        and not noise
        and not any(named.get(name) for name in ("output_hidden_states", "output_attentions", "output_router_logits"))
        and not getattr(config, "output_router_logits", False)
        and not any(
            isinstance(value, torch.Tensor) or name == "past_key_values"
            for name, value in named.items()
            if value is not None and name not in (*_TOKENS, "num_items_in_batch")
        )
    )


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any = None, **named: Any
) -> tuple[torch.Tensor, None]:
    """query [1, heads, packed, size], key and value with heads of their own → [1, packed, heads, size]: attention of whole rows,
    transformers' own unless all of them begin alike."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    packed = _now[-1]
    if packed.prefix is not None and can_attend(module, query, named):
        scaling = named.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return PrefixAttention.apply(query, key, value, packed.prefix, scaling), None  # type: ignore[no-untyped-call]
    rows, length = packed.shape

    def as_rows(values: torch.Tensor) -> torch.Tensor:
        found = values[0].transpose(0, 1).index_select(0, packed.places)
        return found.view(rows, length, *found.shape[1:]).transpose(1, 2)

    named.pop("attention_mask", None)
    found, _ = sdpa_attention_forward(module, as_rows(query), as_rows(key), as_rows(value), None, **named)
    return found.flatten(0, 1).index_select(0, packed.taken)[None], None
