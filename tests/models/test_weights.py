"""The weights as training saw them: what bitsandbytes holds, bit by bit."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.small_models import tiny_llama, tiny_qwen2
from toolkit.errors import DataError
from toolkit.models.weights import TrainedWeights
from toolkit.run.facts import Quantization


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("qwen2"), tie=False, tokenizer="smollm2")


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("double", [True, False])
def test_equal_to_what_bitsandbytes_loads(qwen2: Path, base_dtype: str, double: bool) -> None:
    dtype = getattr(torch, base_dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(qwen2, quantization_config=config, dtype=dtype, device_map={"": "cpu"})
    weights = TrainedWeights(qwen2, base_dtype, Quantization(double_quantization=double))
    parameters = dict(model.named_parameters())
    assert sorted(weights.names()) == sorted(parameters)
    quantized = 0
    for name, parameter in parameters.items():
        mine = weights.load(name)
        assert weights.is_quantized(name) == isinstance(parameter, bnb.nn.Params4bit), name
        if isinstance(parameter, bnb.nn.Params4bit):
            quantized += 1
            parameter.quant_state.dtype = torch.float32
            theirs = bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state)
            assert mine.dtype == theirs.dtype == torch.float32
            assert torch.equal(mine, theirs), name
        else:
            assert mine.dtype == dtype
            assert torch.equal(mine, parameter.data), name
    assert quantized == 2 * 7


def test_without_quantization_the_file_is_what_acts(qwen2: Path) -> None:
    weights = TrainedWeights(qwen2, "float32", None)
    model = AutoModelForCausalLM.from_pretrained(qwen2, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        assert torch.equal(weights.load(name), parameter.data), name
    assert not any(weights.is_quantized(name) for name in weights.names())


def test_rounding_changes_something(qwen2: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    original = TrainedWeights(qwen2, "float32", None).load(name)
    rounded = TrainedWeights(qwen2, "float32", Quantization()).load(name)
    error = (original - rounded).norm() / original.norm()
    assert 0.05 < error < 0.15  # NF4's error on normal weights is about 9 %
    assert torch.equal(rounded, TrainedWeights(qwen2, "float32", Quantization()).load(name))


def test_tied_head_is_no_tensor_of_its_own(tmp_path: Path) -> None:
    tied = TrainedWeights(tiny_llama(tmp_path / "tied", layers=1), "float32", None)
    assert tied.tied_head == "lm_head.weight"
    assert tied.embedding == "model.embed_tokens.weight"
    assert "lm_head.weight" not in tied.names()
    untied = TrainedWeights(tiny_llama(tmp_path / "untied", layers=1, tie=False), "float32", Quantization())
    assert untied.tied_head is None
    assert "lm_head.weight" in untied.names()
    assert not untied.is_quantized("lm_head.weight")
    assert untied.entry("lm_head.weight").shape == (49_152, 256)


def test_unknown_architecture(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, layers=1)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "lama"'))
    with pytest.raises(DataError, match=r"config\.json: .*lama"):
        TrainedWeights(folder, "float32", None)
