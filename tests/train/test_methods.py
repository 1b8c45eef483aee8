"""Every objective on a small model with TRL's real trainers: what it learns from, and what is silently wrong elsewhere."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.small_models import tiny_llama
from tests.train.test_training import make_recipe, make_rows
from toolkit.errors import DataError
from toolkit.models.bases import resolve_base
from toolkit.models.tokenizer import load_tokenizer
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import Objective
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import AdapterFacts, DatasetFacts
from toolkit.train.judge import load_judge, scores
from toolkit.train.methods import examples_of, trainer_of
from toolkit.train.methods.common import Order
from toolkit.train.model import load_for_training, load_tuned
from toolkit.train.progress import TrainingProgress
from toolkit.train.rewards import named
from toolkit.train.rows import tokenize
from toolkit.train.training import train

PAIRED: tuple[Objective, ...] = ("dpo", "orpo", "simpo")
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"rewards": ["tag_counts"], "num_generations": 2, "max_completion_length": 8},
    "rloo": {"rewards": ["tag_counts"], "num_generations": 2, "max_completion_length": 8},
}
ALL: tuple[Objective, ...] = (*PAIRED, "kto", "pretrain", "grpo", "rloo")


def rows_for(objective: str, number: int = 12) -> list[dict[str, Any]]:
    """Rows as `prepare` writes them for an objective."""
    rows = make_rows(number)
    match objective:
        case "dpo" | "orpo" | "simpo" | "reward":
            for i, row in enumerate(rows):
                row["chosen"] = row.pop("completion")
                row["rejected"] = [{"role": "assistant", "content": f"Guess. {'No idea. ' * (i % 3)}"}]
        case "kto":
            for i, row in enumerate(rows):
                row["label"] = i % 2 == 0
                if i % 2:
                    row["completion"][0]["content"] = "Guess."
        case "pretrain":
            return [
                {"text": f"Tram line {i} ends at the mill. " * (1 + i % 3), "source": r["source"]}
                for i, r in enumerate(rows)
            ]
    return rows


def dataset(folder: Path, rows: list[dict[str, Any]]) -> Artifact[DatasetFacts]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", rows[:-4]), ("validation", rows[-4:]), ("test", [])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    facts = DatasetFacts(rows={}, read=len(rows), kept=len(rows), dropped={}, repaired={}, encodings={}, language="en")
    return Artifact(folder, facts, "digest", {}, Cost())


def recipe_for(base: Path, objective: str, **settings: Any) -> Recipe:
    tree = {**make_recipe(base).model_dump(mode="json"), "golden": {"prompts": ["What is one?"]}}
    tree["train"] |= {
        "objective": objective,
        "max_steps": 3,
        "method": "lora",
        **SETTINGS.get(objective, {}),
        **settings,
    }
    if objective == "reward":  # only ever an earlier step
        step = {"data": tree["data"], "train": tree["train"]}
        ends = {"eval_steps": None, "early_stopping_patience": None}
        tree["train"] = tree["train"] | {"objective": "rloo", **SETTINGS["rloo"], **ends}
        return Recipe.model_validate({**tree, "earlier": {"judge": step}}).at("judge")
    return Recipe.model_validate(tree)


def trained(base: Path, folder: Path, objective: str, **settings: Any) -> Artifact[AdapterFacts]:
    out = folder / "out"
    out.mkdir(parents=True)
    facts = train(recipe_for(base, objective, **settings), dataset(folder / "data", rows_for(objective)), out)
    return Artifact(out, facts, "digest", {}, Cost())


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def order_for(base: Path, objective: str, out: Path, **settings: Any) -> Order:
    recipe = recipe_for(base, objective, **settings)
    rewards = named(recipe.train.rewards) if objective in ("grpo", "rloo") else {}
    return Order(recipe, load_for_training(recipe, resolve_base(str(base))), out / "checkpoints", rewards=rewards)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", tokenizer="small")


@pytest.mark.parametrize("objective", [*PAIRED, "kto", "pretrain"])
def test_an_objective_leaves_one_adapter_that_moved(base: Path, tmp_path: Path, objective: Objective) -> None:
    found = trained(base, tmp_path, objective)
    facts = found.facts
    assert (facts.objective, facts.steps) == (objective, 3)
    weights = load_file(found.folder / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name) and len(weights) == 28
    # Not a reference beside it, which an export would take for a second adapter.
    assert not [path.name for path in found.folder.iterdir() if path.is_dir()]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in metrics(found.folder))
    if objective in PAIRED:
        assert {"rewards/accuracies", "rewards/margins"} <= metrics(found.folder)[0].keys()
    if objective in ("orpo", "pretrain"):  # the others have no part that raises the likelihood of an answer
        assert facts.validation_loss_after < facts.validation_loss_before  # type: ignore[operator]
    recorded = [json.loads(line) for line in (found.folder / "forward.jsonl").read_text().splitlines()]
    model, tokenizer = load_tuned(found)
    rows = rows_for(objective)
    for line in recorded:
        row = tokenize(tokenizer, (rows[:-4] if line["split"] == "train" else rows[-4:])[line["index"]])[line["part"]]
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=-100)
        assert line["loss"] == pytest.approx(loss.item(), abs=1e-4)


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_rewards_are_recorded_by_their_names(base: Path, tmp_path: Path, objective: Objective) -> None:
    own = tmp_path / "own.py"
    # What differs between the answers of a random model: the number of letters.
    own.write_text(
        "def letters(completions, references):\n    return [len(c) + len(r) for c, r in zip(completions, references)]\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    recipe = recipe_for(base, objective, rewards=["letters", "tag_counts"])
    facts = train(recipe, dataset(tmp_path / "data", rows_for(objective)), out, own_rewards=own)
    lines = metrics(out)
    assert len(lines) == 3 and facts.validation_loss_after is None
    for line in lines:
        assert line["rewards/tag_counts/mean"] == 0 and line["rewards/letters/mean"] > 28  # the reference's own letters
        assert line["reward"] == pytest.approx(line["rewards/letters/mean"])
    assert any(line["reward_std"] > 0 and line["grad_norm"] > 0 for line in lines)
    weights = load_file(out / "adapter_model.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_a_reward_model_judges_for_rloo(base: Path, tmp_path: Path) -> None:
    judge = trained(base, tmp_path / "judge", "reward")
    assert judge.facts.pair_accuracy is not None and 0 <= judge.facts.pair_accuracy <= 1
    ask = load_judge(judge)
    rows = [[5, 6, 7], [8, 9, 10, 11, 12]]
    # A number does not depend on what it is padded beside.
    assert ask(rows) == pytest.approx([*ask(rows[:1]), *ask(rows[1:])], abs=1e-5)
    out = tmp_path / "out"
    out.mkdir()
    recipe = make_recipe(base).model_dump(mode="json")
    recipe["train"] |= {
        "objective": "rloo",
        "max_steps": 2,
        "num_generations": 2,
        "max_completion_length": 8,
        "method": "lora",
    }
    step = {"data": recipe["data"], "train": {"objective": "reward", "method": "lora"}}
    whole = Recipe.model_validate({**recipe, "earlier": {"judge": step}})
    train(whole, dataset(tmp_path / "data", rows_for("rloo")), out, judge=judge)
    assert all("rewards/reward_model/mean" in line for line in metrics(out))


def test_what_a_pair_trainer_learns_from_are_both_answers_with_their_ends(base: Path, tmp_path: Path) -> None:
    for objective in (*PAIRED, "reward"):
        order = order_for(base, objective, tmp_path / objective)
        rows = rows_for(objective, 4)
        given, learnt, long = examples_of(order.recipe.train.objective, order.loaded.tokenizer, rows, order)
        decode = order.loaded.tokenizer.decode
        for row, example in zip(rows, given):
            assert decode(example["prompt_ids"]).endswith("<|im_start|>assistant\n")
            assert decode(example["chosen_ids"]) == row["chosen"][0]["content"] + "<|im_end|>\n"
            assert decode(example["rejected_ids"]) == row["rejected"][0]["content"] + "<|im_end|>\n"
        assert len(learnt) == 4 and not long
        trainer_of(order.recipe.train.objective, order, given, [TrainingProgress(tmp_path / "m.jsonl")])


@pytest.mark.parametrize("objective", [*PAIRED, "kto"])
def test_a_pair_that_would_be_cut_is_left_out_and_listed(base: Path, tmp_path: Path, objective: Objective) -> None:
    """Trap 2: ORPO and CPO go to no number when prompt and longer answer exceed max_length."""
    rows = rows_for(objective)
    key = "completion" if objective == "kto" else "rejected"
    rows[1][key][0]["content"] = "word " * 200
    out = tmp_path / "out"
    out.mkdir()
    facts = train(recipe_for(base, objective, max_length=96), dataset(tmp_path / "data", rows), out)
    assert (facts.train_rows, facts.rows_too_long) == (7, 1)
    assert all(math.isfinite(line["grad_norm"]) for line in metrics(out))
    (listed,) = [json.loads(line) for line in (out / "too_long.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["line"]) == ("sums.csv", 3)


@pytest.mark.parametrize("objective", ["reward", "dpo", "grpo"])
def test_when_all_rows_are_too_long_it_is_said(base: Path, tmp_path: Path, objective: Objective) -> None:
    """Trap 5: TRL's own words are "num_samples should be a positive integer"."""
    order = order_for(base, objective, tmp_path, max_length=32)
    with pytest.raises(DataError, match=r"12 of 12 rows have more than train.max_length = 32 tokens"):
        examples_of(order.recipe.train.objective, order.loaded.tokenizer, rows_for(objective), order)


