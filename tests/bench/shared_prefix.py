"""Attention of rows that all begin alike, there and back, beside torch's own of whole rows:
`python -m tests.bench.shared_prefix`.

Of the shape of the embedded base (9 heads of 64, 3 of keys), float32; rows of packed tokens, as the layers of a training have
them. Both take turns; printed is the median of the ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter as clock

import torch
from rich.console import Console
from rich.table import Table

from toolkit.models.packing import _attention, _now, pack
from toolkit.models.shared_prefix import PrefixAttention, SharedPrefix, is_faster, share_of_pairs
from toolkit.run.processes import keep_freed_memory

BATCHES = ((8, 78, 0.37), (8, 120, 0.25), (8, 120, 0.58), (8, 200, 0.15), (4, 200, 0.5), (8, 400, 0.25), (8, 400, 0.75))
"""(rows, tokens of each, share of them that all begin with)"""
HEADS, GROUPS, SIZE = 9, 3, 64


class Layer(torch.nn.Module):
    """What transformers' attention asks of a layer."""

    num_key_value_groups, is_causal = HEADS // GROUPS, True


def taken(step: Callable[[], object]) -> float:
    """Seconds."""
    start = clock()
    step()
    return clock() - start


def main() -> None:
    """Print the table."""
    keep_freed_memory()
    torch.manual_seed(0)
    layer, table = Layer(), Table("rows", "tokens", "alike", "pairs of tokens", "times torch's speed", "used")
    for rows, length, share in BATCHES:
        shared = round(share * length)
        ids = torch.randint(0, 50_000, (rows, length))
        ids[:, :shared] = ids[0, :shared]
        packed = pack(ids, None, None)
        assert packed is not None
        prefix = SharedPrefix(shared, packed.places, packed.taken, packed.shape)
        given = [
            torch.randn(1, len(packed.taken), heads, SIZE, requires_grad=True) for heads in (HEADS, GROUPS, GROUPS)
        ]
        q, k, v = (values.transpose(1, 2) for values in given)
        back = torch.randn(1, len(packed.taken), HEADS, SIZE)

        def ours() -> object:
            made = PrefixAttention.apply(q, k, v, prefix, SIZE**-0.5)  # noqa: B023
            return torch.autograd.grad(made, given, back)  # noqa: B023

        def whole() -> object:
            _now.append(packed._replace(prefix=None))  # noqa: B023
            made, _ = _attention(layer, q, k, v, None, scaling=SIZE**-0.5)  # noqa: B023
            _now.pop()
            return torch.autograd.grad(made, given, back)  # noqa: B023

        ours(), whole()
        ratio = median(taken(whole) / taken(ours) for _ in range(25))
        asked = shared, len(packed.taken), packed.shape
        pairs, used = share_of_pairs(*asked), "yes" if is_faster(*asked) else "no"
        table.add_row(str(rows), str(length), str(shared), f"{pairs:.0%}", f"{ratio:.2f}", used)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
