"""Training in several processes, for real: torchrun over gloo, as on a machine without cards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.children import child_environment
from tests.small_models import tiny_llama
from tests.train.test_methods import dataset, rows_for
from tests.train.test_training import make_dataset, make_rows
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Cost, publish, write_json
from toolkit.train.engines import WORKER, accelerate_arguments, write_config
from toolkit.train.together import FOLDER, ORDER, RESULT, error_of

pytestmark = pytest.mark.slow

STEPS = 20
"""Enough to be killed among them."""
IN_TWO = {"distributed": "ddp", "num_processes": 2, "per_device_train_batch_size": 2}
"""The same four rows a step as one process with batches of 4."""


def recipe(base: Path, **train: Any) -> dict[str, Any]:
    """A recipe whose training takes seconds. Dropout is 0: each process would draw its own."""
    common = {"method": "lora", "max_steps": STEPS, "save_steps": 2, "learning_rate": 3e-3, "warmup_steps": 0,
              "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4}  # fmt: skip
    tree = {"name": "small", "base": str(base), "data": {"path": "rows.csv"}, "train": common | train}
    return Recipe.model_validate({**tree, "ollama": {"model": "small"}}).model_dump(mode="json")


class Run:
    """A folder of a run whose rows are prepared."""

    def __init__(self, folder: Path, base: Path, **train: Any) -> None:
        self.folder, self.recipe, self.stage = folder, recipe(base, **train), "train"
        rows = make_rows(20)
        for i, row in enumerate(rows):  # answers of many lengths: a mean over rows is another than one over tokens
            row["completion"][0]["content"] += " And so on." * (3 * (i % 4))
        prepared = make_dataset(folder / "prepare.partial", rows)
        publish(prepared.folder, folder / "prepare", prepared.facts, {}, Cost())
        self.partial = folder / "train.partial"
        self.partial.mkdir()

    def start(self, **environment: str) -> subprocess.Popen[str]:
        """The stage's process, as `run` starts it."""
        order = {
            "parent": os.getpid(),
            "stage": self.stage,
            "recipe": self.recipe,
            "key": {},
            "folder": str(self.folder),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "toolkit.cli", "stage-process"],
            env=child_environment(OMP_NUM_THREADS="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error", **environment),
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(order))
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, **environment: str) -> tuple[int, str]:
        """(exit code, what it said)."""
        process = self.start(**environment)
        _, said = process.communicate()
        return process.returncode, said

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = load_file(self.folder / "train" / "adapter_model.safetensors")
        return found

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "train" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", tokenizer="small")


