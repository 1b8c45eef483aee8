"""Rows that are packed give what whole rows give: logits, gradients, and a training's losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from tests.families.table import FAMILIES
from tests.families.zoo import Family
from tests.models.test_processor import learnt
from tests.parity_chain import AFTER, finished, rows
from tests.seeing_models import seeing_model
from tests.small_models import tiny_llama
from toolkit.models import packing
from toolkit.models.packing import SAVED, pack, pack_rows
from toolkit.models.processor import attend_without_mask, speed_up
from toolkit.models.weights import attention_of
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import write_jsonl
from toolkit.run.facts import DatasetFacts
from toolkit.train import training

LEFT_ALONE = {"qwen35", "lfm2", "granite4-h", "gemma2", "gpt-oss"}
"""Families with layers that keep a state instead of keys and values, and with an attention of their own."""
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
    model.config.use_cache = False
    return tuned(model)


def tuned(model: Any, **lora: Any) -> Any:
    """With an adapter that changes what it says."""
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **lora)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.02
    return model


def of_family(family: Family) -> Any:
    """A model of a family's shape that knows 4096 tokens, with an adapter."""
    torch.manual_seed(0)
    config = family.config(4096)
    config.get_text_config().pad_token_id = 0  # the published one lies behind so few tokens
    causal = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention_of(config))
    return tuned(causal)


def batch(vocabulary: int = 500, count: int = 3) -> dict[str, torch.Tensor]:
    """Rows that begin alike, one with padding behind it."""
    ids = torch.randint(5, vocabulary, (count, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, :ALIKE] = ids[0, :ALIKE]
    ids[0, ALIKE], ids[1:, ALIKE] = 5, 6
    mask = torch.ones_like(ids)
    mask[1, 55:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask == 1, ids, -100)}


def assert_same(
    wanted: tuple[torch.Tensor, dict[str, torch.Tensor]], found: tuple[torch.Tensor, dict[str, torch.Tensor]]
) -> None:
    assert (wanted[0] - found[0]).abs().max() < 1e-4 * wanted[0].abs().max()
    assert wanted[1].keys() == found[1].keys()
    largest = max(float(gradient.norm()) for gradient in wanted[1].values())
    for name, gradient in wanted[1].items():
        # Of a weight that hardly learns, rounding is all that there is.
        assert (gradient - found[1][name]).norm() < 1e-3 * gradient.norm() + 1e-6 * largest, name


def test_what_rows_begin_with_alike_is_taken_once_and_padding_never() -> None:
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 4]])
    packed = pack(ids, None, None)
    assert packed is not None
    assert ids.flatten()[packed.taken].tolist() == [1, 2, 3, 4, 5, 4]
    assert packed.places.tolist() == [0, 1, 2, 3, 0, 1, 4, 5]
    packed = pack(ids, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), None)
    assert packed is not None
    assert packed.taken.tolist() == [0, 1, 2, 6, 7]
    assert packed.places.tolist()[:3] == [0, 1, 2]
    assert packed.places.tolist()[4:] == [0, 1, 3, 4]
    packed = pack(ids, None, torch.tensor([[0, 1, 2, 3], [0, 2, 3, 4]]))
    assert packed is not None
    assert len(packed.taken) == 7, "the same token at another position is another"
    packed = pack(torch.tensor([[7, 8], [7, 8], [7, 8]]), None, None)
    assert packed is not None
    assert packed.taken.tolist() == [0, 1]
    packed = pack(torch.tensor([[1, 2, 3], [4, 5, 6], [1, 2, 7], [4, 5, 6], [4, 8, 9]]), None, None)
    assert packed is not None, "each row is compared with all before it"
    assert packed.taken.tolist() == [0, 1, 2, 3, 4, 5, 8, 13, 14]
    assert packed.places.view(5, 3).tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 6], [3, 4, 5], [3, 7, 8]]
    assert pack(ids, torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]), None) is None, "padding before a row"


def test_pairs_share_their_prompts() -> None:
    model, asked = small(), batch(count=4)
    asked["input_ids"][2:, 3:ALIKE] = torch.randint(5, 500, (ALIKE - 3,), generator=torch.Generator().manual_seed(2))
    asked["labels"] = torch.where(asked["attention_mask"] == 1, asked["input_ids"], -100)
    wanted = learnt(model, asked)
    counted = Counted(model.get_base_model().get_decoder())
    assert pack_rows(model, bfloat16=False)
    counted.shapes.clear()
    assert_same(wanted, learnt(model, asked))
    # The last two differ at their ends, behind one token that both have there.
    assert counted.shapes[0][1] < 3 + 2 * (ALIKE - 3) + 4 * (LENGTH - ALIKE)


