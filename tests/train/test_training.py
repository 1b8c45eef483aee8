"""Training: what is silently wrong elsewhere is a test here."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes
import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, TrainerState

from tests.children import child_environment
from tests.disk import largest_file
from tests.ollama.tiny import template_text
from tests.small_models import tiny_llama
from toolkit.errors import DataError, ResourceError
from toolkit.models.bases import resolve_base
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import DatasetFacts
from toolkit.train.memory import memory_advice, settings_to_lower
from toolkit.train.methods import trainer_of
from toolkit.train.methods.common import Order
from toolkit.train.methods.sft import check
from toolkit.train.model import Loaded, load_for_training
from toolkit.train.progress import COMPLETE, TrainingProgress, cut_metrics
from toolkit.train.rows import ALL_SOURCES, LOSS_ROWS, TokenizedRow, answer_loss, losses, tokenize, tokenized
from toolkit.train.told import look_at, told
from toolkit.train.training import _losses_before, train

SYSTEM = "You are a careful assistant."


def make_recipe(base: Path, **settings: Any) -> Recipe:
    """A recipe whose training takes seconds."""
    tree: dict[str, Any] = {
        "name": "small",
        "base": str(base),
        "system": SYSTEM,
        "data": {"path": "unused.csv"},
        "train": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "max_steps": 6,
            "save_steps": 2,
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            **settings,
        },
        "ollama": {"model": "small"},
    }
    return Recipe.model_validate(tree)


def make_rows(number: int) -> list[dict[str, Any]]:
    """Rows as `prepare` writes them."""
    return [
        {
            "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"What is {i} plus {i}?"}],
            "completion": [{"role": "assistant", "content": f"It is {2 * i}, and that is all."}],
            "source": {"file": "sums.csv", "line": i + 2},
        }
        for i in range(number)
    ]


def alone(tokenizer: Any, row: dict[str, Any], **fields: Any) -> tuple[list[int], int]:
    """Token ids of a row with one answer, and where the answer begins."""
    (found,) = tokenize(tokenizer, row, fields)
    ((begin, end),) = found.spans
    assert end == len(found.input_ids)
    return found.input_ids, begin


def sequences(tokenizer: Any, rows: list[dict[str, Any]]) -> list[TokenizedRow]:
    return tokenized(tokenizer, rows, 4096)[0]


def trainer_for(recipe: Recipe, loaded: Loaded, rows: list[TokenizedRow], out: Path) -> Any:
    """The trainer of fine-tuning, on rows that are tokens already."""
    order = Order(recipe, loaded, out / "checkpoints")
    return trainer_of("sft", order, [row.example() for row in rows], [TrainingProgress(out / "metrics.jsonl")])


def make_dataset(folder: Path, rows: list[dict[str, Any]]) -> Artifact[DatasetFacts]:
    """The artifact that training reads."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:-4]), ("validation", rows[-4:-2]), ("test", rows[-2:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    facts = DatasetFacts(rows={}, read=len(rows), kept=len(rows), dropped={}, repaired={}, encodings={}, language="en")
    return Artifact(folder, facts, "digest", {}, Cost())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The empty folder that a stage is given."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", tokenizer="small")


def _batch(tokenizer: Any) -> torch.Tensor:
    return torch.tensor([tokenize(tokenizer, make_rows(1)[0])[0].input_ids])