@pytest.mark.parametrize("objective", [*ALL, "sft", "reward"])
def test_mixed_precision_and_checkpointing_are_as_the_recipe_says(
    base: Path, tmp_path: Path, objective: Objective
) -> None:
    """Trap 3: TRL's defaults are bf16 and gradient checkpointing, on a CPU too."""
    order = order_for(base, objective, tmp_path)
    given = examples_of(order.recipe.train.objective, order.loaded.tokenizer, rows_for(objective), order).given
    args = trainer_of(order.recipe.train.objective, order, given, []).args
    assert (args.bf16, args.fp16, args.gradient_checkpointing, args.use_cpu) == (False, False, False, True)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_the_reference_is_the_model_as_it_was(base: Path, tmp_path: Path, objective: Objective) -> None:
    order = order_for(base, objective, tmp_path)
    given = examples_of(objective, order.loaded.tokenizer, rows_for(objective), order).given
    trainer = trainer_of(objective, order, given, [])
    assert list(order.loaded.model.peft_config) == ["default"] and trainer.ref_model is None  # the adapter off
    # Trained on after an earlier step, the base is not where it began.
    first = trained(base, tmp_path / "first", "pretrain", learning_rate=0.05)
    recipe = recipe_for(base, objective)
    loaded = load_for_training(recipe, resolve_base(str(base)), first.folder)
    begun = load_file(first.folder / "adapter_model.safetensors")
    after = Order(recipe, loaded, tmp_path / "checkpoints", goes_on=True)
    trainer = trainer_of(objective, after, given, [])
    assert set(loaded.model.peft_config) == {"default", "ref"}
    kept = {name: p for name, p in loaded.model.named_parameters() if ".ref." in name}
    assert kept and not any(p.requires_grad for p in kept.values())
    for name, parameter in kept.items():
        assert torch.equal(parameter, begun[name.replace(".ref.", ".")])
    # Before the first step the model is its own reference: the loss is log 2, whatever the earlier step did.
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(2)]))
    if objective == "dpo":
        assert trainer.compute_loss(loaded.model, batch).item() == pytest.approx(math.log(2), abs=1e-4)


