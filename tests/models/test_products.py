"""Weights that are laid out once give the products that torch gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models.test_processor import loaded
from tests.small_models import tiny_llama
from toolkit.models import products
from toolkit.models.products import FrozenWeight, can_lay_out, laid_out
from toolkit.models.tuned_linear import given_the_same
from toolkit.run.hardware import has_bfloat16_products

needs_onednn = pytest.mark.skipif(not can_lay_out(torch.float32), reason="this build of torch lays out no weights")


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 96), (0, 96), (700, 96), (2, 5, 96), (96,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_any_number_of_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if not can_lay_out(dtype):
        assert not has_bfloat16_products()
        pytest.skip("this processor has no products in bfloat16")
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(130, 96).to(dtype)
    frozen = FrozenWeight(weight, learns=True, lay_out=True)
    made = frozen.ahead(x)
    assert made.dtype == dtype and made.shape == (*shape[:-1], 130)
    wanted = x.double() @ weight.double().t()
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert torch.allclose(made.double(), wanted, atol=tolerance * 30, rtol=tolerance)
    behind = frozen.back(made)
    assert torch.allclose(behind.double(), made.double() @ weight.double(), atol=tolerance * 1000, rtol=tolerance)


@needs_onednn
def test_values_that_do_not_lie_one_behind_the_other() -> None:
    x, weight = torch.randn(6, 200)[:, 50:146], torch.randn(96, 30).t()
    found = FrozenWeight(weight, learns=False, lay_out=True).ahead(x)
    assert torch.allclose(found, x @ weight.t(), atol=1e-4)
    with pytest.raises(AssertionError, match="nothing learns"):
        FrozenWeight(weight, learns=False, lay_out=True).back(found)


def test_a_type_that_is_not_tried_is_not_laid_out() -> None:
    assert not can_lay_out(torch.float64)


def model_of_linear_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 10, bias=False))


@needs_onednn
def test_within_linear_layers_multiply_otherwise_and_afterwards_as_before() -> None:
    model, x = model_of_linear_layers(), torch.randn(3, 96)
    with torch.no_grad(), laid_out(model):
        assert "forward" in vars(model[0]) and "forward" in vars(model[2])
        with laid_out(model):  # once is enough
            found = model(x)
        assert "forward" in vars(model[0])
    assert not any("forward" in vars(module) for module in model)
    assert torch.allclose(found, model(x), atol=1e-5)


def test_where_something_learns_or_memory_is_short_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of_linear_layers()
    with laid_out(model):
        assert not any("forward" in vars(module) for module in model)
    monkeypatch.setattr(products, "SPARE", 10**12)
    with torch.no_grad(), laid_out(model):
        assert not any("forward" in vars(module) for module in model)


def test_layers_that_are_given_the_same_are_found(tmp_path: Path) -> None:
    model = loaded(tiny_llama(tmp_path / "base"))
    names = {layer: name for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    groups = given_the_same(model, list(names))
    ends = [[names[layer].rpartition(".")[2] for layer in group] for group in groups]
    of_block = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert ends == of_block * (len(ends) // 4)
    assert model.training


def test_layers_that_tokens_do_not_reach_stand_by_themselves() -> None:
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    assert given_the_same(nn.Module(), layers) == [[layers[0]], [layers[1]]]
