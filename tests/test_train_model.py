"""The tuned model, loaded for reference, is made of the very weights that merging reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import bitsandbytes
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.models import adapter_artifact, base_facts, tiny_adapter, tiny_llama, tiny_phi3
from toolkit.errors import UsageError
from toolkit.recipe import Lora, Recipe
from toolkit.reference import Reference, TeacherForced
from toolkit.train.model import load_for_training, load_tuned, refuse_missing_targets
from toolkit.weights import TORCH_DTYPES, TrainedWeights


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_goldens_and_merge_see_the_same_weights(
    tmp_path: Path, method: Literal["lora", "qlora"], base_dtype: Literal["float32", "bfloat16"]
) -> None:
    base = tiny_llama(tmp_path / "base", dtype=TORCH_DTYPES[base_dtype])
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
    base = tiny_llama(tmp_path / "base")
    recipe = Recipe.model_validate(
        {"name": "x", "base": str(base), "data": {"path": "x"}, "train": {"method": "qlora"}, "ollama": {"model": "x"}}
    )
    trained = load_for_training(recipe, base_facts(base)).model
    tuned, _ = load_tuned(adapter_artifact(tiny_adapter(base, tmp_path / "adapter", "qlora"), base, "qlora"))
    for model in (trained, tuned):
        layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
        assert len(layers) == 2 * 7
        assert [layer.support_avx512bf16_for_cpu for layer in layers] == [False] * len(layers)


def test_projections_that_a_base_does_not_have_are_refused(tmp_path: Path) -> None:
    phi3 = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_phi3(tmp_path / "phi3")))
    with pytest.raises(
        UsageError, match="names q_proj, k_proj, v_proj, gate_proj, up_proj, which this base does not have"
    ) as caught:
        refuse_missing_targets(phi3, Lora())
    assert "It has down_proj, gate_up_proj, o_proj, qkv_proj." in caught.value.hint
    refuse_missing_targets(phi3, Lora(target_modules="all-linear"))
    refuse_missing_targets(phi3, Lora(target_modules=["qkv_proj"]))
