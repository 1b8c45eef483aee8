"""Merging: bit for bit what PEFT computes, whatever the adapter's kind; and every misfit named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.disk import ran_on_a_full_disk
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama, tiny_qwen2
from toolkit.errors import DataError, ToolkitError, UsageError
from toolkit.export.merge import merge, output_dtype
from toolkit.models.merged import merged_weights
from toolkit.models.safetensors_file import model_files
from toolkit.models.weights import TrainedWeights
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, Quantization


def recipe(**changes: Any) -> Recipe:
    tree = {"name": "tiny", "base": "tiny", "data": {"path": "rows.csv"}, "golden": {"from_test": 1}}
    return Recipe.model_validate({**tree, "ollama": {"model": "tiny"}, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bf16_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2(tmp_path_factory.mktemp("bf16"), tie=False, tokenizer="smollm2", dtype=torch.bfloat16)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "merge").mkdir()
    return tmp_path / "merge"


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in set(model_files(folder).values()) for name, tensor in load_file(path).items()}


def peft_merged(model: Any, adapter: Path) -> dict[str, torch.Tensor]:
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(merged.named_parameters())


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor.data), name


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_to_peft(
    kind: dict[str, bool], dtype: Literal["float32", "bfloat16"], base: Path, bf16_base: Path, tmp_path: Path, out: Path
) -> None:
    folder = base if dtype == "float32" else bf16_base
    adapter = tiny_adapter(folder, tmp_path / "adapter", **kind)
    facts = merge(recipe(), adapter_artifact(adapter, folder, base_dtype=dtype), out)
    theirs = peft_merged(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), adapter)
    assert_equal(loaded(out), theirs)
    assert (facts.merged_onto, facts.dtype, facts.merged_tensors) == ("as trained", dtype, 14)
    assert facts.tensors == len(theirs)
    assert facts.parameters == sum(t.numel() for t in theirs.values())


@pytest.mark.parametrize(
    ("kind", "base_dtype"),
    [({}, "float32"), ({}, "bfloat16"), ({"use_dora": True}, "float32")],
    ids=["fp32", "bf16", "dora"],
)
def test_qlora_onto_what_it_was_trained_on(
    kind: dict[str, bool], base_dtype: Literal["float32", "bfloat16"], base: Path, tmp_path: Path, out: Path
) -> None:
    adapter = tiny_adapter(base, tmp_path / "adapter", "qlora", **kind)
    facts = merge(recipe(), adapter_artifact(adapter, base, "qlora", base_dtype), out)
    assert (facts.merged_onto, facts.dtype) == ("nf4", "float32")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = TrainedWeights(base, base_dtype, Quantization())
    for name, parameter in model.named_parameters():
        parameter.data = weights.load(name).float()
    assert_equal(loaded(out), peft_merged(model, adapter))


def test_qlora_onto_16_bit_by_choice(base: Path, tmp_path: Path, out: Path) -> None:
    adapter = tiny_adapter(base, tmp_path / "adapter", "qlora")
    facts = merge(recipe(merge={"onto": "16-bit"}), adapter_artifact(adapter, base, "qlora"), out)
    assert facts.merged_onto == "16-bit"
    assert_equal(loaded(out), peft_merged(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter))


def test_merged_model_answers_as_the_adapter_does(base: Path, tmp_path: Path, out: Path) -> None:
    adapter = tiny_adapter(base, tmp_path / "adapter")
    merge(recipe(), adapter_artifact(adapter, base), out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("What is a fever, and when is it dangerous?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(out)(ids).logits
        plain = AutoModelForCausalLM.from_pretrained(base)
        before = plain(ids).logits
        theirs = PeftModel.from_pretrained(plain, adapter)(ids).logits
    assert (ours - theirs).abs().max() < 1e-4
    assert (before - theirs).abs().max() > 1  # the adapter is strong enough to be seen


def test_patterns(base: Path, tmp_path: Path, out: Path) -> None:
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", use_rslora=True,
        rank_pattern={"q_proj": 8, r"layers\.1\.mlp\.down_proj": 2}, alpha_pattern={"v_proj": 32, "layers.0.self_attn.q_proj": 1},
    )  # fmt: skip
    adapter = trained_by_chance(base, config, tmp_path / "adapter")
    merge(recipe(), adapter_artifact(adapter, base), out)
    assert_equal(loaded(out), peft_merged(AutoModelForCausalLM.from_pretrained(base), adapter))


def trained_by_chance(base: Path, config: LoraConfig, folder: Path) -> Path:
    """An adapter that PEFT itself saved, with random values in everything that is trained."""
    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def test_modules_saved_whole_and_biases(bf16_base: Path, tmp_path: Path, out: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj"], modules_to_save=["lm_head", "norm"], bias="lora_only")
    adapter = trained_by_chance(bf16_base, config, tmp_path / "adapter")
    facts = merge(recipe(), adapter_artifact(adapter, bf16_base, base_dtype="bfloat16"), out)
    assert_equal(
        loaded(out), peft_merged(AutoModelForCausalLM.from_pretrained(bf16_base, dtype=torch.bfloat16), adapter)
    )
    # two layers: q and k with their biases, two norms; the last norm, the head
    assert facts.merged_tensors == 2 * (4 + 2) + 2


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=["lora on embedding", "lora on head", "head whole", "embedding whole, tied"],
)
def test_tied_embeddings(settings: dict[str, Any], base: Path, tmp_path: Path, out: Path) -> None:
    """What PEFT's own merge gets wrong: the merged model must say what the adapter says."""
    adapter = trained_by_chance(base, LoraConfig(r=4, task_type="CAUSAL_LM", **settings), tmp_path / "adapter")
    merge(recipe(), adapter_artifact(adapter, base), out)
    ids = torch.arange(100, 140).reshape(1, -1)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    assert (ours - theirs).abs().max() < 2e-4
    tied = json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    assert tied == bool(settings.get("ensure_weight_tying"))
    assert ("lm_head.weight" in loaded(out)) != tied


