"""Norms, rotary positions and attention behind a shared beginning in few steps: as torch and transformers do it."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from tests.families.table import FAMILIES
from tests.families.zoo import Family
from toolkit.models.norms import RootMeanSquare
from toolkit.models.packing import pack
from toolkit.models.rotations import NAME, Rotated, rotate_in_few_steps
from toolkit.models.shared_prefix import LENGTH, PrefixAttention, can_attend

Tensors = tuple[torch.Tensor, ...]


def assert_close(wanted: Tensors, found: Tensors, most: float = 1e-5) -> None:
    assert len(wanted) == len(found)
    for one, other in zip(wanted, found):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= most * one.abs().max()


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, requires_grad=True)


def with_gradients(made: torch.Tensor, given: Tensors, seed: int = 7) -> Tensors:
    gradient = torch.randn(made.shape, generator=torch.Generator().manual_seed(seed))
    return made.detach(), *torch.autograd.grad(made, given, gradient)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_norm_gives_what_torch_s_does(size: float) -> None:
    torch.manual_seed(0)
    x, weight = (random(2, 5, 24).detach() * size).requires_grad_(), random(24)
    wanted = with_gradients(rms_norm(x, (24,), weight, 1e-6), (x, weight))
    assert_close(wanted, with_gradients(RootMeanSquare.apply(x, weight, 1e-6), (x, weight)))
    x[0, 0].detach().zero_()
    assert all(values.isfinite().all() for values in with_gradients(RootMeanSquare.apply(x, weight, 1e-6), (x, weight)))


def test_a_norm_s_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 8, dtype=torch.double, requires_grad=True), torch.randn(8, dtype=torch.double)
    assert torch.autograd.gradcheck(RootMeanSquare.apply, (x, weight.requires_grad_(), 1e-5))


def test_a_rotation_gives_what_transformers_does() -> None:
    torch.manual_seed(0)
    q, cos, sin = random(2, 9, 4, 8), torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    turned = q.transpose(1, 2)  # as layers give it
    wanted = with_gradients(modeling_llama.apply_rotary_pos_emb(turned, turned, cos, sin)[0], (q,))
    assert_close(wanted, with_gradients(Rotated.apply(turned, cos.unsqueeze(1), sin.unsqueeze(1)), (q,)))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_s_positions_are_as_before(family: Family) -> None:
    config = family.config(300)
    config.get_text_config().pad_token_id = 0
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    own = getattr(sys.modules[type(model).__module__], NAME, None)
    ids = torch.randint(5, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits
        undo = rotate_in_few_steps(model)
        found = model(ids, use_cache=False).logits
        undo()
    assert_close((wanted,), (found,), 1e-4)
    assert getattr(sys.modules[type(model).__module__], NAME, None) is own


def test_most_families_turn_in_few_steps_and_other_types_as_they_do() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    own = modeling_llama.apply_rotary_pos_emb
    undo, again = rotate_in_few_steps(model), rotate_in_few_steps(model)
    assert modeling_llama.apply_rotary_pos_emb is not own
    again()
    assert modeling_llama.apply_rotary_pos_emb is not own, "who changed it gives it back"
    q, k, cos, sin = (torch.randn(1, 2, 3, 8).to(torch.bfloat16) for _ in range(4))
    wanted = own(q, k, cos[0], sin[0])
    assert_close(wanted, modeling_llama.apply_rotary_pos_emb(q, k, cos[0], sin[0]), 0)
    undo()
    assert modeling_llama.apply_rotary_pos_emb is own


def packed_rows(lengths: list[int], shared: int, seed: int = 0) -> Any:
    """Rows of tokens that begin alike, packed."""
    ids = torch.randint(5, 10_000, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    ids[:, :shared] = ids[0, :shared]
    mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
    return pack(ids, mask, None)


def whole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Any, scaling: float) -> torch.Tensor:
    """torch's attention of whole rows."""
    rows, length = packed.shape

    def as_rows(values: torch.Tensor) -> torch.Tensor:
        found = values[0].transpose(0, 1)[packed.places]
        return found.view(rows, length, *found.shape[1:]).transpose(1, 2)

    found = scaled_dot_product_attention(
        *map(as_rows, (query, key, value)), is_causal=True, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2).flatten(0, 1)[packed.taken][None]


@pytest.mark.parametrize(
    "lengths,shared",
    [([20, 14, 20, 17], 12), ([9, 20], 9), ([20, 9, 9], 9), ([30, 30, 30], 29), ([12, 12], 11), ([40, 25, 31, 40, 26], 20)],
    ids=["several", "the first is the beginning", "others are the beginning", "one token each", "two rows", "five"],
)  # fmt: skip
@pytest.mark.parametrize("heads,groups,size", [(4, 4, 8), (6, 2, 8), (5, 1, 8), (4, 2, 12)])
def test_attention_behind_a_beginning_is_that_of_whole_rows(
    lengths: list[int], shared: int, heads: int, groups: int, size: int
) -> None:
    torch.manual_seed(0)
    packed = packed_rows(lengths, shared)
    assert packed.prefix is not None and packed.prefix.shared == shared
    count = len(packed.taken)
    given = random(1, count, heads, 8), random(1, count, groups, 8), random(1, count, groups, size)
    turned = [values.transpose(1, 2) for values in given]  # as layers give them
    wanted = with_gradients(whole(*turned, packed, 0.3), given)
    assert_close(wanted, with_gradients(PrefixAttention.apply(*turned, packed.prefix, 0.3), given))


def test_rows_that_share_more_with_one_another_than_all_do_are_whole_too() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 10_000, (4, 20), generator=torch.Generator().manual_seed(0))
    ids[:, :12], ids[1, :16], ids[3, :18] = ids[0, :12], ids[0, :16], ids[2, :18]
    ids[2, :12] = ids[3, :12] = ids[0, :12]
    packed = pack(ids, None, None)
    assert packed is not None and packed.prefix is not None and packed.prefix.shared == 12
    given = tuple(random(1, len(packed.taken), 4, 8) for _ in range(3))
    turned = [values.transpose(1, 2) for values in given]
    wanted = with_gradients(whole(*turned, packed, 0.3), given)
    assert_close(wanted, with_gradients(PrefixAttention.apply(*turned, packed.prefix, 0.3), given))


def test_where_it_is_not_faster_or_would_keep_too_much_it_is_not_done() -> None:
    assert packed_rows([20, 20, 20], 0).prefix is None
    assert packed_rows([20, 20, 20], 2).prefix is None
    assert packed_rows([20, 20], 20).prefix is None, "nothing is a row's own"
    assert packed_rows([LENGTH, LENGTH], LENGTH - 20).prefix is not None
    assert packed_rows([LENGTH + 1, LENGTH + 1], LENGTH - 20).prefix is None


def test_an_attention_that_does_more_is_left_to_torch() -> None:
    query, layer = torch.zeros(1, 2, 3, 4), torch.nn.Identity()
    assert can_attend(layer, query, {"scaling": 0.5, "dropout": 0.0, "is_causal": None})
    assert not can_attend(layer, query.to(torch.bfloat16), {})
    assert not can_attend(layer, query, {"dropout": 0.1})
    assert not can_attend(layer, query, {"is_causal": False})
    assert not can_attend(layer, query, {"position_bias": query})
    layer.is_causal = False  # type: ignore[assignment]
    assert not can_attend(layer, query, {})
