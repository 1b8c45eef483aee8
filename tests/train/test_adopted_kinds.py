"""Adapters of every kind that has a merge, as PEFT saves them: adopted, merged and forwarded, they say what PEFT's model said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig, Qwen3MoeConfig

from tests.small_models import SMALL, put_tokenizer, tiny_llama, tiny_qwen2
from toolkit.errors import DataError, UsageError
from toolkit.export.merge import merge
from toolkit.models.adapters import LoraAdapter
from toolkit.models.reference import Reference, TeacherForced, base_of, reference_of
from toolkit.models.safetensors_file import model_entries, model_files
from toolkit.models.tokenizer import own_tokenizer
from toolkit.models.weights import weights_of
from toolkit.parity.checks.moved import moved_check
from toolkit.recipe.adopted import recipe_for_adapter
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import AdapterFacts
from toolkit.train.adopt import adopt_adapter
from toolkit.train.model import load_tuned

IDS = [list(range(300, 324)), list(range(2000, 2024))]
CLOSE = 2e-4
"""Largest difference of a logit."""
NEW = ["<ship>", "<port>", "<quay>"]


def llama(folder: Path) -> Path:
    return tiny_llama(folder, hidden=64, tokenizer="small")


def untied(folder: Path) -> Path:
    return tiny_qwen2(folder, hidden=64, tie=False, tokenizer="small")


def experts(folder: Path, config: Any) -> Path:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    put_tokenizer(folder)
    model.save_pretrained(folder)
    return folder


SHAPE = {
    "vocab_size": 49_152, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "num_experts_per_tok": 2, "max_position_embeddings": 512, "eos_token_id": 2, "pad_token_id": 2,
    "bos_token_id": 1,
}  # fmt: skip


def qwen3_moe(folder: Path) -> Path:
    return experts(folder, Qwen3MoeConfig(**SHAPE, num_experts=4, moe_intermediate_size=32, intermediate_size=64))


def gpt_oss(folder: Path) -> Path:
    layers = ["sliding_attention", "full_attention"]
    return experts(folder, GptOssConfig(**SHAPE, num_local_experts=4, intermediate_size=32, layer_types=layers))


class Kind(NamedTuple):
    """An adapter as PEFT makes it, and what becomes of the head."""

    config: Any
    base: Any = llama
    new_tokens: int = 0
    tied: bool = True


TWO = ["v_proj", "down_proj"]
KINDS = {
    "LoRA on the layers of one": Kind(LoraConfig(r=4, target_modules=TWO, layers_to_transform=[1])),
    "IA3": Kind(IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "IA3 on biases": Kind(IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]), untied, tied=False),
    "LoHa": Kind(LoHaConfig(r=4, alpha=8, target_modules=TWO)),
    "LoKr": Kind(LoKrConfig(r=4, alpha=8, target_modules=TWO)),
    "VeRA": Kind(VeraConfig(r=16, target_modules=TWO)),
    "OFT": Kind(OFTConfig(oft_block_size=16, r=0, target_modules=TWO)),
    "BOFT": Kind(BOFTConfig(boft_block_size=4, target_modules=TWO)),
    "norms": Kind(LNTuningConfig(target_modules=["post_attention_layernorm"])),
    "PiSSA": Kind(
        LoraConfig(r=4, lora_alpha=12, init_lora_weights="pissa", target_modules=TWO, rank_pattern={"v_proj": 6})
    ),
    "OLoRA, rsLoRA": Kind(LoraConfig(r=4, init_lora_weights="olora", use_rslora=True, target_modules=TWO)),
    "new tokens, whole": Kind(
        LoraConfig(r=4, target_modules=TWO, modules_to_save=["embed_tokens", "lm_head"]), new_tokens=2, tied=False
    ),
    "new tokens, untied base": Kind(
        LoraConfig(r=4, target_modules=TWO, modules_to_save=["embed_tokens", "lm_head"]), untied, 3, tied=False
    ),
    "new tokens, whole and tied": Kind(
        LoraConfig(r=4, target_modules=TWO, modules_to_save=["embed_tokens"], ensure_weight_tying=True), new_tokens=1
    ),
    "new tokens, rows": Kind(
        LoraConfig(r=4, target_modules=TWO, trainable_token_indices={"embed_tokens": [7, SMALL, SMALL + 1]}),
        new_tokens=2,
    ),
    "new tokens, not trained": Kind(LoraConfig(r=4, target_modules=TWO), new_tokens=2),
    "fewer tokens": Kind(LoraConfig(r=4, target_modules=TWO), untied, -100, tied=False),
    "tied head": Kind(LoraConfig(r=4, target_modules=["lm_head", "v_proj"]), tied=False),
    "experts of Qwen3-MoE": Kind(
        LoraConfig(
            r=2,
            target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            rank_pattern={"experts.down_proj": 4},
        ),
        qwen3_moe,
        tied=False,
    ),
    "experts of gpt-oss": Kind(
        LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"]), gpt_oss, tied=False
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def base(build: Any) -> Path:
        if build.__name__ not in made:
            made[build.__name__] = build(tmp_path_factory.mktemp("bases") / build.__name__)
        return made[build.__name__]

    return base


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.float()


def made(kind: Kind, base: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Save an adapter with random values as PEFT does; gives (its logits, the base's)."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits(model)
    tokenizer = own_tokenizer(base)
    if kind.new_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": NEW[: max(0, kind.new_tokens)]})
        model.resize_token_embeddings(SMALL + kind.new_tokens, mean_resizing=False)
    tuned = get_peft_model(model, kind.config)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            parameter.data += (0.3 if "lora_" in name or "hada" in name or "vera" in name else 0.05) * torch.randn_like(
                parameter
            )
    if kind.new_tokens > 0:
        tokenizer.save_pretrained(folder)
    # An adapter's file must tell by itself that rows were added, as PEFT sees to when the base is where its config says.
    tuned.save_pretrained(folder)
    return logits(tuned), before


def adopted(source: Path, base: Path, out: Path) -> Artifact[AdapterFacts]:
    out.mkdir()
    facts = adopt_adapter(recipe_for_adapter(source, "tiny", str(base)), out)
    return Artifact(out, facts, "", {}, Cost())


def forwards(adapter: Artifact[AdapterFacts], whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(tuned, base) logits of the reference's forward, as the golden stage uses it."""
    reference = Reference(weights_of(adapter), adapter.folder, whole)
    forced = [TeacherForced([*row, 0], 1) for row in IDS]
    tuned = torch.stack(list(reference.logits(forced)))
    with reference.adapter_off():
        return tuned, torch.stack(list(reference.logits(forced)))


