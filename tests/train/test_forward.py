"""The forward that trained: right trainings lose what the reference loses, and one that computed another function is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests.small_models import tiny_gemma2, tiny_llama
from tests.train.test_training import make_dataset, make_recipe, make_rows
from toolkit.models.ends import end_tokens
from toolkit.models.reference import model_logits
from toolkit.parity.certificate import Check
from toolkit.parity.checks.forward import forward_check
from toolkit.parity.golden.training_rows import recorded_rows, write_forward
from toolkit.run.artifacts import Artifact, Cost, read_jsonl
from toolkit.run.facts import AdapterFacts
from toolkit.train import training
from toolkit.train.forward import FORWARD_FILE, ROWS, Place, chosen_rows
from toolkit.train.model import Loaded, load_for_training, load_tuned

Fault = Callable[[Any], None]


def rows() -> list[dict[str, Any]]:
    """Rows of several lengths, without a system text, which Gemma's template refuses."""
    made = make_rows(20)
    for number, row in enumerate(made):
        row["prompt"] = row["prompt"][1:]
        row["completion"][0]["content"] += " And so it goes on." * number
    return made


def judged(
    base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault | None = None, **settings: Any
) -> Check:
    """Train a few steps on a model with a fault, and judge its forward as the golden and verify stages do."""

    def broken(*given: Any) -> Loaded:
        loaded = load_for_training(*given)
        if fault is not None:
            fault(loaded.model.get_base_model())
        return loaded

    monkeypatch.setattr(training, "load_for_training", broken)
    out = folder / "train"
    out.mkdir(parents=True)
    dataset = make_dataset(folder / "data", rows())
    recipe = make_recipe(base, max_steps=2, max_length=512, **settings)
    facts: AdapterFacts = training.train(recipe, dataset, out)
    adapter = Artifact(out, facts, "", {}, Cost())
    tokenizer = AutoTokenizer.from_pretrained(out)
    recorded = recorded_rows(adapter, dataset, tokenizer)
    model, _ = load_tuned(adapter, torch.float32)
    forced = [one.forced for one in recorded]
    write_forward(recorded, model_logits(model, forced), end_tokens(adapter, tokenizer).tokens, folder)
    found = forward_check(facts, read_jsonl(folder / FORWARD_FILE))
    assert found is not None
    print(found.verdict, facts.computed_in, [(m.name, m.value) for m in found.measures[2:]])
    return found


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "base", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caps and windows so small that short rows meet them, as long ones meet the real ones."""
    folder = tiny_gemma2(tmp_path_factory.mktemp("gemma") / "base")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"sliding_window": 16, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora"},
        {"method": "lora", "bf16": True},
        {"method": "qlora"},
        {"method": "qlora", "bf16": True, "gradient_checkpointing": True},
        {"method": "full", "learning_rate": 1e-4},
    ],
    ids=["fp32", "bf16", "nf4", "nf4 and bf16, checkpoints", "full"],
)
def test_right_trainings_are_no_alarm(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    found = judged(llama, tmp_path, monkeypatch, **settings)
    assert found.verdict == "pass", found.message


def test_a_right_gemma_is_no_alarm(gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(gemma, tmp_path, monkeypatch, method="lora")
    assert found.verdict == "pass", found.message


def other_positions(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


def no_logit_cap(model: Any) -> None:
    model.config.final_logit_softcapping = None


def no_attention_cap(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None


def no_window(model: Any) -> None:
    model.config.sliding_window = 4096
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None


def other_scale(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 2


@pytest.mark.parametrize("fault", [no_logit_cap, no_attention_cap, no_window, other_positions, other_scale])
def test_another_function_than_inference_computes_is_named(
    gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    found = judged(gemma, tmp_path, monkeypatch, fault, method="lora")
    assert found.verdict == "fail", found.message
    assert "training computed another function than inference does" in found.message


def test_positions_of_another_rope_show_in_16_bits_too(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(llama, tmp_path, monkeypatch, other_positions, method="qlora", bf16=True).verdict == "fail"


def test_rows_of_all_lengths_are_chosen(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    few, many = rows()[:3], rows()

    def places(max_length: int = 512, **splits: list[dict[str, Any]]) -> list[Place]:
        return [place for place, _ in chosen_rows(tokenizer, splits, max_length)]

    chosen = places(validation=few, train=many)
    assert len(chosen) == ROWS
    assert Place("train", 19, 0) in chosen  # the longest
    assert places(validation=many, train=many)[0] == Place("validation", 0, 0)
    assert places(validation=few) == [Place("validation", index, 0) for index in range(3)]
    assert places(10, validation=many) == []


def test_another_tools_training_is_told_and_not_compared(llama: Path) -> None:
    from tests.small_models import base_facts

    known = {"method": "lora", "base": base_facts(llama), "base_dtype": "float32", "quantization": None}
    facts = AdapterFacts(**known, chat_template_sha256="", system="", trained_here=False, trainer_loss=1.25)  # type: ignore[arg-type]
    check = forward_check(facts, [])
    assert check is not None
    assert (check.verdict, check.measures[0].value) == ("not compared", 1.25)
    assert forward_check(facts.model_copy(update={"trainer_loss": None}), []) is None
