"""The tuned model, loaded for reference, is made of the very weights that merging reads."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import bitsandbytes
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.small_models import adapter_artifact, base_facts, tiny_adapter, tiny_llama, tiny_phi3
from toolkit.errors import UsageError
from toolkit.models.reference import Reference, TeacherForced
from toolkit.models.weights import TORCH_DTYPES, TrainedWeights
from toolkit.recipe.lora import Lora
from toolkit.recipe.schema import Recipe
from toolkit.run.facts import Quantization
from toolkit.train.adapter import refuse_missing_targets
from toolkit.train.model import (
    _load_base,
    _through_unsloth,
    autocast_of,
    load_for_training,
    load_tuned,
    training_dtype,
)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_goldens_and_merge_see_the_same_weights(
    tmp_path: Path, method: Literal["lora", "qlora"], base_dtype: Literal["float32", "bfloat16"]
) -> None:
    base = tiny_llama(tmp_path / "base", tokenizer="small", dtype=TORCH_DTYPES[base_dtype])
    adapter = adapter_artifact(tiny_adapter(base, tmp_path / "adapter", method), base, method, base_dtype)
    model, tokenizer = load_tuned(adapter)
    ids = tokenizer.encode("Small meals, less fat and coffee often help. See a doctor if it lasts.")
    with torch.no_grad():
        tuned = model(torch.tensor([ids[:-1]])).logits[0]
        with model.disable_adapter():
            base_only = model(torch.tensor([ids[:-1]])).logits[0]
    weights = TrainedWeights(base, base_dtype, adapter.facts.quantization)
    (expected,) = Reference(weights, adapter.folder, whole=True).logits([TeacherForced(ids, 1)])
    assert (tuned - expected).abs().max() < 1e-4
    assert (tuned - base_only).abs().max() > 0.1


def test_no_nf4_layer_may_be_repacked_for_a_kernel_without_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)  # as on a machine that has it
    base = tiny_llama(tmp_path / "base", tokenizer="small")
    trained = load_for_training(recipe(base, method="qlora"), base_facts(base)).model
    tuned = adapter_artifact(tiny_adapter(base, tmp_path / "adapter", "qlora"), base, "qlora")
    for model in (trained, load_tuned(tuned, torch.bfloat16)[0]):
        layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
        assert len(layers) == 2 * 7
        assert [layer.support_avx512bf16_for_cpu for layer in layers] == [False] * len(layers)
    # In float32 the reference holds the values themselves.
    assert not any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in load_tuned(tuned)[0].modules())


def recipe(base: Path, **train: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "x", "base": str(base), "data": {"path": "x"}, "train": train, "ollama": {"model": "x"}}
    )


@pytest.mark.parametrize("double", [True, False])
def test_the_facts_tell_how_the_base_was_really_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, double: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(tmp_path / "base", tokenizer="small", dtype=torch.bfloat16)
    asked = recipe(base, method="qlora", bnb_4bit_use_double_quant=double)
    loaded = load_for_training(asked, base_facts(base))
    assert loaded.quantization == Quantization(double_quantization=double)
    assert loaded.base_dtype == "float32"
    assert "Unsloth" not in capsys.readouterr().err

    class FastLanguageModel:
        """As Unsloth: always double quantization, and a type of its own where it takes another for better."""

        @staticmethod
        def from_pretrained(model_name: str, load_in_4bit: bool, **_: Any) -> tuple[Any, Any]:
            assert load_in_4bit
            return _load_base(Path(model_name), torch.bfloat16, Quantization(), torch.float32), object()

        @staticmethod
        def get_peft_model(model: Any, **_: Any) -> Any:
            return model

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=FastLanguageModel))
    loaded = _through_unsloth(asked, base_facts(base), torch.float32)
    assert loaded.quantization == Quantization(double_quantization=True)
    assert loaded.base_dtype == "bfloat16"
    assert ("bnb_4bit_use_double_quant is true" in capsys.readouterr().err) == (not double)


def test_a_card_that_only_emulates_bfloat16_trains_in_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, dtype in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=native: has or including_emulation
        )
        asked = recipe(tmp_path, bf16=True)
        assert training_dtype(asked, tmp_path) == dtype
        assert autocast_of(asked) == {"bf16": native, "fp16": not native}
        assert autocast_of(recipe(tmp_path, bf16=False)) == {"bf16": False, "fp16": not native}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert autocast_of(recipe(tmp_path, bf16=True)) == {"bf16": False, "fp16": False}


def test_projections_that_a_base_does_not_have_are_refused(tmp_path: Path) -> None:
    phi3 = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_phi3(tmp_path / "phi3")))
    with pytest.raises(
        UsageError, match="names q_proj, k_proj, v_proj, gate_proj, up_proj, which this base does not have"
    ) as caught:
        refuse_missing_targets(phi3, Lora())
    assert "It has down_proj, gate_up_proj, o_proj, qkv_proj." in caught.value.hint
    refuse_missing_targets(phi3, Lora(target_modules="all-linear"))
    refuse_missing_targets(phi3, Lora(target_modules=["qkv_proj"]))