@pytest.mark.parametrize("name", KINDS)
def test_it_says_what_peft_says(name: str, bases: Any, tmp_path: Path) -> None:
    kind = KINDS[name]
    base = bases(kind.base)
    wanted, before = made(kind, base, tmp_path / "adapter")
    known = min(wanted.shape[-1], before.shape[-1])
    assert (wanted[..., :known] - before[..., :known]).abs().max() > 0.05  # strong enough to be seen
    adapter = adopted(tmp_path / "adapter", base, tmp_path / "train")
    rows = before.shape[-1] + kind.new_tokens
    assert adapter.facts.vocabulary == (rows if kind.new_tokens else None)

    (tmp_path / "merge").mkdir()
    facts = merge(recipe_for_adapter(tmp_path / "adapter", "tiny", str(base)), adapter, tmp_path / "merge")
    assert facts.merged_tensors > 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merge", dtype=torch.float32)
    config = json.loads((tmp_path / "merge" / "config.json").read_text())
    assert (config["vocab_size"], config.get("tie_word_embeddings", False)) == (rows, kind.tied)
    assert ("lm_head.weight" in model_files(tmp_path / "merge")) != kind.tied
    stored = model_entries(model_files(base))
    # The same names as in the base's files, each expert on its own.
    assert set(model_files(tmp_path / "merge")) - {"lm_head.weight"} == set(stored) - {"lm_head.weight"}
    assert (logits(merged) - wanted).abs().max() < CLOSE

    tuned, tokenizer = load_tuned(adapter)
    assert (logits(tuned) - wanted).abs().max() < CLOSE
    if kind.new_tokens > 0:
        assert len(tokenizer) == rows
    with tuned.disable_adapter():
        plain = logits(tuned)
    assert (plain[..., :known] - before[..., :known]).abs().max() < CLOSE  # the base as it was published
    for whole in (True, False):
        ours, off = forwards(adapter, whole)
        assert (ours - wanted).abs().max() < CLOSE
        assert (off[..., :known] - before[..., :known]).abs().max() < CLOSE
    check = moved_check(LoraAdapter(adapter.folder))
    lora = any("lora_A" in entry for entry in load_file(adapter.folder / "adapter_model.safetensors"))
    assert check.verdict == ("pass" if lora else "not compared")


# Names ------------------------------------------------------------------------------------------------------------

WAYS = {
    "without model.": ("base_model.model.model.", "base_model.model."),
    "in a model that also sees": ("base_model.model.model.", "base_model.model.model.language_model."),
    "as older such models have it": ("base_model.model.model.", "base_model.model.language_model.model."),
    "in some wrapper": ("base_model.model.", "base_model.model.wrapped.inner."),
}


@pytest.mark.parametrize("way", WAYS)
def test_layers_of_another_name(way: str, bases: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = bases(llama)
    patterns = {"rank_pattern": {"layers.1.self_attn.v_proj": 2}, "alpha_pattern": {"down_proj": 32}}
    kind = Kind(LoraConfig(r=4, target_modules=r".*layers\.\d\..*(v_proj|down_proj)", **patterns))
    wanted, _ = made(kind, base, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name.replace(*WAYS[way]): tensor for name, tensor in load_file(file).items()}, file)
    adapter = adopted(tmp_path / "adapter", base, tmp_path / "train")
    assert "every shape fits, so they are the same" in capsys.readouterr().err
    assert (logits(load_tuned(adapter)[0]) - wanted).abs().max() < CLOSE
    tuned, _ = forwards(adapter, True)
    assert (tuned - wanted).abs().max() < CLOSE


