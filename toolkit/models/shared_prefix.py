"""Causal attention of packed rows that all begin alike, such as behind one system text or one question.

What they begin with attends to itself, once for all rows; what is a row's own attends to it and to the row before it. Keys and
values of the beginning are neither copied for each row nor is what comes back for them summed over copies, and the queries of a
beginning are answered once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

LENGTH = 512
"""Rows up to so many tokens: their attention weights are kept for the way back, one of each pair of tokens and each head."""
WORK = 0.7
"""Of the pairs of tokens of whole rows: with more, torch's own attention, which makes tiles of them, is faster."""


class Places(NamedTuple):
    """Where packed tokens are among what is multiplied, for layers of some numbers of heads; all [groups, rows, …], flat."""

    queries: torch.Tensor
    """Of each own query [groups, rows, heads of the group, own], its place among packed ones [packed, heads]."""
    keys: torch.Tensor
    """Of each own key [groups, rows, own], its place among packed ones [packed, groups]."""
    back: torch.Tensor
    """Of each packed query behind the beginning [packed - shared, heads], its place among own ones."""
    unseen: torch.Tensor
    """[heads of the group * own, own]: -inf where a key is behind its query."""
    unseen_shared: torch.Tensor
    """[heads of the group * shared, shared]: the same within the beginning."""


