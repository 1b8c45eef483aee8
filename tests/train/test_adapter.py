"""Every kind of adapter that a recipe names: trained here, and merged by our own merge, it says what the trained model said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftType, get_peft_model_state_dict
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.small_models import SMALL, tiny_llama, tiny_qwen2
from tests.train.test_methods import dataset, recipe_for, rows_for
from tests.train.test_training import make_recipe
from toolkit.errors import UsageError
from toolkit.export.merge import merge
from toolkit.models.adapters import LoraAdapter
from toolkit.models.bases import resolve_base
from toolkit.models.reference import Reference, TeacherForced
from toolkit.models.safetensors_file import model_files
from toolkit.models.weights import weights_of
from toolkit.parity.checks.moved import moved_check
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sizes import shape_of_base
from toolkit.recipe.trained import trained_parameters
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import AdapterFacts
from toolkit.train import training
from toolkit.train.adapter import head_is_wrapped, put_adapter
from toolkit.train.methods import examples_of, trainer_of
from toolkit.train.methods.common import Order
from toolkit.train.model import load_for_training, load_tuned
from toolkit.train.training import train

IDS = [list(range(300, 324)), list(range(2000, 2024))]
CLOSE = 1e-4
"""Largest difference of a logit."""
NEW = ["<ship>", "港口", "<|quay|>"]


def tied(folder: Path) -> Path:
    return tiny_llama(folder, hidden=64, tokenizer="small")


def untied(folder: Path) -> Path:
    return tiny_qwen2(folder, hidden=64, tie=False, tokenizer="small")


class Kind(NamedTuple):
    lora: dict[str, Any]
    base: Any = tied
    tokens: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("lora",)
    stays_tied: bool | None = None
    """None: the base has two matrices."""


BOTH = ("lora", "qlora")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "LoRA": Kind({}, methods=BOTH, stays_tied=True),
    "rsLoRA": Kind({"use_rslora": True}, stays_tied=True),
    "gaussian": Kind({"init_lora_weights": "gaussian"}, stays_tied=True),
    "DoRA": Kind({"use_dora": True}, methods=BOTH, stays_tied=True),
    "PiSSA": Kind({"init_lora_weights": "pissa", "r": 8, "lora_alpha": 16}, stays_tied=True),
    "OLoRA, rsLoRA": Kind({"init_lora_weights": "olora", "use_rslora": True}, stays_tied=True),
    "IA3": Kind({"peft_type": "IA3"}, methods=BOTH, stays_tied=True),
    "IA3 of the paper": Kind({"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"]}, untied),
    "LoHa": Kind({"peft_type": "LOHA", "r": 4, "alpha": 8}, stays_tied=True),
    "LoKr": Kind({"peft_type": "LOKR", "r": 4, "alpha": 8}, stays_tied=True),
    "LoKr of low rank": Kind({"peft_type": "LOKR", "r": 2, "decompose_both": True, "decompose_factor": 8}, untied),
    "head": Kind({"target_modules": [*ALL, "lm_head"]}, untied, methods=BOTH),
    "tied head": Kind({"target_modules": [*ALL, "lm_head"]}, stays_tied=False),
    "tied embedding": Kind({"target_modules": [*ALL, "embed_tokens"]}, stays_tied=False),
    "whole ends": Kind({"modules_to_save": ["embed_tokens", "lm_head"]}, untied, methods=BOTH),
    "whole and tied": Kind({"modules_to_save": ["embed_tokens"]}, methods=BOTH, stays_tied=True),
    "whole head and tied": Kind({"modules_to_save": ["lm_head", "norm"]}, stays_tied=True),
    "new tokens": Kind({}, tied, tuple(NEW), BOTH, stays_tied=True),
    "new tokens, two matrices": Kind({}, untied, tuple(NEW), BOTH),
    "new tokens, whole": Kind({"modules_to_save": ["embed_tokens"]}, tied, tuple(NEW), stays_tied=True),
    "new tokens, embedding whole, rows of the head": Kind({"modules_to_save": ["embed_tokens"]}, untied, tuple(NEW)),
    "new tokens, PiSSA": Kind({"init_lora_weights": "pissa"}, tied, tuple(NEW), stays_tied=True),
}
RUNS = [(name, method) for name, kind in KINDS.items() for method in kind.methods]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def base(build: Any) -> Path:
        if build.__name__ not in made:
            made[build.__name__] = build(tmp_path_factory.mktemp("bases") / build.__name__)
        return made[build.__name__]

    return base


def recipe_of(base: Path, kind: Kind, objective: str = "sft", **train: Any) -> Recipe:
    tree = recipe_for(base, objective, **train).model_dump(mode="json")
    return Recipe.model_validate({**tree, "lora": kind.lora, "tokens": {"add": list(kind.tokens)}})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor(IDS)).logits.float()


def trained(recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """(artifact, the trained model itself)."""
    seen: list[Any] = []
    load = training.load_for_training

    def watched(*given: Any) -> Any:
        seen.append(load(*given))
        return seen[-1]

    monkeypatch.setattr(training, "load_for_training", watched)
    out = folder / "train"
    out.mkdir(parents=True)
    rows = rows_for(recipe.train.objective)
    if recipe.tokens.add and "completion" in rows[0]:
        for row in rows:
            row["completion"][0]["content"] += "".join(recipe.tokens.add)
    facts = train(recipe, dataset(folder / "data", rows), out, **more)
    monkeypatch.setattr(training, "load_for_training", load)
    return Artifact(out, facts, "digest", {}, Cost()), seen[-1].model


def merged(recipe: Recipe, adapter: Artifact[AdapterFacts], folder: Path) -> Any:
    out = folder / "merge"
    out.mkdir()
    merge(recipe, adapter, out)
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), out


@pytest.mark.parametrize(("name", "method"), RUNS)
def test_what_is_merged_is_what_was_trained(
    name: str, method: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    base = bases(kind.base)
    recipe = recipe_of(base, kind, method=method, max_steps=4, learning_rate=2e-2)
    adapter, model = trained(recipe, tmp_path, monkeypatch)
    wanted = logits(model)
    tuned, tokenizer = load_tuned(adapter)
    with tuned.disable_adapter():
        before = logits(tuned)
    known = SMALL
    assert (wanted[..., :known] - before[..., :known]).abs().max() > 0.02  # strong enough to be seen
    assert (logits(tuned) - wanted).abs().max() < CLOSE
    if method == "lora":  # the base as it was published, whatever began with a part of it
        published = logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
        assert (before[..., :known] - published).abs().max() < CLOSE
    for whole in (True, False):
        reference = Reference(weights_of(adapter), adapter.folder, whole)
        forced = [TeacherForced([*row, 0], 1) for row in IDS]
        assert (torch.stack(list(reference.logits(forced))) - wanted).abs().max() < CLOSE
        with reference.adapter_off():
            assert (torch.stack(list(reference.logits(forced))) - before).abs().max() < CLOSE

    exported, folder = merged(recipe, adapter, tmp_path)
    assert (logits(exported) - wanted).abs().max() < CLOSE
    rows = known + len(kind.tokens)
    assert adapter.facts.vocabulary == (rows if kind.tokens else None)
    config = json.loads((folder / "config.json").read_text())
    assert (config["vocab_size"], config.get("tie_word_embeddings", False)) == (rows, kind.stays_tied is True)
    assert ("lm_head.weight" in model_files(folder)) == (kind.stays_tied is not True)
    for token in kind.tokens:
        assert tokenizer.encode(f"a {token} b", add_special_tokens=False).count(
            tokenizer.convert_tokens_to_ids(token)
        ) == 1  # fmt: skip
        assert tokenizer.decode(tokenizer.encode(token, add_special_tokens=False), skip_special_tokens=True) == token
    # What the certificate says of where training came by: LoRA alone shows it.
    shows = "lora_B" in "".join(load_file(adapter.folder / "adapter_model.safetensors"))
    assert moved_check(LoraAdapter(adapter.folder)).verdict == ("pass" if shows else "not compared")
    counted = trained_parameters(recipe, shape_of_base(str(base))[0])
    assert counted == pytest.approx(adapter.facts.trained_parameters, rel=0.02)


@pytest.mark.parametrize("name", ["LoRA", "PiSSA", "IA3", "LoHa", "LoKr", "DoRA", "whole and tied", "new tokens"])
def test_a_base_of_16_bits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base", hidden=64, tokenizer="small", dtype=torch.bfloat16)
    recipe = recipe_of(base, KINDS[name], method="lora", bf16=True)
    adapter, model = trained(recipe, tmp_path, monkeypatch)
    assert adapter.facts.base_dtype == "bfloat16"
    # The rounding of 16 bits, of all layers: 0.07 to 0.10 of logits up to 4.4.
    assert (logits(model) - logits(load_tuned(adapter)[0])).abs().max() < 0.05 * logits(model).abs().max()


@pytest.mark.parametrize("name", ["tied head", "new tokens", "whole ends", "whole and tied"])
def test_the_loss_sees_a_head_that_the_adapter_changes(name: str, bases: Any, tmp_path: Path) -> None:
    """FACTS 8: a loss that reads the head's weight by itself misses what an adapter makes of it."""
    kind = KINDS[name]
    recipe = recipe_of(bases(kind.base), kind, method="lora")
    loaded = load_for_training(recipe, resolve_base(recipe.base))
    order = Order(recipe, loaded, tmp_path / "checkpoints")
    given = examples_of("sft", loaded.tokenizer, rows_for("sft"), order).given
    trainer = trainer_of("sft", order, given, [])
    assert trainer.args.loss_type == "nll" and head_is_wrapped(loaded.model)
    names = dict(loaded.model.named_parameters())
    with torch.no_grad():
        for called, parameter in names.items():
            if parameter.requires_grad and "lm_head" in called and "lora_B" in called:
                parameter.normal_(std=0.1)
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0]]))
    loss = trainer.compute_loss(loaded.model, dict(batch))
    found = loaded.model(input_ids=batch["input_ids"], use_cache=False).logits[0, :-1]
    assert loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(found, batch["labels"][0, 1:]).item(), abs=1e-5
    )
    loss.backward()
    trainable = [p for n, p in names.items() if p.requires_grad and ("lm_head" in n or "embed" in n)]
    assert trainable and all(parameter.grad is not None for parameter in trainable)