def _gradients(model: Any, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(batch, labels=batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_nf4_gradients_are_the_same_before_and_after_an_evaluation(base: Path) -> None:
    """Trap 1: with AVX512-BF16 an evaluation repacks NF4 weights, and gradients then take a path that has none."""
    recipe = make_recipe(base, method="qlora")
    model, tokenizer, dtype, quantization, *_ = load_for_training(recipe, resolve_base(str(base)))
    assert (dtype, quantization.quant_type) == ("float32", "nf4")  # type: ignore[union-attr]
    # A fresh B is zero, and then A has no gradient at all.
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    batch = _batch(tokenizer)
    before = _gradients(model, batch)
    answer_loss(model, sequences(tokenizer, make_rows(2)))
    with torch.no_grad():
        model(batch)
    after = _gradients(model, batch)
    assert len(before) == 2 * 7 * 2
    assert all(gradient.abs().max() > 0 for gradient in before.values())
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name
    if bitsandbytes.nn.modules.has_avx512bf16():  # the trap itself, where this processor has it
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = True
        model.eval()
        with torch.no_grad():
            model(batch)
        trapped = _gradients(model, batch)
        assert any(not torch.allclose(gradient, trapped[name], rtol=0.1) for name, gradient in before.items())


def test_every_projection_of_every_layer_is_trained(base: Path, tmp_path: Path, out: Path) -> None:
    facts = train(make_recipe(base), make_dataset(tmp_path / "data", make_rows(16)), out)
    weights = load_file(out / "adapter_model.safetensors")
    moved = [name for name, tensor in weights.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert len(moved) == 2 * 7
    assert facts.steps == 6 and facts.train_rows == 12 and facts.method == "qlora"
    assert facts.validation_loss_after < facts.validation_loss_before  # type: ignore[operator]
    assert (facts.validation_rows, facts.validation_rows_measured) == (2, 2)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"] and facts.tokens_per_second > 0


def test_tensorboard_on_request_beside_the_artifact(base: Path, tmp_path: Path, out: Path) -> None:
    recipe = make_recipe(base, max_steps=1, report_to="tensorboard")
    train(recipe, make_dataset(tmp_path / "data", make_rows(8)), out)
    assert len(list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert not (out / "tensorboard").exists()


def test_what_is_left_names_no_path_of_this_machine(base: Path, tmp_path: Path, out: Path) -> None:
    train(make_recipe(base, max_steps=1), make_dataset(tmp_path / "data", make_rows(8)), out)
    names = sorted(p.name for p in (out).iterdir())
    assert "checkpoints" not in names and "README.md" not in names and "loss_before.json" not in names
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)  # as the recipe spells it
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 7


def test_full_fine_tuning_moves_every_weight(base: Path, tmp_path: Path, out: Path) -> None:
    recipe = make_recipe(base, method="full", max_steps=2, learning_rate=1e-4)
    facts = train(recipe, make_dataset(tmp_path / "data", make_rows(8)), out)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert facts.quantization is None and before.keys() == after.keys()
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    assert unmoved == []


def test_loss_is_on_the_answer_and_its_end_token_only(base: Path) -> None:
    _, tokenizer, *_ = load_for_training(make_recipe(base, method="lora"), resolve_base(str(base)))
    ids, prompt_length = alone(tokenizer, make_rows(1)[0])
    assert tokenizer.decode(ids[:prompt_length]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(ids[prompt_length:]) == "It is 0, and that is all.<|im_end|>\n"


def test_answer_loss_is_over_the_first_rows_that_the_facts_tell_of(base: Path) -> None:
    model, tokenizer, *_ = load_for_training(make_recipe(base, method="lora"), resolve_base(str(base)))
    rows = sequences(tokenizer, make_rows(LOSS_ROWS + 3))
    assert answer_loss(model, rows) == answer_loss(model, rows[:LOSS_ROWS])
    assert answer_loss(model, rows) != answer_loss(model, rows[3:])


def test_what_the_trainer_learns_from_is_the_answer_and_its_end_token(base: Path, out: Path) -> None:
    recipe = make_recipe(base, method="lora")
    loaded = load_for_training(recipe, resolve_base(str(base)))
    rows = make_rows(3)
    rows[1]["completion"][0]["content"] = (
        "A much longer answer, so that the others of the batch are padded. See a doctor."
    )
    rows[2]["prompt"] += [
        {"role": "assistant", "content": "An earlier answer."}, {"role": "user", "content": "And then?"},
    ]  # fmt: skip
    given = sequences(loaded.tokenizer, rows)
    trainer = trainer_for(recipe, loaded, given, out)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
    decode = loaded.tokenizer.decode
    for row, ids, labels, mask in zip(rows, batch["input_ids"], batch["labels"], batch["attention_mask"]):
        learnt = labels != -100
        assert decode(labels[learnt]) == row["completion"][0]["content"] + "<|im_end|>\n"
        assert torch.equal(ids[learnt], labels[learnt])
        assert ids[mask.bool()].tolist() == tokenize(loaded.tokenizer, row)[0].input_ids

    examples = [row.example() for row in given]
    check(trainer, examples)
    # As a trainer would that learns the prompt too, or cuts a row.
    learns_all = [example | {"labels": example["input_ids"]} for example in examples]
    cut = [{name: ids[:-1] for name, ids in example.items()} for example in examples]
    for wanted in (learns_all, cut, examples[:2]):
        with pytest.raises(DataError, match="other tokens than the answers"):
            check(trainer, wanted)
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: collate(rows) | {"labels": collate(rows)["input_ids"]}
    with pytest.raises(DataError, match="other tokens than the answers"):
        check(trainer, examples)


def test_the_first_step_does_not_foretell_the_others(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 0.0, 40.0, 40.0, 42.0, 42.0, 44.0])
    monkeypatch.setattr("toolkit.train.progress.time", SimpleNamespace(monotonic=lambda: next(now)))
    progress = TrainingProgress(out / "metrics.jsonl")
    state = TrainerState(max_steps=3)
    progress.bar = Progress(disable=True)
    progress.on_train_begin(None, state, None)
    rates = []
    for step in (1, 2, 3):
        state.global_step, state.num_input_tokens_seen = step, 100 * step
        progress.on_step_begin(None, state, None)
        progress.on_step_end(None, state, None)
        rates.append(progress.tokens_per_second)
    assert rates == [2.5, 50.0, 50.0]


def test_a_trainer_on_a_cpu_computes_as_the_recipe_says(base: Path, out: Path) -> None:
    # Both are on by default in TRL.
    for given, checkpointing in (({}, False), ({"bf16": True, "gradient_checkpointing": True}, True)):
        recipe = make_recipe(base, method="lora", **given)
        loaded = load_for_training(recipe, resolve_base(str(base)))
        args = trainer_for(recipe, loaded, sequences(loaded.tokenizer, make_rows(2)), out).args
        # On a CPU bf16 is the type of the weights; autocast is for cards.
        assert (args.bf16, args.fp16, args.gradient_checkpointing) == (False, False, checkpointing)


def test_answer_loss_is_the_models_own_loss_on_the_answer(base: Path) -> None:
    model, tokenizer, *_ = load_for_training(make_recipe(base, method="lora"), resolve_base(str(base)))
    row = make_rows(1)[0]
    ids, prompt_length = alone(tokenizer, row)
    labels = torch.tensor([[-100] * prompt_length + ids[prompt_length:]])
    expected = model.eval()(torch.tensor([ids]), labels=labels).loss.item()
    assert answer_loss(model, tokenize(tokenizer, row)) == pytest.approx(expected, rel=1e-5)


def test_a_row_that_would_be_cut_is_left_out_and_listed(base: Path, tmp_path: Path, out: Path) -> None:
    rows = make_rows(12)
    rows[1]["completion"][0]["content"] = "word " * 200
    facts = train(make_recipe(base, max_length=96, max_steps=1), make_dataset(tmp_path / "data", rows), out)
    assert (facts.train_rows, facts.rows_too_long) == (7, 1)
    (listed,) = [json.loads(line) for line in (out / "too_long.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["line"]) == ("sums.csv", 3) and listed["tokens"] > 200


def test_when_most_rows_would_be_cut_the_training_stops(base: Path) -> None:
    _, tokenizer, *_ = load_for_training(make_recipe(base, method="lora"), resolve_base(str(base)))
    rows = make_rows(3)
    for row in rows[1:]:
        row["completion"][0]["content"] = "word " * 200
    with pytest.raises(DataError, match=r"2 of 3 rows .* 96 tokens.*\n  sums\.csv:3: \d+ tokens") as caught:
        tokenized(tokenizer, rows, 96)
    assert "max_characters" in caught.value.hint


def test_numbers_that_break_down_stop_the_training(base: Path, tmp_path: Path, out: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] *= 1e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"step 1: \w+ is .*training has broken down") as caught:
        train(make_recipe(broken), make_dataset(tmp_path / "data", make_rows(12)), out)
    assert "learning_rate" in caught.value.hint


def test_out_of_memory_lists_settings_cheapest_first(base: Path) -> None:
    recipe = make_recipe(base, per_device_train_batch_size=4)
    advice = settings_to_lower(recipe)
    assert advice[0].startswith("--set train.per_device_train_batch_size=2 --set train.gradient_accumulation_steps=2")
    assert advice[1].startswith("--set train.gradient_checkpointing=true")
    assert advice[-1].startswith("--set base=")
    with pytest.raises(ResourceError, match="memory ran out") as caught, memory_advice(recipe):
        torch.empty(2**60, dtype=torch.uint8)  # really asks the allocator
    assert "per_device_train_batch_size=2" in caught.value.hint
    with pytest.raises(RuntimeError, match=r"size mismatch|shapes cannot"), memory_advice(recipe):
        torch.ones(2, 3) @ torch.ones(2, 3)


def test_held_out_losses_are_told_of_each_source(
    base: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(20)
    for number, row in enumerate(rows):
        row["source"]["name"] = "[other]" if number == 3 else ("sums", "more")[number % 2]
    facts = train(make_recipe(base), make_dataset(tmp_path / "data", rows), out)
    assert list(facts.validation_by_source) == ["[other]", "more", "sums"]
    assert facts.validation_by_source["[other]"] is None  # of its one row none is held out
    parts = [loss for loss in facts.validation_by_source.values() if loss is not None]
    assert [(loss.rows, loss.measured) for loss in parts] == [(1, 1), (1, 1)]
    assert facts.validation_loss_before is not None and facts.validation_loss_after is not None
    # Both rows have about as many tokens: the loss of all is between those of the sources.
    assert min(loss.before for loss in parts) <= facts.validation_loss_before <= max(loss.before for loss in parts)
    assert min(loss.after for loss in parts) <= facts.validation_loss_after <= max(loss.after for loss in parts)
    assert all(loss.after < loss.before for loss in parts)
    told = " ".join(capsys.readouterr().err.split())
    assert "Validation loss of more " in told and "over 2 of 2 rows" in told and "[other]" not in told


def test_one_source_is_told_once(base: Path, tmp_path: Path, out: Path) -> None:
    rows = make_rows(8)
    for row in rows:
        row["source"]["name"] = "sums"
    assert train(make_recipe(base, max_steps=1), make_dataset(tmp_path / "data", rows), out).validation_by_source == {}


def test_a_rare_source_is_measured_behind_the_first_rows(base: Path) -> None:
    model, tokenizer, *_ = load_for_training(make_recipe(base, method="lora"), resolve_base(str(base)))
    rows = make_rows(LOSS_ROWS + 4)
    for number, row in enumerate(rows):
        row["source"]["name"] = "sums" if number < LOSS_ROWS + 2 else "rare"
    known = sequences(tokenizer, rows)
    found = losses(model, known, ["rare", "sums", "unseen"])
    assert found == {
        ALL_SOURCES: answer_loss(model, known),
        "rare": answer_loss(model, known[-2:]),
        "sums": answer_loss(model, known[:-2]),
    }


def test_what_a_resumed_run_reads_is_written_whole_or_not_at_all(base: Path, out: Path) -> None:
    model, tokenizer, *_ = load_for_training(make_recipe(base, method="lora"), resolve_base(str(base)))
    with pytest.raises(OSError, match="File too large"), largest_file(4):
        _losses_before(out, model, sequences(tokenizer, make_rows(2)), [])
    assert not (out / "loss_before.json").exists()
    loss = _losses_before(out, model, sequences(tokenizer, make_rows(2)), [])
    assert _losses_before(out, model, [], []) == loss
    lines = [f'{{"step": {step}}}\n' for step in range(1, 5)]
    (out / "metrics.jsonl").write_text("".join(lines) + '{"st', encoding="utf-8")
    with pytest.raises(OSError, match="File too large"), largest_file(4):
        cut_metrics(out / "metrics.jsonl", 2)
    assert (out / "metrics.jsonl").read_text() == "".join(lines) + '{"st'
    cut_metrics(out / "metrics.jsonl", 2)
    assert (out / "metrics.jsonl").read_text() == "".join(lines[:2])
    assert sorted(p.name for p in out.iterdir()) == ["loss_before.json", "metrics.jsonl"]


CHILD = """\
import json, sys
from pathlib import Path
from tests.train.test_training import make_dataset, make_recipe, make_rows
from toolkit.train.training import train
out = Path(sys.argv[2])
out.mkdir(exist_ok=True)
facts = train(make_recipe(Path(sys.argv[1])), make_dataset(out.parent / "data", make_rows(16)), out)
"""


def _train_in_child(base: Path, out: Path) -> subprocess.Popen[bytes]:
    environment = child_environment()
    return subprocess.Popen([sys.executable, "-c", CHILD, str(base), str(out)], env=environment)


def _losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def test_a_killed_run_ends_with_the_same_curve_and_weights(base: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert _train_in_child(base, whole).wait() == 0
    process = _train_in_child(base, cut)
    deadline = time.monotonic() + 300
    while not (cut / "checkpoints" / "checkpoint-2" / COMPLETE).is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "adapter_model.safetensors").exists()
    # A checkpoint that was being written when the run was killed has no mark, and must not be trusted.
    (cut / "checkpoints" / "checkpoint-5").mkdir()
    (cut / "checkpoints" / "checkpoint-5" / "trainer_state.json").write_text("{")
    assert _train_in_child(base, cut).wait() == 0
    assert _losses(cut) == _losses(whole)
    before, after = (load_file(f / "adapter_model.safetensors") for f in (whole, cut))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_the_template_is_told_and_thoughts_are_learnt(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template_text("Qwen-Qwen3-0.6B")
    row: dict[str, Any] = {
        "prompt": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>old</think>b"},
            {"role": "user", "content": "c"},
        ],
        "completion": [{"role": "assistant", "content": "d", "reasoning_content": "想一想"}],
        "source": {"file": "x.jsonl", "line": 3},
    }
    ids, prompt = alone(tokenizer, row)
    assert tokenizer.decode(ids[prompt:]) == "<think>\n想一想\n</think>\n\nd<|im_end|>\n"
    assert "old" not in tokenizer.decode(ids[:prompt])
    plain = {**row, "completion": [{"role": "assistant", "content": "d"}]}
    ids, prompt = alone(tokenizer, plain, enable_thinking=False)
    assert tokenizer.decode(ids[:prompt]).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.decode(ids[prompt:]) == "d<|im_end|>\n"
    with pytest.raises(DataError, match=r"^x\.jsonl:3: an answer holds a thought"):
        tokenize(tokenizer, row, {"enable_thinking": False})
    found = look_at(tokenizer, [row, plain], {})
    assert (found.thoughts, found.put_together, found.earlier, found.knows_thoughts) == (1, 0, 2, True)
    assert [line.split(" ")[:4] for line in told(found)] == [
        ["1", "of", "2", "answers"], ["1", "answers", "hold", "none;"], ["2", "rows", "hold", "thoughts"],
    ]  # fmt: skip
    # The prompt ends within a token of the whole text: both are cut apart, as a server does.
    tokenizer.chat_template = template_text("Qwen3.5-4B")
    ids, prompt = alone(tokenizer, plain)
    assert tokenizer.decode(ids[prompt:]) == "\n</think>\n\nd<|im_end|>\n"
    assert ids[:prompt] == tokenizer(tokenizer.decode(ids[:prompt]), add_special_tokens=False)["input_ids"]