class SharedPrefix:
    """Of a batch: how many tokens all rows begin with alike, and what is each row's own.

    Args:
        shared: tokens that all rows begin with alike; the first packed ones.
        places, taken, shape: as `toolkit.models.packing.Packed` has them.
    """

    def __init__(self, shared: int, places: torch.Tensor, taken: torch.Tensor, shape: tuple[int, int]) -> None:
        self.rows, length = shape
        self.shared, self.own, self.packed = shared, length - shared, len(taken)
        self._own = places.view(shape)[:, shared:]
        """Of each place behind the beginning in the padded rows, its packed token: [rows, own]; of padding, any."""
        self._row, self._at = taken[shared:] // length, taken[shared:] % length - shared
        """Of each packed token behind the beginning, its row and its place there: [packed - shared]."""
        self._places: dict[tuple[int, int], Places] = {}

    def places(self, heads: int, groups: int) -> Places:
        """For so many heads of queries, and of keys and values."""
        found = self._places.get((heads, groups))
        if found is None:
            found = self._places[heads, groups] = self._made(groups, heads // groups)
        return found

    def _made(self, groups: int, each: int) -> Places:
        group, head = torch.arange(groups), torch.arange(each)
        queries = self._own[None, :, None] * (groups * each) + (group[:, None] * each + head)[:, None, :, None]
        first = (group[:, None] * self.rows + self._row[:, None, None]) * each + head
        return Places(
            queries=queries.flatten(),
            keys=(self._own * groups + group[:, None, None]).flatten(),
            back=(first * self.own + self._at[:, None, None]).flatten(),
            unseen=_unseen(self.own).repeat(each, 1),
            unseen_shared=_unseen(self.shared).repeat(each, 1),
        )


def share_of_pairs(shared: int, packed: int, shape: tuple[int, int]) -> float:
    """Pairs of tokens that are multiplied, as a share of those of whole rows.

    Args:
        shared: tokens that all rows begin with alike.
        packed: tokens that are left when these are counted once.
        shape: (rows, length) of the padded rows.
    """
    rows, length = shape
    return (shared * packed + rows * (length - shared) ** 2) / (rows * length**2)


def is_faster(shared: int, packed: int, shape: tuple[int, int]) -> bool:
    """Whether a batch's attention is computed around what its rows begin with; see `share_of_pairs`."""
    return 0 < shared < shape[1] <= LENGTH and share_of_pairs(shared, packed, shape) <= WORK


def can_attend(module: Any, query: torch.Tensor, named: Mapping[str, Any]) -> bool:
    """Whether a layer's attention is a plain causal one in float32.

    Args:
        named: what transformers gives its attention function besides the tensors.
    """
    causal = named.get("is_causal")
    return (
        query.dtype == torch.float32
        and (getattr(module, "is_causal", True) if causal is None else bool(causal))
        and not named.get("dropout")
        and named.get("position_bias") is None
    )


class PrefixAttention(torch.autograd.Function):
    """query [1, heads, packed, size], key and value [1, groups, packed, size] → [1, packed, heads, size of a value].

    Softmax(scaling q kᵀ) v over the beginning and the row's own tokens up to the query (Vaswani et al., arXiv:1706.03762); heads
    of queries that share keys (Ainslie et al., arXiv:2305.13245) are rows of one product.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefix: SharedPrefix, scaling: float
    ) -> torch.Tensor:
        heads, groups = query.shape[1], key.shape[1]
        each, shared, rows, own = heads // groups, prefix.shared, prefix.rows, prefix.own
        places = prefix.places(heads, groups)
        q, k, v = (values[0].transpose(0, 1) for values in (query, key, value))  # [packed, heads, size]
        own_q = _picked(q, places.queries).mul_(scaling).view(groups, rows * each * own, -1)
        own_k, own_v = (_picked(values, places.keys).view(groups * rows, own, -1) for values in (k, v))
        first_q = _grouped(q[:shared], groups) * scaling
        first_k, first_v = (_grouped(values[:shared], groups) for values in (k, v))

        first_p = torch.softmax(torch.baddbmm(places.unseen_shared, first_q, first_k.mT), -1)
        # Each with its own product, and then beside each other: products into parts of a matrix take longer.
        to_first = torch.bmm(own_q, first_k.mT).view(groups * rows, each * own, shared)
        to_own = torch.bmm(own_q.view(groups * rows, each * own, -1), own_k.mT).add_(places.unseen)
        own_p = torch.softmax(torch.cat([to_first, to_own], -1), -1)
        made = torch.bmm(_of_first(own_p, groups, shared), first_v).view(groups * rows, each * own, -1)
        made.baddbmm_(own_p[..., shared:], own_v)

        context.save_for_backward(own_q, own_k, own_v, first_q, first_k, first_v, own_p, first_p)
        context.prefix, context.scaling, context.heads = prefix, scaling, heads
        return _packed(torch.bmm(first_p, first_v), made, places, prefix, heads)[None]

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        """Of query, key and value."""
        own_q, own_k, own_v, first_q, first_k, first_v, own_p, first_p = context.saved_tensors
        prefix: SharedPrefix = context.prefix
        heads, groups = context.heads, len(first_k)
        each, shared, rows, own = heads // groups, prefix.shared, prefix.rows, prefix.own
        places = prefix.places(heads, groups)
        gradient = gradients[0][0]
        size = gradient.shape[-1]
        of_first = _grouped(gradient[:shared], groups)
        of_own = gradient.new_zeros(heads * rows * own, size)
        of_own.index_copy_(0, places.back, gradient[shared:].reshape(-1, size))
        by_group, by_row = of_own.view(groups, -1, size), of_own.view(groups * rows, each * own, size)

        to_first = torch.bmm(by_group, first_v.mT).view(groups * rows, each * own, shared)
        own_s = _of_softmax(torch.cat([to_first, torch.bmm(by_row, own_v.mT)], -1), own_p)
        first_s = _of_softmax(torch.bmm(of_first, first_v.mT), first_p)
        own_to_first, own_to_own = _of_first(own_s, groups, shared), own_s[..., shared:]

        of_q = torch.bmm(own_to_first, first_k).view(groups * rows, each * own, -1)
        of_q.baddbmm_(own_to_own, own_k)
        of_query = _packed(torch.bmm(first_s, first_k), of_q, places, prefix, heads).mul_(context.scaling)
        of_key = _summed(
            torch.bmm(own_to_first.mT, own_q).baddbmm_(first_s.mT, first_q),
            torch.bmm(own_to_own.mT, own_q.view(groups * rows, each * own, -1)), places, prefix,
        )  # fmt: skip
        of_value = _summed(
            torch.bmm(_of_first(own_p, groups, shared).mT, by_group).baddbmm_(first_p.mT, of_first),
            torch.bmm(own_p[..., shared:].mT, by_row), places, prefix,
        )  # fmt: skip
        return *(found.transpose(0, 1)[None] for found in (of_query, of_key, of_value)), None, None


def _unseen(length: int) -> torch.Tensor:
    return torch.full((length, length), -torch.inf).triu_(1)


def _picked(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of [packed, heads, size], vectors at places counted through both: [places, size]."""
    return values.reshape(-1, values.shape[-1]).index_select(0, places)


def _grouped(values: torch.Tensor, groups: int) -> torch.Tensor:
    """[tokens, heads, size] → [groups, heads of the group * tokens, size]."""
    tokens, heads, size = values.shape
    return values.view(tokens, groups, heads // groups, size).permute(1, 2, 0, 3).reshape(groups, -1, size)


def _of_first(values: torch.Tensor, groups: int, shared: int) -> torch.Tensor:
    """Of [groups * rows, queries, keys], what goes to the beginning: [groups, rows * queries, shared]."""
    return values.view(groups, -1, values.shape[-1])[..., :shared]


def _of_softmax(gradient: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return torch._softmax_backward_data(gradient, shares, -1, shares.dtype)


def _packed(first: torch.Tensor, own: torch.Tensor, places: Places, prefix: SharedPrefix, heads: int) -> torch.Tensor:
    """Of the beginning's [groups, heads of the group * shared, size] and of rows' own: [packed, heads, size]."""
    groups, _, size = first.shape
    found = first.new_empty(prefix.packed, heads, size)
    ordered = first.view(groups, heads // groups, prefix.shared, size).permute(2, 0, 1, 3)
    found[: prefix.shared].view(prefix.shared, groups, -1, size).copy_(ordered)
    torch.index_select(own.view(-1, size), 0, places.back, out=found[prefix.shared :].view(-1, size))
    return found


def _summed(first: torch.Tensor, own: torch.Tensor, places: Places, prefix: SharedPrefix) -> torch.Tensor:
    """Of keys or values, of the beginning [groups, shared, size] and of rows' own: [packed, groups, size]."""
    groups, _, size = first.shape
    found = first.new_zeros(prefix.packed, groups, size)
    found[: prefix.shared] = first.transpose(0, 1)
    found.view(-1, size).index_add_(0, places.keys, own.view(-1, size))
    return found