def test_plain_adapters_never_hold_all_logits(bases: Any, tmp_path: Path) -> None:
    recipe = recipe_of(bases(tied), KINDS["LoRA"], method="lora")
    order = Order(recipe, load_for_training(recipe, resolve_base(recipe.base)), tmp_path / "checkpoints")
    given = examples_of("sft", order.loaded.tokenizer, rows_for("sft"), order).given
    assert trainer_of("sft", order, given, []).args.loss_type == "chunked_nll"


# Steps ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["IA3", "LoHa", "LoKr", "DoRA", "whole and tied", "new tokens", "new tokens, whole"])
def test_an_earlier_steps_adapter_is_trained_on(
    name: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    base = bases(kind.base)
    first, model = trained(recipe_of(base, kind, "sft"), tmp_path / "first", monkeypatch)
    wanted = logits(model)
    recipe = recipe_of(base, kind, "dpo")
    loaded = load_for_training(recipe, resolve_base(str(base)), first.folder)
    assert (logits(loaded.model) - wanted).abs().max() < CLOSE
    order = Order(recipe, loaded, tmp_path / "checkpoints", goes_on=True)
    given = examples_of("dpo", loaded.tokenizer, rows_for("dpo"), order).given
    trainer = trainer_of("dpo", order, given, [])
    # The reference is where this step began: before the first one the loss is log 2.
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(2)]))
    loaded.model.eval()
    assert trainer.compute_loss(loaded.model, batch).item() == pytest.approx(math.log(2), abs=1e-4)
    # What is left is one adapter, and the base is as it was.
    second, model = trained(recipe, tmp_path / "second", monkeypatch, start=first)
    exported, _ = merged(recipe, second, tmp_path / "second")
    assert (logits(exported) - logits(model)).abs().max() < CLOSE