def test_settings_are_copied(base: Path, tmp_path: Path, out: Path) -> None:
    adapter = tiny_adapter(base, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    merge(recipe(), adapter_artifact(adapter, base), out)
    assert (out / "chat_template.jinja").read_text() == "{{ messages[0].content }}"  # as trained with, not the base's
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert str(base) not in "".join(p.read_text() for p in out.glob("*.json"))
    assert (
        AutoTokenizer.from_pretrained(out)("a 12")["input_ids"]
        == AutoTokenizer.from_pretrained(base)("a 12")["input_ids"]
    )


def test_merging_twice_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    artifact = adapter_artifact(tiny_adapter(base, tmp_path / "adapter", "qlora"), base, "qlora")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        merge(recipe(), artifact, tmp_path / name)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()


def test_a_sharded_base(base: Path, tmp_path: Path, out: Path) -> None:
    sharded = Path(shutil.copytree(base, tmp_path / "sharded", ignore=shutil.ignore_patterns("*.safetensors")))
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(sharded, max_shard_size="1MB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    adapter = tiny_adapter(base, tmp_path / "adapter")
    merge(recipe(), adapter_artifact(adapter, sharded), out)
    assert_equal(loaded(out), peft_merged(AutoModelForCausalLM.from_pretrained(base), adapter))


def test_full_fine_tuning_is_taken_as_it_is(base: Path, out: Path) -> None:
    facts = merge(recipe(), adapter_artifact(base, base, "full"), out)
    assert (facts.merged_onto, facts.merged_tensors, facts.dtype, facts.tensors) == ("as trained", 0, "float32", 20)
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert_equal(loaded(out), dict(AutoModelForCausalLM.from_pretrained(base).named_parameters()))


def test_output_dtype(base: Path, bf16_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = adapter_artifact(tiny_adapter(bf16_base, tmp_path / "a", "qlora"), bf16_base, "qlora", "bfloat16")
    plain = adapter_artifact(small.folder, bf16_base, "lora", "bfloat16")
    wide = adapter_artifact(small.folder, bf16_base, "lora", "float32")

    def dtype(artifact: Artifact[AdapterFacts]) -> str:
        return output_dtype(merged_weights(artifact, "as trained"), artifact.facts)

    assert [dtype(a) for a in (small, plain, wide)] == ["float32", "bfloat16", "float32"]
    monkeypatch.setattr("toolkit.export.values.LOSSLESS_BELOW", 1000)
    assert [dtype(a) for a in (small, plain, wide)] == ["bfloat16", "bfloat16", "bfloat16"]


# What cannot be merged --------------------------------------------------------------------------------------------


def fault_of(adapter: Path, base: Path, out: Path) -> ToolkitError:
    with pytest.raises(ToolkitError) as found:
        merge(recipe(), adapter_artifact(adapter, base), out)
    assert found.value.hint
    assert list(out.iterdir()) == []
    return found.value


def change_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not Ellipsis}))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return tiny_adapter(base, tmp_path / "adapter")