def test_a_layer_that_the_base_does_not_have(bases: Any, tmp_path: Path) -> None:
    base = bases(llama)
    made(Kind(LoraConfig(r=4, target_modules=TWO)), base, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(DataError, match=r"changes model\.layers\.7\.mlp\.down_proj, which the base .* does not have"):
        adopted(tmp_path / "adapter", base, tmp_path / "train")


# One on another -----------------------------------------------------------------------------------------------------

ABOVE = {
    "LoRA on LoRA": [LoraConfig(r=4, target_modules=TWO), LoraConfig(r=2, target_modules=["v_proj", "q_proj"])],
    "DoRA on a LoRA that parts the head, and IA3": [
        LoraConfig(r=4, target_modules=["v_proj", "lm_head"]),
        LoraConfig(r=2, target_modules=["v_proj"], use_dora=True),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    ],
}


@pytest.mark.parametrize("name", ABOVE)
def test_one_trained_on_another(name: str, bases: Any, tmp_path: Path) -> None:
    base = below = bases(llama)
    sources: list[Path] = []
    wanted = plain = torch.zeros(())
    for number, config in enumerate(ABOVE[name]):
        sources.append(tmp_path / f"adapter-{number}")
        wanted, before = made(Kind(config), below, sources[-1])
        plain = before if number == 0 else plain
        # What the next one is trained on, as people merge it: with this project, into a folder.
        one = adopted(sources[-1], below, tmp_path / f"train-{number}")
        below = tmp_path / f"merge-{number}"
        below.mkdir()
        merge(recipe_for_adapter(sources[-1], "tiny", str(base)), one, below)
    recipe = recipe_for_adapter(sources[0], "tiny", str(base), then=tuple(sources[1:]))
    for folder in ("train", "merge"):
        (tmp_path / folder).mkdir()
    adapter = Artifact(tmp_path / "train", adopt_adapter(recipe, tmp_path / "train"), "", {}, Cost())
    assert adapter.facts.stacked == len(sources) - 1
    merge(recipe, adapter, tmp_path / "merge")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merge", dtype=torch.float32)
    assert (logits(merged) - wanted).abs().max() < CLOSE
    assert (logits(load_tuned(adapter)[0]) - wanted).abs().max() < CLOSE
    forced = [TeacherForced([*row, 0], 1) for row in IDS]
    for whole in (True, False):
        reference = reference_of(adapter, whole)
        assert (torch.stack(list(reference.logits(forced))) - wanted).abs().max() < CLOSE
        with base_of(reference, adapter) as bare:  # the base of all, not what the last was trained on
            assert (torch.stack(list(bare.logits(forced))) - plain).abs().max() < CLOSE
    check = moved_check(LoraAdapter(adapter.folder))
    assert check.verdict == ("not compared" if len(sources) == 3 else "pass")


def test_a_stack_of_4_bit_adapters_is_refused(bases: Any, tmp_path: Path) -> None:
    base = bases(llama)
    for name in ("first", "second"):
        made(Kind(LoraConfig(r=4, target_modules=TWO)), base, tmp_path / name)
    path = tmp_path / "second" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "some/Model-bnb-4bit"}))
    (tmp_path / "train").mkdir()
    recipe = recipe_for_adapter(tmp_path / "first", "tiny", str(base), then=(tmp_path / "second",))
    with pytest.raises(UsageError, match="second was trained on a 4-bit base") as found:
        adopt_adapter(recipe, tmp_path / "train")
    assert "--base runs/first/merge" in found.value.hint
    with pytest.raises(UsageError, match="then goes with adapters of a 16-bit base"):
        recipe_for_adapter(tmp_path / "first", "tiny", str(base), then=(tmp_path / "second",), load_in_4bit=True)


# What cannot be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "why"),
    [("corda", "data that it was started with"), ("pissa_niter_8", "by chance"), ("loftq", "how they were quantized")],
)
def test_starts_that_cannot_be_computed_again(start: str, why: str, bases: Any, tmp_path: Path) -> None:
    base = bases(llama)
    made(Kind(LoraConfig(r=4, target_modules=TWO)), base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": start}))
    with pytest.raises(UsageError, match=why) as found:
        adopted(tmp_path / "adapter", base, tmp_path / "train")
    assert "path_initial_model_for_weight_conversion" in found.value.hint


def test_pissa_on_a_quantized_base_is_refused(bases: Any, tmp_path: Path) -> None:
    base = bases(llama)
    made(KINDS["PiSSA"], base, tmp_path / "adapter")
    (tmp_path / "train").mkdir()
    recipe = recipe_for_adapter(tmp_path / "adapter", "tiny", str(base), load_in_4bit=True)
    with pytest.raises(UsageError, match="before they were quantized"):
        adopt_adapter(recipe, tmp_path / "train")