@pytest.mark.parametrize("name", ["PiSSA", "OLoRA, rsLoRA"])
def test_a_part_of_the_base_is_taken_once(
    name: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FACTS 8: with such an adapter off, the model is not the base; and TRL puts on a second one by the same configuration."""
    kind = KINDS[name]
    base = bases(kind.base)
    published = logits(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    recipe = recipe_of(base, kind, "dpo")
    loaded = load_for_training(recipe, resolve_base(str(base)))
    assert (logits(loaded.model) - published).abs().max() < CLOSE
    with loaded.model.disable_adapter():
        assert (logits(loaded.model) - published).abs().max() > 0.1
    order = Order(recipe, loaded, tmp_path / "checkpoints")
    given = examples_of("dpo", loaded.tokenizer, rows_for("dpo"), order).given
    trainer = trainer_of("dpo", order, given, [])
    assert set(loaded.model.peft_config) == {"default", "ref"}
    assert (logits(loaded.model) - published).abs().max() < CLOSE
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(2)]))
    loaded.model.eval()
    assert trainer.compute_loss(loaded.model, batch).item() == pytest.approx(math.log(2), abs=1e-4)
    adapter, model = trained(recipe, tmp_path / "run", monkeypatch)
    assert adapter.facts.vocabulary is None
    said = json.loads((adapter.folder / "adapter_config.json").read_text())
    assert said["r"] == 2 * recipe.lora.r and said["init_lora_weights"] is True
    exported, _ = merged(recipe, adapter, tmp_path)
    assert (logits(exported) - logits(model)).abs().max() < CLOSE


def test_full_training_with_new_tokens(bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bases(tied)
    recipe = recipe_of(base, Kind({}, tokens=tuple(NEW)), method="full", learning_rate=1e-3)
    first, model = trained(recipe, tmp_path / "first", monkeypatch)
    assert first.facts.vocabulary == SMALL + 3 and logits(model).shape[-1] == SMALL + 3
    second, model = trained(recipe, tmp_path / "second", monkeypatch, start=first)
    assert second.facts.vocabulary == SMALL + 3
    exported, folder = merged(recipe, second, tmp_path)
    assert (logits(exported) - logits(model)).abs().max() < CLOSE
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == SMALL + 3


def test_a_token_that_the_base_has_keeps_its_row(
    bases: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(bases(tied), Kind({}, tokens=("<|im_start|>", "<ship>")))
    loaded = load_for_training(recipe, resolve_base(recipe.base))
    assert "the base knows <|im_start|> already" in " ".join(capsys.readouterr().err.split())
    assert loaded.model.get_input_embeddings().weight.shape[0] == SMALL + 1
    state = get_peft_model_state_dict(loaded.model, save_embedding_layers=False)
    assert state["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"].shape[0] == 2


# What cannot be -------------------------------------------------------------------------------------------------------


def refused(base: str = "base", **tree: Any) -> str:
    whole = {**make_recipe(Path(base)).model_dump(mode="json"), **tree}
    with pytest.raises(ValidationError) as found:
        Recipe.model_validate(whole)
    return str(found.value)


def test_kinds_that_cannot_be_exported_are_refused_with_the_reason() -> None:
    for kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "prefix-tuning", "CPT", "ADAPTION_PROMPT", "CARTRIDGE"):
        told = refused(lora={"peft_type": kind})
        assert "changes no weight, so no merge and no GGUF can hold it. Take LORA" in told
    assert "changes no weight" in refused(train={"method": "p-tuning"})
    assert "has no merge. Take LORA" in refused(lora={"peft_type": "XLORA"})
    trained_here = {"LORA", "IA3", "LOHA", "LOKR"}
    for known in PeftType:  # whatever PEFT has is trained here, or refused with a way on
        if known.value not in trained_here:
            assert "Take LORA" in refused(lora={"peft_type": known.value}) or "tune2ollama export FOLDER" in refused(
                lora={"peft_type": known.value}
            )


def test_what_does_not_go_together_is_refused() -> None:
    lora = {"method": "lora"}
    assert "use_dora: IA3 has no such key" in refused(lora={"peft_type": "IA3", "use_dora": True})
    assert "alpha: LORA has no such key" in refused(lora={"alpha": 8})
    assert "before it is rounded to NF4" in refused(lora={"init_lora_weights": "pissa"})
    assert "PEFT puts no LOHA on a base in NF4" in refused(lora={"peft_type": "LOHA"})
    assert "does not go with use_dora" in refused(train=lora, lora={"init_lora_weights": "olora", "use_dora": True})
    assert "no start that is known here" in refused(lora={"init_lora_weights": "loftq"})
    step = {"data": {"path": "x"}, "train": lora}
    told = refused(train=lora, lora={"init_lora_weights": "pissa"}, earlier={"warm": step})
    assert "a second step would take that part once more" in told
    assert "PEFT trains new rows beside no LOKR" in refused(lora={"peft_type": "LOKR"}, tokens={"add": ["<a>"]})
    assert "'<a>' is named twice" in refused(tokens={"add": ["<a>", "<a>"]})
    assert "without space around it" in refused(tokens={"add": ["<a> "]})
    assert "in both" in refused(lora={"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]})
    clash = refused(lora={"target_modules": ["q_proj", "lm_head"]}, tokens={"add": ["<a>"]})
    assert "tokens.add trains rows of lm_head" in clash
    assert "not full" in refused(train={"method": "full"}, lora={"peft_type": "IA3"})


def test_modules_that_the_base_does_not_have(bases: Any) -> None:
    recipe = recipe_of(bases(tied), Kind({"modules_to_save": ["score"]}))
    with pytest.raises(UsageError, match="modules_to_save names score, which this base does not have"):
        load_for_training(recipe, resolve_base(recipe.base))
    held = recipe_of(
        bases(tied), Kind({"modules_to_save": ["down_proj"], "target_modules": ["q_proj"]}), method="qlora"
    )
    with pytest.raises(UsageError, match="down_proj, which is held in 4 bits"):
        load_for_training(held, resolve_base(held.base))
    model = AutoModelForCausalLM.from_pretrained(bases(tied))
    with pytest.raises(UsageError, match="target_modules names embed_tokens"):
        from toolkit.train.adapter import refuse_missing_targets

        refuse_missing_targets(
            model, recipe_of(bases(tied), Kind({"peft_type": "LOHA", "target_modules": ["embed_tokens"]})).lora
        )
    put_adapter(
        model, recipe_of(bases(tied), Kind({"peft_type": "LOHA", "target_modules": "all-linear"})).lora, "CAUSAL_LM"
    )