def test_adapter_of_a_wider_base(adapter: Path, tmp_path: Path, out: Path) -> None:
    other = tiny_llama(tmp_path / "wide", hidden=512)
    fault = fault_of(adapter, other, out)
    assert isinstance(fault, DataError)
    assert "model.layers.0.mlp.down_proj.lora_A.weight has shape [8, 512]" in fault.message
    assert "needs [8, 1024]" in fault.message


def test_adapter_of_a_deeper_base(base: Path, tmp_path: Path, out: Path) -> None:
    deep = tiny_adapter(tiny_llama(tmp_path / "deep", layers=3), tmp_path / "adapter")
    fault = fault_of(deep, base, out)
    assert "model.layers.2." in fault.message
    assert "does not have" in fault.message
    assert str(tmp_path / "deep") in fault.hint  # what the adapter's config says


def test_truncated_adapter(adapter: Path, base: Path, out: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(size // 2)
    message = fault_of(adapter, base, out).message
    assert f"{path} is truncated" in message
    assert f"{size} bytes" in message


def test_half_of_a_pair(adapter: Path, base: Path, out: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    save_file(tensors, path)
    assert "model.layers.0.mlp.up_proj has no B matrix" in fault_of(adapter, base, out).message


def test_rank_of_another_config(adapter: Path, base: Path, out: Path) -> None:
    change_config(adapter, r=16)
    assert "says rank 16" in fault_of(adapter, base, out).message


@pytest.mark.parametrize("key", ["peft_type", "r", "lora_alpha"])
def test_missing_key(key: str, adapter: Path, base: Path, out: Path) -> None:
    change_config(adapter, **{key: ...})
    fault = fault_of(adapter, base, out)
    assert key in fault.message
    assert fault.exit_code == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8}, {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"}, {"layer_replication": [[0, 2]]},
    ],
)  # fmt: skip
def test_kinds_without_a_merge(changes: dict[str, Any], adapter: Path, base: Path, out: Path) -> None:
    change_config(adapter, **changes)
    fault = fault_of(adapter, base, out)
    assert isinstance(fault, UsageError)
    assert next(iter(changes)) in fault.message


def test_a_kind_that_the_file_is_not_of(adapter: Path, base: Path, out: Path) -> None:
    change_config(adapter, peft_type="IA3", feedforward_modules=[])
    fault = fault_of(adapter, base, out)
    assert isinstance(fault, DataError)
    assert "lora_A.weight, which this base does not have" in fault.message


def test_missing_files(adapter: Path, base: Path, out: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "pickle" in fault_of(adapter, base, out).message
    (adapter / "adapter_config.json").unlink()
    assert "adapter_config.json is missing" in fault_of(adapter, base, out).message


def test_tensors_of_no_adapter(adapter: Path, base: Path, out: Path) -> None:
    save_file({"weights": torch.ones(2)}, adapter / "adapter_model.safetensors")
    assert "weights is no tensor of a PEFT adapter" in fault_of(adapter, base, out).message
    save_file({}, adapter / "adapter_model.safetensors")
    assert "holds no tensors" in fault_of(adapter, base, out).message


FULL_DISK = """
import sys
from pathlib import Path
from tests.small_models import adapter_artifact
from tests.export.test_merge import recipe
from toolkit.export.merge import merge
adapter, base, out = map(Path, sys.argv[1:])
merge(recipe(), adapter_artifact(adapter, base), out)
"""


def test_disk_full(adapter: Path, base: Path, out: Path) -> None:
    answer = ran_on_a_full_disk(FULL_DISK, adapter, base, out, size=5_000_000)
    assert f"toolkit.errors.ResourceError: no space to write {out / 'model.safetensors'}" in answer.stderr