@pytest.mark.parametrize("given", ["mask", "no mask", "positions"])
def test_values_and_gradients_are_those_of_whole_rows(given: str) -> None:
    model, asked = small(), batch()
    if given == "no mask":
        asked["attention_mask"][:] = 1
    if given == "positions":
        asked["position_ids"] = torch.arange(3, 3 + LENGTH).expand(3, -1)
    wanted = learnt(model, asked)
    counted = Counted(model.get_base_model().get_decoder())
    assert pack_rows(model, bfloat16=False)
    counted.shapes.clear()
    assert_same(wanted, learnt(model, asked))
    padding = 0 if given == "no mask" else LENGTH - 55
    # Behind the beginning the last two have one more token alike.
    assert counted.shapes == [(1, ALIKE + 3 * (LENGTH - ALIKE) - 1 - padding)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_gives_the_same_or_is_left_alone(family: Family) -> None:
    model = of_family(family)
    model.config.use_cache = False
    asked = batch(4000)
    wanted = learnt(model, asked)
    assert pack_rows(model, bfloat16=False) == (family.name not in LEFT_ALONE), family.name
    assert_same(wanted, learnt(model, asked))


def test_blocks_may_have_another_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 500, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    model = tuned(GPT2LMHeadModel(GPT2Config(**shape, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, use_cache=False)))
    wanted = learnt(model, batch())
    assert not hasattr(model.get_base_model().get_decoder(), "layers")
    assert pack_rows(model, bfloat16=False)
    assert_same(wanted, learnt(model, batch()))


def test_behind_a_window_rows_are_computed_whole() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }  # fmt: skip
    model = tuned(MistralForCausalLM(MistralConfig(**shape, sliding_window=50, use_cache=False)))
    wanted = learnt(model, batch())
    counted = Counted(model.get_base_model().get_decoder())
    assert pack_rows(model, bfloat16=False)
    counted.shapes.clear()
    assert_same(wanted, learnt(model, batch()))
    assert (3, LENGTH) in counted.shapes


def test_what_it_cannot_do_is_left_to_the_decoder() -> None:
    model = small()
    counted = Counted(model.get_base_model().get_decoder())
    assert pack_rows(model, bfloat16=False)
    counted.shapes.clear()
    others = batch()
    others["input_ids"][:, 0] = torch.arange(3)
    others["attention_mask"][1, : LENGTH - 1] = 1
    before = {**batch(), "attention_mask": batch()["attention_mask"].flip(1)}
    embedding = model.get_base_model().get_input_embeddings()
    with torch.no_grad():
        model(**others)  # too little would be saved
        model(**before)
        model(**batch(), output_hidden_states=True)
        model(**batch(), use_cache=True)
        embedding.neftune_noise_alpha = 5.0
        model(**batch())
        del embedding.neftune_noise_alpha
        model.get_base_model().gradient_checkpointing_enable()
        model(**batch())
        model.get_base_model().gradient_checkpointing_disable()
        assert counted.shapes == [(3, LENGTH)] * 6
        counted.shapes.clear()
        model(**{name: value[:1] for name, value in batch().items()})
        assert counted.shapes == [(1, LENGTH)]
        model.eval()
        model(**batch())
        assert counted.shapes[-1][0] == 1


def test_a_model_that_sees_is_left_alone(tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(seeing_model(tmp_path / "base", "qwen2_5_vl"))
    decoder = model.get_decoder()
    assert not pack_rows(model, bfloat16=False)
    assert "forward" not in vars(decoder)


def test_answers_are_generated_as_before() -> None:
    model = small().eval()
    asked = {name: value for name, value in batch().items() if name != "labels"}
    asked["attention_mask"][:] = 1
    wanted = model.generate(**asked, max_new_tokens=8, do_sample=False, use_cache=True)
    assert pack_rows(model, bfloat16=False)
    assert torch.equal(model.generate(**asked, max_new_tokens=8, do_sample=False, use_cache=True), wanted)


def test_chance_is_each_row_s_own() -> None:
    torch.manual_seed(0)
    plain = small().get_base_model()
    assert not pack_rows(tuned(plain, lora_dropout=0.5), bfloat16=False)
    model = small(attention_dropout=0.1)
    counted = Counted(model.get_base_model().get_decoder())
    assert not pack_rows(model, bfloat16=False)
    counted.shapes.clear()
    model(**batch())
    model.eval()(**batch())
    assert [rows for rows, _ in counted.shapes] == [3, 1], "where nothing is dropped, rows are packed"


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_model_with_more_than_attention_across_tokens_is_found_out(bfloat16: bool) -> None:
    model = small()
    layer = model.get_base_model().get_decoder().layers[1].mlp
    usual = layer.forward
    layer.forward = lambda x: usual(x + 0.5 * x.roll(1, dims=1))
    assert not pack_rows(model, bfloat16)


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
    for least in (1.0, SAVED):
        monkeypatch.setattr(packing, "SAVED", least)
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
    assert pack_rows(model, bfloat16=False)
    assert_same(wanted, learnt(model, batch()))


def test_elsewhere_padding_behind_a_row_needs_no_mask() -> None:
    model = small()
    wanted = learnt(model, batch())
    masks = []
    decoder = model.get_base_model().get_decoder()
    decoder.register_forward_pre_hook(lambda _, __, named: masks.append(named["attention_mask"]), with_kwargs=True)
    attend_without_mask(model)
    assert_same(wanted, learnt(model, batch()))
    assert masks == [None]