def test_an_earlier_step_is_trained_on(base: Path, tmp_path: Path) -> None:
    first = trained(base, tmp_path / "first", "pretrain")
    out = tmp_path / "second"
    out.mkdir()
    recipe = recipe_for(base, "sft", learning_rate=1e-12, weight_decay=0.0)
    train(recipe, dataset(tmp_path / "data", rows_for("sft")), out, start=first)
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first.folder, out))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    other = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"target_modules": ["q_proj"]})})
    with pytest.raises(DataError, match="holds weights that this adapter has no place for"):
        load_for_training(other, resolve_base(str(base)), first.folder)


def test_a_document_is_learnt_whole_and_ends(base: Path, tmp_path: Path) -> None:
    order = order_for(base, "pretrain", tmp_path, max_length=32)
    tokenizer = order.loaded.tokenizer
    rows = [
        {"text": "one " * 100, "source": {"file": "a.txt", "line": 1}},
        {"text": "two", "source": {"file": "a.txt", "line": 2}},
    ]
    _, learnt, long = examples_of("pretrain", tokenizer, rows, order)
    assert not long and all(len(row.input_ids) <= 32 for row in learnt)
    *pieces, last = learnt
    document = [*pieces[0].input_ids, *(token for piece in pieces[1:] for token in piece.input_ids[1:])]
    assert document == [*tokenizer("one " * 100)["input_ids"], tokenizer.eos_token_id]
    # Every token but a document's first is learnt, once; no sequence holds two documents.
    assert sum(row.learnt for row in pieces) == len(document) - 1
    assert tokenizer.decode(last.input_ids) == "two" + tokenizer.eos_token


def test_answers_are_sampled_from_the_prompts_of_a_server_and_end_with_a_turn(base: Path, tmp_path: Path) -> None:
    order = order_for(base, "grpo", tmp_path)
    tokenizer = load_tokenizer(str(base))
    given = examples_of("grpo", order.loaded.tokenizer, rows_for("grpo", 2), order).given
    assert (
        given[0]["prompt"].endswith("<|im_start|>assistant\n") and given[0]["reference"] == "It is 0, and that is all."
    )
    trainer = trainer_of("grpo", order, given, [])
    ids, images, others = trainer._tokenize_prompts([row["prompt"] for row in given])
    assert ids[0] == tokenize(tokenizer, rows_for("grpo", 1)[0])[0].input_ids[: len(ids[0])] and (images, others) == (
        None,
        {},
    )
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in trainer.eos_token_ids


def test_no_spread_of_rewards_is_said_after_ten_steps(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trap 6: on a cold base all rewards are 0, so is the gradient, and nothing says so."""
    out = tmp_path / "out"
    out.mkdir()
    facts = train(recipe_for(base, "grpo", max_steps=12), dataset(tmp_path / "data", rows_for("grpo")), out)
    assert facts.steps == 12 and all(line["reward_std"] == 0 for line in metrics(out))
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("In 10 steps all answers to a prompt were worth the same (0.00), so nothing is learnt.") == 1


def test_a_reward_model_gives_one_number(base: Path, tmp_path: Path) -> None:
    order = order_for(base, "reward", tmp_path)
    found = scores(order.loaded.model, [[1, 2, 3], [4, 5]])
    assert len(found) == 2 and all(isinstance(one, float) for one in found)