@pytest.fixture(scope="module")
def in_two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in two processes that ended well."""
    run = Run(tmp_path_factory.mktemp("two"), base, **IN_TWO)
    code, said = run.run()
    assert code == 0, said
    (run.folder / "said").write_text(said)
    return run


def test_two_processes_train_what_one_does(in_two: Run, base: Path, tmp_path: Path) -> None:
    alone = Run(tmp_path, base)
    assert alone.run()[0] == 0
    for one, two in zip(alone.metrics, in_two.metrics, strict=True):
        assert (one["step"], one["epoch"], one["learning_rate"]) == (two["step"], two["epoch"], two["learning_rate"])
        # Sums of float32 in another order.
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    # AdamW moves every weight by about the learning rate a step, whatever its gradient: where that is rounding alone, the sign is
    # chance. So single weights may part by steps; the whole must not: the difference beside what was learnt, over all B.
    b = [name for name in alone.weights if "lora_B" in name]
    apart = torch.cat([(alone.weights[name] - in_two.weights[name]).flatten() for name in b])
    learnt = torch.cat([alone.weights[name].flatten() for name in b])
    assert apart.norm() < 1e-3 * learnt.norm()
    said = (in_two.folder / "said").read_text()
    assert said.count("Validation loss") == 1  # of the first process alone
    cost = [json.loads((run.folder / "train" / "artifact.json").read_text())["cost"] for run in (alone, in_two)]
    assert cost[1]["peak_memory_bytes"] > 1.5 * cost[0]["peak_memory_bytes"]  # the sum of both
    assert sorted(p.name for p in (in_two.folder / "train").iterdir()) == sorted(
        p.name for p in (alone.folder / "train").iterdir()
    )


def test_a_mean_over_rows_of_each_process_would_be_seen(in_two: Run, base: Path, tmp_path: Path) -> None:
    """The comparison above has teeth: with other rows in a step the weights part by far more."""
    other = Run(tmp_path, base, seed=1)
    assert other.run()[0] == 0
    name = next(name for name in other.weights if "lora_B" in name)
    apart = other.weights[name] - in_two.weights[name]
    assert apart.norm() > 0.1 * in_two.weights[name].norm()


def workers(run: Run, number: int = 2) -> list[psutil.Process]:
    """The processes that train, once the run has a checkpoint to go on from."""
    deadline = time.monotonic() + 400
    while not (run.partial / "checkpoints" / "checkpoint-2" / "complete").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(run.partial / FOLDER / ORDER) in (process.info["cmdline"] or [])
    ]
    assert len(found) == number
    return found


def test_a_killed_worker_ends_the_stage_and_training_goes_on_to_the_same_end(
    in_two: Run, base: Path, tmp_path: Path
) -> None:
    cut = Run(tmp_path, base, **IN_TWO)
    process = cut.start()
    first, second = sorted(workers(cut), key=lambda worker: int(worker.environ()["RANK"]))
    # Nobody outside this machine can reach them.
    assert {c.laddr.ip for p in (first, second) for c in p.net_connections("tcp")} <= {"127.0.0.1", "::1"}
    second.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 4, said
    assert "process 2 of 2 was killed by the system, most likely because memory ran out" in said
    assert "goes on from its last complete checkpoint" in said and "Traceback" not in said and "torch" not in said
    assert not first.is_running() and not (cut.folder / "train").exists()
    code, said = cut.run()
    assert code == 0 and "Going on from step" in said, said
    assert all(torch.equal(cut.weights[name], weight) for name, weight in in_two.weights.items())
    assert cut.metrics == in_two.metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_stage_that_is_ended(base: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = Run(tmp_path, base, **IN_TWO)
    process = run.start()
    found = workers(run)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL), said
    assert psutil.wait_procs(found, timeout=10)[1] == []
    assert not (run.folder / "train").exists()


def launched(run: Run, *arguments: str) -> tuple[int, Path]:
    """(exit code of `accelerate launch`, the folder of the order), with an order as the stage gives it to its processes."""
    folder = run.partial / FOLDER
    folder.mkdir()
    environment = child_environment(OMP_NUM_THREADS="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    # The launcher imports torch before it starts anything.
    order = {"parent": process.pid, "recipe": run.recipe, "step": "", "dataset": str(run.folder / "prepare"), "start": None,
             "judge": None, "own_rewards": None, "out": str(run.partial)}  # fmt: skip
    write_json(folder / ORDER, order)
    return process.wait(), folder


def test_accelerate_s_launcher_trains_the_same(in_two: Run, base: Path, tmp_path: Path) -> None:
    """The way of cards, on a CPU: its launcher, the configuration that is written for it, and the meeting in a file."""
    run = Run(tmp_path, base, **IN_TWO)
    train = Recipe.model_validate(run.recipe).train
    config = write_config(train, tmp_path / "accelerate.yaml")
    arguments = accelerate_arguments(config, tmp_path / "logs", run.partial / FOLDER / ORDER)
    code, folder = launched(run, *arguments)
    assert code == 0
    assert json.loads((folder / RESULT).read_text())["facts"]["steps"] == STEPS
    found = load_file(run.partial / "adapter_model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in in_two.weights.items())


def test_an_engine_that_starts_one_process_instead_of_two_is_refused(base: Path, tmp_path: Path) -> None:
    run = Run(tmp_path, base, **IN_TWO)
    # One process, without a word.
    silent = ("--cpu", "--num_processes", "2", "-m", WORKER, str(run.partial / FOLDER / ORDER))
    code, folder = launched(run, *silent)
    assert code != 0
    error = json.loads((folder / error_of(0)).read_text())
    assert error["message"].startswith("train.num_processes is 2, but the engine started 1")
    assert not (run.partial / "adapter_model.safetensors").exists()


def test_a_trainer_that_leaves_fsdp_out_is_refused_in_a_step_too(base: Path, tmp_path: Path) -> None:
    """A step with a reward model cannot be a recipe of its own."""
    run = Run(tmp_path, base, **{**IN_TWO, "distributed": "fsdp"})
    step = {"data": run.recipe["data"], "train": run.recipe["train"] | {"objective": "reward"}}
    run.recipe |= {"earlier": {"judge": step}}
    run.recipe["train"] |= {"objective": "rloo", "num_generations": 2}
    run.stage = "train-judge"
    (run.folder / "train.partial").rename(run.folder / "train-judge.partial")
    pairs = dataset(run.folder / "pairs", rows_for("reward"))
    publish(pairs.folder, run.folder / "prepare-judge", pairs.facts, {}, Cost())
    code, said = run.run(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert code == 5, said
    assert "train.distributed is fsdp, but the trainer does without it" in said


def test_an_error_of_the_rows_is_told_once_and_as_ever(base: Path, tmp_path: Path) -> None:
    code, said = Run(tmp_path, base, **IN_TWO, max_length=32).run()
    assert code == 3
    assert said.count("rows have more than train.max_length = 32 tokens") == 1 and "Raise train.max_length" in said
