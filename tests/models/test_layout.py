"""What the pinned converter makes of a model is told without a table of families: each tensor made so is the file's own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.llama_quantizer import quantize_with_llama_cpp
from tests.parity_chain import finished, recipe
from tests.small_models import (
    _randomize,
    adapter_artifact,
    put_tokenizer,
    tiny_gemma2,
    tiny_llama,
    tiny_phi3,
    tiny_qwen2,
)
from toolkit.errors import DataError
from toolkit.export.convert import convert
from toolkit.export.llama_cpp import known_architectures
from toolkit.models.convertible import check_converts_base
from toolkit.models.layout import Layout, architecture_of, layout_of
from toolkit.models.layout_format import made_of
from toolkit.models.safetensors_file import model_files
from toolkit.models.weights import TrainedWeights
from toolkit.parity.comparison import compare_weights
from toolkit.parity.exported import FolderWeights, GGUFWeights
from toolkit.parity.limits import largest_rest
from toolkit.parity.tuning import Tuning
from toolkit.recipe.plan import make_plan
from toolkit.run.facts import ModelFacts
from toolkit.run.hardware import read_hardware


def converted(base: Path, out: Path, layout: bool = True) -> GGUFWeights:
    """A model folder as an F32 GGUF file, with its layout."""
    out.mkdir(parents=True)
    names = model_files(base)
    parameters = sum(torch.Size(FolderWeights(base).shape(name)).numel() for name in names)
    facts = ModelFacts(
        merged_onto="as trained", dtype="float32", tensors=len(names), merged_tensors=0, parameters=parameters
    )
    chosen = recipe(["F32"], "F32", base)
    made = convert(chosen, adapter_artifact(base, base, "full"), finished(base, facts), out)
    return GGUFWeights(out / made.files[0].name, layout_of_folder(base) if layout else None)


def layout_of_folder(base: Path) -> Layout:
    weights = TrainedWeights(base, "float32", None)
    return layout_of(base, [weights.entry(name) for name in weights.names()], weights.tied_head)


SMALL: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 256, "mlp_only_layers": []},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 512, "block_auto_adjust_ff_dim": False},
    "gpt_oss": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 256, "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 512,
        "mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1,
        "position_embedding_type": "nope",
    },
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 64, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4,
    },
}  # fmt: skip


def other_family(folder: Path, family: str) -> Path:
    """A random model of a family that tests/small_models.py does not make, with SmolLM2's tokenizer; gives `folder`."""
    config = CONFIG_MAPPING[family](**{**SMALL, **OTHERS[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomize(model, 3)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    if (
        family == "granitemoehybrid"
    ):  # as published; transformers 5 writes "full_attention", which the converter does not know
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings["layer_types"] = OTHERS[family]["layer_types"]
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    put_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "become"),
    [
        ("llama", {"copied": 16, "rows permuted": 4}),
        ("qwen2", {"copied": 26}),
        ("gemma2", {"copied": 15, "value changed": 9}),
        ("phi3", {"copied": 15}),
        ("qwen3_moe", {"copied": 21, "stacked": 6}),
        ("lfm2", {"copied": 20, "reshaped": 1}),
        ("gpt_oss", {"copied": 31, "split": 8, "transposed": 2}),
        ("qwen3_5_text", {}),
        ("granitemoehybrid", {}),
    ],
)
def test_every_tensor_made_by_the_layout_is_the_files(family: str, become: dict[str, int], tmp_path: Path) -> None:
    made: dict[str, Any] = {"llama": tiny_llama, "qwen2": tiny_qwen2, "gemma2": tiny_gemma2, "phi3": tiny_phi3}
    base = made[family](tmp_path / "base") if family in made else other_family(tmp_path / "base", family)
    export, source = converted(base, tmp_path / "out"), FolderWeights(base)
    layout = export.layout
    assert layout is not None and layout.unknown == {}
    told = Counter(layout.becomes(name) for name in layout.tensors)
    assert not become or told == become, told
    assert export.others(layout.tensors) == []
    for name in layout.tensors:
        assert export.shape(name) == layout.shape(name), name
        wanted, found = layout.make(name, source.load), export.load(name)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0, msg=name)
        if wanted.dim() == 2:
            rows = torch.tensor([0, wanted.shape[0] - 1])
            assert torch.equal(export.load(name, rows), found[rows]), name
    file = export.header.metadata
    other = {key for key, value in layout.metadata.items() if file.get(key) != value and not key.startswith("general.")}
    assert {key for key in other if not np.allclose(file[key], layout.metadata[key])} == set()
    assert file.keys() - layout.metadata.keys() <= {
        "tokenizer.chat_template", "general.basename", "general.finetune", "general.description", "general.license",
        "general.tags", "general.quantized_by", "general.base_model.count", "general.base_model.0.name",
    }  # fmt: skip


