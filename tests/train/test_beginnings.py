"""What rows begin with alike, computed once, gives what whole rows give: logits, gradients, and a training's losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.families.table import FAMILIES
from tests.families.zoo import Family
from tests.parity_chain import AFTER, finished, rows
from tests.small_models import tiny_llama
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import write_jsonl
from toolkit.run.facts import DatasetFacts
from toolkit.train import beginnings, training
from toolkit.train.beginnings import SAVED, alike, compute_once
from toolkit.train.processor import speed_up

RECURRENT = {"qwen35", "lfm2", "granite4-h"}
"""Families with layers that keep a state instead of keys and values."""
ALIKE, LENGTH = 40, 64


class Counted:
    """A decoder's forward that remembers of which shape the tokens were."""

    def __init__(self, decoder: Any) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self._usual, decoder.forward = decoder.forward, self

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.shapes.append(tuple(named["input_ids"].shape))
        return self._usual(*arguments, **named)


def small(**config: Any) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, **config)
    )  # fmt: skip
    return tuned(model)


def tuned(model: Any, **lora: Any) -> Any:
    """With an adapter that changes what it says."""
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **lora)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.02
    return model


def batch(vocabulary: int = 500, count: int = 3) -> dict[str, torch.Tensor]:
    """Rows that begin alike, one with padding behind it."""
    ids = torch.randint(5, vocabulary, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, :ALIKE] = ids[0, :ALIKE]
    ids[0, ALIKE], ids[1:, ALIKE] = 5, 6
    mask = torch.ones_like(ids)
    mask[1, 55:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def learnt(model: Any, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(logits where there is no padding, gradients)."""
    model.zero_grad()
    out = model(**given)
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.logits.detach()[given["attention_mask"] == 1], found


def assert_same(
    wanted: tuple[torch.Tensor, dict[str, torch.Tensor]], found: tuple[torch.Tensor, dict[str, torch.Tensor]]
) -> None:
    assert (wanted[0] - found[0]).abs().max() < 1e-4 * wanted[0].abs().max()
    assert wanted[1].keys() == found[1].keys()
    largest = max(float(gradient.norm()) for gradient in wanted[1].values())
    for name, gradient in wanted[1].items():
        # Of a weight that hardly learns, rounding is all that there is.
        assert (gradient - found[1][name]).norm() < 1e-3 * gradient.norm() + 1e-6 * largest, name


def test_how_far_rows_are_alike() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 4]])
    assert alike(ids) == 2
    assert alike(torch.tensor([[1, 2, 3], [1, 2, 3]])) == 2, "something of every row is left over"
    assert alike(ids, torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])) == 0, "padding before a row"
    assert alike(ids, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])) == 2
    assert alike(ids, None, torch.tensor([[0, 1, 2, 3], [0, 2, 3, 4]])) == 1
    assert alike(torch.tensor([[3, 2], [1, 2]])) == 0


@pytest.mark.parametrize("given", ["mask", "no mask", "positions"])
def test_values_and_gradients_are_those_of_whole_rows(given: str) -> None:
    model, asked = small(), batch()
    if given == "no mask":
        asked["attention_mask"][:] = 1
    if given == "positions":
        asked["position_ids"] = torch.arange(3, 3 + LENGTH).expand(3, -1)
    wanted = learnt(model, asked)
    counted = Counted(model.get_base_model().get_decoder())
    assert compute_once(model, bfloat16=False)
    counted.shapes.clear()
    assert_same(wanted, learnt(model, asked))
    assert counted.shapes == [(1, ALIKE), (3, LENGTH - ALIKE)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_gives_the_same_or_is_left_alone(family: Family) -> None:
    torch.manual_seed(0)
    config = family.config(4096)
    config.get_text_config().pad_token_id = 0  # the published one lies behind so few tokens
    model = tuned(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    asked = batch(4000)
    wanted = learnt(model, asked)
    assert compute_once(model, bfloat16=False) == (family.name not in RECURRENT), family.name
    assert_same(wanted, learnt(model, asked))


def test_behind_a_window_rows_are_computed_whole() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    model = tuned(MistralForCausalLM(MistralConfig(**shape, sliding_window=50)))
    wanted = learnt(model, batch())
    counted = Counted(model.get_base_model().get_decoder())
    assert compute_once(model, bfloat16=False)
    counted.shapes.clear()
    assert_same(wanted, learnt(model, batch()))
    assert (3, LENGTH) in counted.shapes


def test_what_it_cannot_do_is_left_to_the_decoder() -> None:
    model = small()
    counted = Counted(model.get_base_model().get_decoder())
    assert compute_once(model, bfloat16=False)
    counted.shapes.clear()
    short = batch(count=2)
    short["input_ids"][1, SAVED - 1] = 7
    short["input_ids"][0, SAVED - 1] = 8
    short["input_ids"][:, : SAVED - 1] = short["input_ids"][0, : SAVED - 1]
    with torch.no_grad():
        model(**short)  # too little would be saved
        model(**batch(), output_hidden_states=True)
        model(**batch(), use_cache=True)
        model.get_base_model().get_input_embeddings().neftune_noise_alpha = 5.0
        model(**batch())
        del model.get_base_model().get_input_embeddings().neftune_noise_alpha
        before = batch()
        before["attention_mask"] = before["attention_mask"].flip(1)
        model(**before)
        model.get_base_model().gradient_checkpointing_enable()
        model(**batch())
        model.get_base_model().gradient_checkpointing_disable()
        assert counted.shapes == [(2, LENGTH), *[(3, LENGTH)] * 5]
        counted.shapes.clear()
        model.eval()
        model(**batch())
        assert counted.shapes == [(1, ALIKE), (3, LENGTH - ALIKE)]


def test_answers_are_generated_as_before() -> None:
    model = small().eval()
    asked = {name: value for name, value in batch().items() if name != "labels"}
    asked["attention_mask"][:] = 1
    wanted = model.generate(**asked, max_new_tokens=8, do_sample=False, use_cache=True)
    assert compute_once(model, bfloat16=False)
    assert torch.equal(model.generate(**asked, max_new_tokens=8, do_sample=False, use_cache=True), wanted)


def test_chance_is_each_row_s_own() -> None:
    torch.manual_seed(0)
    plain = small().get_base_model()
    assert not compute_once(tuned(plain, lora_dropout=0.5), bfloat16=False)
    assert not compute_once(small(attention_dropout=0.1), bfloat16=False)


class Forgetful:
    """A decoder that computes as if nothing had been cached."""

    def __init__(self, decoder: Any) -> None:
        self._usual, decoder.forward = decoder.forward, self

    def __call__(self, **named: Any) -> Any:
        if named.get("past_key_values") is not None:
            named |= {"past_key_values": None, "attention_mask": None}
        return self._usual(**named)


def test_a_model_that_does_not_go_on_from_its_cache_is_found_out() -> None:
    model = small()
    Forgetful(model.get_base_model().get_decoder())
    assert not compute_once(model, bfloat16=False)
    assert not compute_once(model, bfloat16=True)


def test_a_training_loses_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama(tmp_path / "base")
    data = tmp_path / "data"
    data.mkdir()
    split = {"train": rows(AFTER)[:24], "validation": rows(AFTER)[24:30], "test": []}
    for name, some in split.items():
        write_jsonl(data / f"{name}.jsonl", some)
    facts = DatasetFacts(rows={}, read=30, kept=30, dropped={}, repaired={}, encodings={}, language="en")
    recipe = Recipe.model_validate(
        {"name": "x", "base": str(base), "data": {"path": "x"}, "ollama": {"model": "x"},
         "train": {"method": "lora", "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "bf16": False}}
    )  # fmt: skip
    told = []
    for least in (10**9, SAVED):
        monkeypatch.setattr(beginnings, "SAVED", least)
        out = tmp_path / str(least)
        out.mkdir()
        left = training.train(recipe, finished(data, facts), out)
        steps = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        told.append([*steps, left.validation_loss_after])
    assert len(told[0]) == 5
    assert told[0] == pytest.approx(told[1], rel=1e-5)


def test_it_goes_together_with_the_fast_layers() -> None:
    model = small()
    wanted = learnt(model, batch())
    speed_up(model, bfloat16=False)
    assert compute_once(model, bfloat16=False)
    assert_same(wanted, learnt(model, batch()))
