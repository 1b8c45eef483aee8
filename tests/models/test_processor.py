"""Training on a CPU the fast way gives what PEFT's and TRL's own code gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.trainer import sft_trainer

from tests.small_models import base_facts, tiny_llama
from toolkit.models.processor import sped_up, speed_up
from toolkit.models.products import FrozenWeight, can_lay_out
from toolkit.models.tuned_linear import TunedLinear
from toolkit.recipe.schema import Recipe
from toolkit.run.hardware import has_bfloat16_products
from toolkit.train.answer_loss import AnswerLoss, use_in_trl
from toolkit.train.forward import computed_in
from toolkit.train.model import load_for_training

BFLOAT16_GRADIENTS = 0.05
"""The largest relative error of a matrix's gradient in bfloat16, which keeps 8 bits of each value."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base")


def loaded(base: Path, method: str = "lora", **lora: Any) -> Any:
    """A model with an adapter that changes what it says."""
    recipe = Recipe.model_validate(
        {"name": "x", "base": str(base), "data": {"path": "x"}, "train": {"method": method}, "lora": lora,
         "ollama": {"model": "x"}}
    )  # fmt: skip
    model = load_for_training(recipe, base_facts(base)).model.train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    return model


def batch() -> dict[str, torch.Tensor]:
    """Three sequences, one with padding behind it."""
    ids = torch.randint(5, 400, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def learnt(model: Any, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(logits where there is no padding, gradients)."""
    model.zero_grad()
    out = model(**given)
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.logits.detach()[given["attention_mask"] == 1], found


def largest_error(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    assert wanted.keys() == found.keys() and wanted
    return max(float((wanted[name] - found[name]).norm() / wanted[name].norm()) for name in wanted)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_same_logits_and_gradients(base: Path, method: str) -> None:
    model = loaded(base, method)
    logits, gradients = learnt(model, batch())
    speed_up(model, bfloat16=False)
    assert all(hasattr(layer, "compute_dtype") for layer in model.modules() if hasattr(layer, "lora_A"))
    fast, theirs = learnt(model, batch())
    assert (logits - fast).abs().max() < 1e-4
    assert largest_error(gradients, theirs) < 1e-5


def test_bfloat16_s_gradients_are_float32_s_within_a_bound(base: Path) -> None:
    model = loaded(base, "qlora")
    _, gradients = learnt(model, batch())
    speed_up(model, bfloat16=True)
    _, rounded = learnt(model, batch())
    assert 1e-4 < largest_error(gradients, rounded) < BFLOAT16_GRADIENTS
    assert computed_in(model, _Args()) == "bfloat16"


def test_what_a_young_adapter_changes_is_not_rounded_away() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 256), torch.randn(64, 256)
    a, b = torch.randn(4, 256) * 0.06, torch.randn(64, 4) * 1e-3
    frozen = FrozenWeight(weight.bfloat16(), learns=False, lay_out=can_lay_out(torch.bfloat16))
    (found,) = TunedLinear.apply(x, frozen, None, [1.0], a, b)
    (without,) = TunedLinear.apply(x, frozen, None, [0.0], a, b)
    wanted = x @ a.t() @ b.t()
    assert ((found - without) - wanted).norm() < 0.01 * wanted.norm()


class _Args:
    """A trainer's arguments without mixed precision."""

    bf16 = fp16 = False


def test_without_the_adapter_it_is_the_base(base: Path) -> None:
    model, given = loaded(base), batch()
    with torch.no_grad(), model.disable_adapter():
        wanted = model(**given).logits
    speed_up(model, bfloat16=False)
    with torch.no_grad(), model.disable_adapter():
        found = model(**given).logits
    real = given["attention_mask"] == 1
    assert (wanted - found)[real].abs().max() < 1e-4


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_what_is_not_plain_stays_as_it_was(base: Path, lora: dict[str, Any]) -> None:
    model = loaded(base, **lora)
    speed_up(model, bfloat16=True)
    assert not any("forward" in vars(layer) for layer in model.modules() if hasattr(layer, "lora_A"))


def test_padding_before_a_sequence_keeps_its_mask(base: Path) -> None:
    model, given = loaded(base), batch()
    given = {name: value.flip(1) for name, value in given.items()}
    logits, _ = learnt(model, given)
    speed_up(model, bfloat16=False)
    found, _ = learnt(model, given)
    assert (logits - found).abs().max() < 1e-4


def test_a_norm_that_does_something_else_stays(tmp_path: Path) -> None:
    from transformers import Gemma2Config

    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data = torch.randn_like(parameter)
    ids = torch.arange(10)[None]
    wanted = model(ids).logits
    speed_up(model, bfloat16=False)
    assert (model(ids).logits - wanted).abs().max() < 1e-4


def test_gradients_of_the_layer_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    shapes = ((3, 5), (2, 5), (1, 5), (4, 2), (3, 1))  # x, two A, two B
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight, bias = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    frozen = FrozenWeight(weight, learns=True, lay_out=False)
    assert torch.autograd.gradcheck(lambda x, *factors: TunedLinear.apply(x, frozen, bias, [0.7, 2.0], *factors), given)


@pytest.mark.parametrize("at_once", [1, 1 << 23])
def test_the_loss_is_trl_s(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.train.answer_loss.VALUES_AT_ONCE", at_once)
    monkeypatch.setattr(sft_trainer, "_chunked_cross_entropy_loss", sft_trainer._chunked_cross_entropy_loss)
    torch.manual_seed(0)
    hidden, head = torch.randn(2, 9, 16) * 3, torch.randn(50, 16)
    labels = torch.randint(50, (2, 9))
    labels[0, :6] = -100

    def found(items: int | None) -> list[torch.Tensor]:
        given = hidden.clone().requires_grad_()
        loss, right, entropy, count = sft_trainer._chunked_cross_entropy_loss(
            given, head, 4, labels=labels, num_items_in_batch=items, logit_scale=1.0, final_logit_softcapping=None,
            shift_labels=None, lm_head_bias=None,
        )  # fmt: skip
        (loss * 2).backward()
        return [loss, right, entropy, count, given.grad]

    wanted = [found(None), found(7)]
    use_in_trl(bfloat16=False)
    for one, other in zip(wanted, [found(None), found(7)]):
        for theirs, ours in zip(one, other):
            torch.testing.assert_close(ours, theirs, check_dtype=False, rtol=1e-5, atol=1e-5)


def test_a_head_that_does_more_is_left_to_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_trainer, "_chunked_cross_entropy_loss", sft_trainer._chunked_cross_entropy_loss)
    hidden, head, labels = torch.randn(1, 5, 8), torch.randn(20, 8) * 5, torch.randint(20, (1, 5))
    usual = sft_trainer._chunked_cross_entropy_loss(hidden, head, 4, labels=labels, final_logit_softcapping=2.0)
    use_in_trl(bfloat16=False)
    found = sft_trainer._chunked_cross_entropy_loss(hidden, head, 4, labels=labels, final_logit_softcapping=2.0)
    torch.testing.assert_close(found, usual)


def test_what_the_processor_has_is_what_torch_finds() -> None:
    assert has_bfloat16_products() == (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def test_no_answer_is_no_loss() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    loss, _, _ = AnswerLoss.apply(
        hidden, FrozenWeight(torch.randn(20, 8), True, False), torch.zeros(0, dtype=torch.long)
    )
    loss.backward()
    assert loss == 0


def test_afterwards_a_model_computes_as_before(base: Path) -> None:
    model, given = loaded(base), batch()
    real = given["attention_mask"] == 1
    usual = [vars(module).get("forward") for module in model.modules()]
    wanted, _ = learnt(model, given)
    with torch.no_grad(), sped_up(model):
        fast = [layer for layer in model.modules() if hasattr(layer, "compute_dtype")]
        assert fast and not any("forward" in vars(layer.get_base_layer()) for layer in fast), "laid out once"
        found = model(**given).logits[real]
    assert (wanted - found).abs().max() < 1e-4
    assert [vars(module).get("forward") for module in model.modules()] == usual
    assert torch.equal(learnt(model, given)[0], wanted)
    with sped_up(model.to(torch.bfloat16)):
        assert [vars(module).get("forward") for module in model.modules()] == usual, (
            "what is not float32 stays as it is"
        )