def test_a_quantized_file_is_compared_whatever_it_says_of_axes_of_length_one(tmp_path: Path) -> None:
    base = other_family(tmp_path / "base", "granitemoehybrid")
    export = converted(base, tmp_path / "out")
    assert export.shape("blk.0.ssm_norm.weight") == (1, 512)
    quantize_with_llama_cpp(export.path, tmp_path / "q.gguf", "Q8_0")
    quantized = GGUFWeights(tmp_path / "q.gguf", export.layout)
    assert quantized.shape("blk.0.ssm_norm.weight") == (512,)
    tuning = Tuning(adapter_artifact(base, base, "full"), "as trained")
    compared = compare_weights(tuning, {"F32": export, "Q8_0": quantized}, largest_rest)
    for found in compared.values():
        assert (found.shapes, found.missing, found.extra, found.unknown) == ([], [], [], [])
        assert not any(row.damage for row in found.tensors)


def test_an_answer_is_kept_and_another_model_is_asked_anew(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    first = layout_of_folder(base)
    again = layout_of_folder(base)
    assert (again.tensors, again.metadata) == (first.tensors, first.metadata)
    deeper = layout_of_folder(tiny_llama(tmp_path / "deeper", layers=2))
    assert (first.metadata["llama.block_count"], deeper.metadata["llama.block_count"]) == (1, 2)
    assert first.label("blk.0.attn_q.weight") == "model.layers.0.self_attn.q_proj.weight"
    assert first.tied_head == "output.weight"
    assert architecture_of(base) == "llama"


def test_a_stack_is_called_by_what_its_parts_share(tmp_path: Path) -> None:
    layout = layout_of_folder(other_family(tmp_path / "base", "qwen3_moe"))
    assert layout.label("blk.1.ffn_up_exps.weight") == "model.layers.1.mlp.experts.*.up_proj.weight"


def test_an_architecture_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    config = (base / "config.json").read_text(encoding="utf-8")
    (base / "config.json").write_text(config.replace("LlamaForCausalLM", "LlamaOfTheMoon"), encoding="utf-8")
    with pytest.raises(DataError, match="does not know the architecture LlamaOfTheMoon"):
        architecture_of(base)
    with pytest.raises(DataError, match="does not know the architecture LlamaOfTheMoon"):
        check_converts_base(str(base))
    chosen = recipe(["F16"], "F16", base)
    assert any("LlamaOfTheMoon" in note for note in make_plan(chosen, read_hardware()).notes)
    assert "LlamaForCausalLM" in known_architectures()


@pytest.mark.parametrize(
    ("value", "wanted"), [([1.0, 1.0], [2.0, 3.0]), ([-2.0, 0.0], [-2.0, -4.0]), ("-exp", [-np.e, -(np.e**2)])]
)
def test_what_is_done_to_values(value: Any, wanted: list[float]) -> None:
    part = {"source": "a", "begin": 0, "end": 2, "index": [{"axis": 0, "key": ""}]}
    found = made_of({"shape": [2], "value": value, "parts": [part]}, lambda _: np.array([1, 2], np.float32), {})
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
