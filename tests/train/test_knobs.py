"""Settings of training that only say "it ran" when they do nothing: each is seen to act."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.children import child_environment
from tests.small_models import SMALL, tiny_llama
from tests.train.test_methods import dataset, metrics, recipe_for, rows_for
from tests.train.test_training import make_recipe
from toolkit.errors import DataError, UsageError
from toolkit.models.bases import resolve_base
from toolkit.recipe.schema import Recipe
from toolkit.run.preflight import preflight
from toolkit.train import training
from toolkit.train.methods import examples_of, trainer_of
from toolkit.train.methods.common import Order
from toolkit.train.methods.packing import check_packed, leaks
from toolkit.train.model import load_for_training
from toolkit.train.progress import COMPLETE, TrainingProgress
from toolkit.train.reporters import check_reporters
from toolkit.train.training import train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", hidden=64, tokenizer="small")


def trainer_for(base: Path, out: Path, rows: int = 12, callbacks: Any = (), **settings: Any) -> tuple[Any, Order, Any]:
    """(trainer, order, examples) of fine-tuning."""
    recipe = recipe_for(base, "sft", **settings)
    order = Order(recipe, load_for_training(recipe, resolve_base(str(base))), out / "checkpoints")
    found = examples_of("sft", order.loaded.tokenizer, rows_for("sft", rows), order)
    progress = TrainingProgress(out / "metrics.jsonl")
    return trainer_of("sft", order, found.given, [progress, *callbacks]), order, found


# Two rates ------------------------------------------------------------------------------------------------------------


def test_b_learns_faster_than_a(base: Path, tmp_path: Path) -> None:
    trainer, order, _ = trainer_for(base, tmp_path, loraplus_lr_ratio=8.0, learning_rate=1e-3, weight_decay=0.1)
    names = {id(p): name for name, p in order.loaded.model.named_parameters()}
    trainer.create_optimizer()
    rates: dict[str, set[float]] = {"lora_A": set(), "lora_B": set()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            (part,) = [part for part in rates if part in names[id(parameter)]]
            rates[part].add(group["lr"])
            assert group["weight_decay"] == 0.1
    assert rates == {"lora_A": {1e-3}, "lora_B": {8e-3}}
    # And it is this optimizer that trains: the first step of Adam is as long as its rate.
    begun = {name: p.detach().clone() for name, p in order.loaded.model.named_parameters() if p.requires_grad}
    trainer.args.max_steps = 1
    trainer.train()
    moved = {
        name: (p - begun[name]).abs().max().item() for name, p in order.loaded.model.named_parameters() if name in begun
    }
    assert max(value for name, value in moved.items() if "lora_B" in name) == pytest.approx(8e-3, rel=0.05)


def test_the_same_rate_for_both_without_the_key(base: Path, tmp_path: Path) -> None:
    trainer, *_ = trainer_for(base, tmp_path, learning_rate=1e-3)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-3}


# Noise ------------------------------------------------------------------------------------------------------------------


class Watching(TrainerCallback):  # type: ignore[misc]
    """What the embeddings give, in training and in evaluation."""

    def __init__(self, model: Any) -> None:
        self.model, self.noise = model, {True: 0.0, False: 0.0}

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        embedding = self.model.get_base_model().get_input_embeddings()
        ids = torch.tensor([[5, 6, 7, 8]])
        for mode in (True, False):
            embedding.train(mode)
            found = (embedding(ids) - embedding.weight[ids]).abs().max().item()
            self.noise[mode] = max(self.noise[mode], found)
        embedding.train()


def test_noise_is_on_the_embeddings_in_training_only(base: Path, tmp_path: Path) -> None:
    trainer, order, _ = trainer_for(base, tmp_path, neftune_noise_alpha=5.0, max_steps=2)
    watching = Watching(order.loaded.model)
    trainer.add_callback(watching)
    trainer.train()
    # Uniform within alpha / sqrt(tokens * width).
    assert 0.5 * 5 / (4 * 64) ** 0.5 < watching.noise[True] <= 5 / (4 * 64) ** 0.5 + 1e-6
    assert watching.noise[False] == 0.0
    # And it is gone where the training ends: what is measured afterwards is the model.
    assert not order.loaded.model.get_base_model().get_input_embeddings()._forward_hooks


# Packing ----------------------------------------------------------------------------------------------------------------


def test_packed_rows_lose_what_they_lose_alone(base: Path, tmp_path: Path) -> None:
    """Trap 7: a forward over packed rows leaks between them unless use_cache is False."""
    trainer, order, found = trainer_for(base, tmp_path, packing=True, max_length=160)
    packed = trainer.train_dataset
    assert 1 < len(packed) < len(found.given) and all(len(row["seq_lengths"]) > 1 for row in packed)
    model = order.loaded.model
    total, tokens = 0.0, 0
    for row in found.given:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        tokens += int((labels != -100).sum())
    batch = trainer._prepare_inputs(trainer.data_collator([packed[i] for i in range(len(packed))]))
    assert batch["input_ids"].shape[0] == 1 and "attention_mask" not in batch
    assert trainer.compute_loss(model, dict(batch)).item() == pytest.approx(total / tokens, abs=1e-5)
    # The trap itself: the same batch through a forward that keeps a cache.
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=True).logits[0, :-1]
    leaking = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=-100)
    assert abs(leaking.item() - total / tokens) > 1e-3


def test_a_base_that_lets_packed_rows_see_each_other_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, order, found = trainer_for(base, tmp_path, packing=True, max_length=160)
    first, second = found.given[:2]
    assert not leaks(trainer, first, second)
    model = order.loaded.model
    forward = model.forward

    def blind(*given: Any, position_ids: Any = None, **named: Any) -> Any:  # as code that reads no positions
        return forward(*given, **named)

    monkeypatch.setattr(model, "forward", blind)
    assert leaks(trainer, first, second)
    with pytest.raises(UsageError, match=r"train\.packing: this base lets packed rows see each other"):
        check_packed(trainer, found.given)


def test_what_packing_changes_is_told(base: Path, tmp_path: Path) -> None:
    trainer, _, found = trainer_for(base, tmp_path, packing=True, max_length=160)
    cut = [{name: ids[:-1] for name, ids in row.items()} for row in found.given]
    learns_all = [row | {"labels": row["input_ids"]} for row in found.given]
    for given in (cut, learns_all, found.given[:-1]):
        with pytest.raises(DataError, match="changed the rows as it packed them"):
            check_packed(trainer, given)


def test_a_packed_run_trains_as_many_tokens(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    recipe = recipe_for(base, "sft", packing=True, max_length=160, max_steps=-1, num_train_epochs=2.0)
    facts = train(recipe, dataset(tmp_path / "data", rows_for("sft")), out)
    assert facts.train_rows == 8 and facts.steps < 2 * 8 / 2
    assert facts.validation_loss_after < facts.validation_loss_before  # type: ignore[operator]
    assert "Flash" not in capsys.readouterr().err


# Early stopping -----------------------------------------------------------------------------------------------------------


def overfitting(folder: Path) -> Any:
    """Rows whose held-out ones say something else: learning them makes these worse."""
    rows = rows_for("sft", 16)
    for row in rows[-4:]:
        row["completion"][0]["content"] = "Trams run on Sundays too, every ten minutes until noon."
    return dataset(folder, rows)


def test_training_stops_when_held_out_rows_get_worse(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    recipe = recipe_for(
        base, "sft", max_steps=60, learning_rate=0.02, early_stopping_patience=2, eval_steps=2, save_steps=50
    )
    facts = train(recipe, overfitting(tmp_path / "data"), out)
    looks = {line["step"]: line["eval_loss"] for line in metrics(out) if "eval_loss" in line}
    best = min(looks, key=lambda step: looks[step])
    assert facts.best_step == best and facts.steps == best + 4 < 60
    assert list(looks) == list(range(2, facts.steps + 1, 2))
    told = " ".join(capsys.readouterr().err.split())
    assert f"Stopped at step {facts.steps} of 60: the loss of held-out rows was lowest at step {best}" in told
    # What is kept is that step's: its loss, not the last one's.
    assert looks[facts.steps] - looks[best] > 0.05
    assert facts.validation_loss_after == pytest.approx(looks[best], abs=0.01)
    assert not (out / "checkpoints").exists()


def test_held_out_rows_may_be_looked_at_without_stopping(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    facts = train(recipe_for(base, "dpo", max_steps=5, eval_steps=2), dataset(tmp_path / "data", rows_for("dpo")), out)
    assert (facts.steps, facts.best_step) == (5, None)
    assert [line["step"] for line in metrics(out) if "eval_loss" in line] == [2, 4, 5]
    assert [line["step"] for line in metrics(out) if "loss" in line] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("objective", ["orpo", "simpo", "kto", "reward", "pretrain"])
def test_every_objective_with_a_loss_can_stop_early(base: Path, tmp_path: Path, objective: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    recipe = recipe_for(base, objective)
    looking = recipe.train.model_copy(update={"eval_steps": 1, "early_stopping_patience": 1})
    recipe = recipe.model_copy(update={"train": looking})  # rloo, which asks a judge, would not take these keys
    facts = train(recipe, dataset(tmp_path / "data", rows_for(objective)), out)
    assert facts.best_step in {1, 2, 3}


def test_the_best_of_rows_of_tokens_is_kept(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    tree = recipe_for(base, "sft", max_steps=4, eval_steps=1, early_stopping_patience=3).model_dump(mode="json")
    recipe = Recipe.model_validate({**tree, "tokens": {"add": ["<ship>"]}})
    facts = train(recipe, dataset(tmp_path / "data", rows_for("sft")), out)
    looks = {line["step"]: line["eval_loss"] for line in metrics(out) if "eval_loss" in line}
    assert facts.validation_loss_after == pytest.approx(looks[facts.best_step], abs=0.02)  # type: ignore[index]
    # The file holds the rows that were trained, not the base's embedding.
    weights = load_file(out / "adapter_model.safetensors")
    assert max(tensor.numel() for tensor in weights.values()) < SMALL


CHILD = """\
import sys
from pathlib import Path
from tests.train.test_knobs import overfitting
from tests.train.test_methods import recipe_for
from toolkit.train.training import train
out = Path(sys.argv[2])
out.mkdir(exist_ok=True)
recipe = recipe_for(Path(sys.argv[1]), "sft", max_steps=60, learning_rate=0.02, early_stopping_patience=3, eval_steps=2)
print(train(recipe, overfitting(out.parent / "data"), out).model_dump_json())
"""


def test_patience_is_not_given_anew_after_a_kill(base: Path, tmp_path: Path) -> None:
    def start(out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CHILD, str(base), str(out)]
        return subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    wanted = json.loads(start(whole).communicate()[0])
    # Killed in the looks that were in vain, one before the last.
    last = cut / "checkpoints" / f"checkpoint-{wanted['steps'] - 2}" / COMPLETE
    process = start(cut)
    deadline = time.monotonic() + 300
    while not last.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = json.loads(start(cut).communicate()[0])
    assert (found["steps"], found["best_step"]) == (wanted["steps"], wanted["best_step"])
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(whole) == metrics(cut)


def test_no_held_out_rows_is_said(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    rows = dataset(tmp_path / "data", rows_for("sft"))
    (rows.folder / "validation.jsonl").write_text("")
    with pytest.raises(DataError, match="look at held-out rows, and there are none"):
        train(recipe_for(base, "sft", early_stopping_patience=1), rows, out)


# Lengths, checkpoints, arguments ------------------------------------------------------------------------------------------


def test_rows_of_a_length_go_together(base: Path, tmp_path: Path) -> None:
    rows = rows_for("sft", 32)
    for number, row in enumerate(rows):
        row["completion"][0]["content"] = "word " * (2 if number % 2 else 40)

    def wasted(strategy: str) -> float:
        recipe = recipe_for(base, "sft", train_sampling_strategy=strategy, per_device_train_batch_size=4)
        order = Order(recipe, load_for_training(recipe, resolve_base(str(base))), tmp_path / strategy)
        given = examples_of("sft", order.loaded.tokenizer, rows, order).given
        masks = [batch["attention_mask"] for batch in trainer_of("sft", order, given, []).get_train_dataloader()]
        return sum(int((mask == 0).sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert wasted("group_by_length") < 0.7 * wasted("random")


def test_checkpointing_changes_no_gradient(base: Path, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        trainer, order, _ = trainer_for(
            base, tmp_path / str(checkpointing), gradient_checkpointing=checkpointing, max_steps=1
        )
        trainer.train()
        model = order.loaded.model.get_base_model().model
        assert model.gradient_checkpointing == checkpointing
        found.append({n: p.detach().clone() for n, p in order.loaded.model.named_parameters() if p.requires_grad})
    plain, again = found
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)


def test_a_cut_answer_is_never_learnt(base: Path, tmp_path: Path) -> None:
    """Trap 4: a trainer that cuts a row cuts the token that ends its answer."""
    for packing in (False, True):
        trainer, order, found = trainer_for(base, tmp_path / str(packing), packing=packing, max_length=160)
        end = order.loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
        learnt = [t for row in trainer.train_dataset for t in row["labels"] if t == end]
        assert len(learnt) == len(found.given) == 12


def test_arguments_that_these_versions_refuse_are_nowhere_passed() -> None:
    """FACTS 8: each of them is unknown to these versions, or means something else now."""
    refused = "group_by_length=|max_seq_length=|evaluation_strategy|max_prompt_length|overwrite_output_dir"
    for path in Path(training.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            # Unsloth's own loader does call it so.
            assert not re.search(refused, line) or "max_seq_length=recipe.train.max_length" in line, (path, line)


# Who else is told ---------------------------------------------------------------------------------------------------------


def test_reporters_that_are_not_installed_are_told_at_once(base: Path, tmp_path: Path) -> None:
    (fault,) = check_reporters(["tensorboard", "nosuchreporter"])
    assert fault.hint == "Install it: pip install nosuchreporter"
    recipe = make_recipe(base, report_to=["tensorboard", "wandb", "swanlab"])
    missing = [name for name in ("wandb", "swanlab") if check_reporters([name])]
    if missing:
        with pytest.raises(Exception, match=rf"train\.report_to: {missing[0]} is not installed") as found:
            preflight(recipe, tmp_path, ["train"])
        assert f"pip install {missing[0]}" in str(found.value.hint)  # type: ignore[attr-defined]


def test_two_reporters_and_their_files_beside_the_artifact(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run" / "train"
    out.mkdir(parents=True)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    recipe = recipe_for(base, "sft", max_steps=1, report_to=["tensorboard"])
    train(recipe, dataset(tmp_path / "data", rows_for("sft")), out)
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "run" / "tensorboard")


def refused(**train: Any) -> str:
    tree = make_recipe(Path("base")).model_dump(mode="json")
    with pytest.raises(ValidationError) as found:
        Recipe.model_validate({**tree, "train": train})
    return str(found.value)


def test_what_does_not_go_together_is_refused() -> None:
    assert "train.packing goes with objective sft or pretrain, not dpo" in refused(objective="dpo", packing=True)
    assert "neftune_noise_alpha goes with" in refused(objective="kto", neftune_noise_alpha=5.0)
    told = refused(objective="grpo", rewards=["tag_counts"], num_generations=2, early_stopping_patience=2)
    assert "its rewards say how far it came" in told
    assert "needs an adapter of peft_type LORA" in refused(method="full", loraplus_lr_ratio=16.0)
    assert "'comet' is nobody to report to" in refused(report_to="comet")
    assert "(did you mean wandb?)" in refused(report_to=["wandbb"])
    assert "none stands alone" in refused(report_to=["none", "wandb"])
    tree = make_recipe(Path("base")).model_dump(mode="json")
    tree["data"]["validation"] = 0.0
    with pytest.raises(ValidationError, match="need held-out rows"):
        Recipe.model_validate({**tree, "train": {"early_stopping_patience": 2}})


def test_a_step_has_its_own_patience_and_packing() -> None:
    step = {"data": {"path": "x.txt"}, "train": {"objective": "pretrain"}}
    tree = make_recipe(Path("base"), packing=True, early_stopping_patience=2, loraplus_lr_ratio=4.0).model_dump(
        mode="json"
    )
    recipe = Recipe.model_validate({**tree, "earlier": {"read": step}})
    warm = recipe.at("read").train
    assert (warm.packing, warm.early_stopping_patience, warm.loraplus_lr_ratio) == (False, None, 4.0)
