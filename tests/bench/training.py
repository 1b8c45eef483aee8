"""Training on a CPU beside a plain script of TRL: `python -m tests.bench.training [--times 2] [--steps 12] [--where]`.

The plain script is what people write: the base in float32, PEFT's LoRA of rank 16 on all linear layers, TRL's SFTTrainer with
its loss over a padded batch. Ours is the train stage of the medical recipe, in float32 and in bfloat16, in the recipe's own
order of the rows and in the script's. All train on the same rows and take turns; printed are real tokens (without padding) a
second, the first step left out, and the losses, which have to be about the same.

--where: instead, the share of a step's time that each kind of operation takes in ours, and what this processor's matrix products
alone come to.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic as clock
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.children import ROOT, child_environment

PLAIN = """
import json, sys, time
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
base, rows, steps, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
told = []
class Told(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            told.append([time.monotonic(), state.num_input_tokens_seen, logs["loss"]])
config = SFTConfig(
    output_dir=out, per_device_train_batch_size=8, max_steps=int(steps), learning_rate=1e-3, lr_scheduler_type="cosine",
    warmup_steps=5, logging_steps=1, save_strategy="no", report_to=[], bf16=False, gradient_checkpointing=False, max_length=None,
    loss_type="nll", use_cpu=True, seed=3407, data_seed=3407, disable_tqdm=True, include_num_input_tokens_seen="non_padding",
)
trainer = SFTTrainer(
    model=model, args=config, train_dataset=Dataset.from_list(json.load(open(rows))),
    processing_class=AutoTokenizer.from_pretrained(base), callbacks=[Told()],
)
trainer.train()
print(json.dumps(told))
"""
OURS = """
import json, sys, time
from pathlib import Path
from tests.parity_chain import finished
from toolkit.recipe.reading import load_recipe
from toolkit.run.facts import DatasetFacts
from toolkit.train import progress, training
prepared, facts, out, *settings = sys.argv[1:]
told, usual = [], progress.TrainingProgress.on_log
def on_log(self, args, state, control, logs=None, **named):
    if "loss" in (logs or {}):
        told.append([time.monotonic(), state.num_input_tokens_seen, logs["loss"]])
    return usual(self, args, state, control, logs=logs, **named)
progress.TrainingProgress.on_log = on_log
recipe = load_recipe(Path("recipes/medical.yaml"), "cpu", settings)
Path(out).mkdir()
training.train(recipe, finished(Path(prepared), DatasetFacts.model_validate_json(facts)), Path(out))
print(json.dumps(told))
"""
PROFILED = """
import torch, transformers
train_step, steps, profiler = transformers.Trainer.training_step, [], torch.profiler.profile()
def training_step(self, *arguments, **named):
    steps.append(0)
    if len(steps) == 5:
        profiler.__enter__()
    loss = train_step(self, *arguments, **named)
    if len(steps) == 9:
        profiler.__exit__(None, None, None)
    return loss
transformers.Trainer.training_step = training_step
""" + OURS.replace(
    "print(json.dumps(told))",
    """
print(json.dumps([[event.key, event.self_cpu_time_total] for event in profiler.key_averages()]))""",
)
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::linear", "aten::matmul", "mkldnn::_linear"),
    "attention": ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax_backward_data"),
    "copies and other types": ("aten::copy_", "aten::_to_copy", "aten::cat", "aten::empty_strided", "aten::fill_"),
}
"""Operations of torch by the beginnings of their names."""
WAYS = {
    "plain script": None,
    "ours, float32": ["train.bf16=false", "train.train_sampling_strategy=random"],
    "ours, float32, by length": ["train.bf16=false"],
    "ours, bfloat16": ["train.train_sampling_strategy=random"],
    "ours, bfloat16, by length": [],
}


def ran(program: str, *arguments: str) -> list[Any]:
    """What the program printed: of a training (time, tokens so far, loss) of each step."""
    environment = child_environment(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def where(folder: str, facts: str, out: str) -> None:
    """Print what a step of ours in bfloat16 is spent on, and the rate of bare products."""
    spent: dict[str, float] = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for name, time in ran(PROFILED, folder, facts, out, "train.max_steps=9"):
        kind = next((kind for kind, names in KINDS.items() if str(name).startswith(names)), "everything else")
        spent[kind] += time
    table = Table("of a step", "share")
    for kind, time in spent.items():
        table.add_row(kind, f"{time / sum(spent.values()):.0%}")
    Console().print(table)
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(600, 576).to(dtype), torch.randn(1536, 576).to(dtype)
        taken = []
        for _ in range(40):
            start = clock()
            x @ weight.t()
            taken.append(clock() - start)
        print(f"600 x 576 by 576 x 1536 in {dtype}: {2 * 600 * 576 * 1536 / median(taken) / 1e9:.0f} GFLOP/s")


def speed(told: list[list[float]]) -> float:
    """Tokens a second behind the first step."""
    return (told[-1][1] - told[0][1]) / (told[-1][0] - told[0][0])


def medical() -> Any:
    """The medical recipe."""
    from toolkit.recipe.reading import load_recipe

    return load_recipe(ROOT / "recipes/medical.yaml", "cpu", [])


def prepared(scratch: Path) -> tuple[str, str]:
    """(folder of the medical recipe's dataset, its facts)."""
    from toolkit.data.prepare import prepare_dataset

    folder = scratch / "prepare"
    folder.mkdir()
    return str(folder), prepare_dataset(medical(), folder).model_dump_json()


def trained(times: int, steps: int) -> dict[str, list[Any]]:
    """What each way told, round after round; see `ran`."""
    from toolkit.models.bases import resolve_base
    from toolkit.models.tokenizer import load_tokenizer
    from toolkit.run.artifacts import read_jsonl
    from toolkit.train.rows import tokenize

    found: dict[str, list[Any]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder, facts = prepared(Path(scratch))
        base = resolve_base(medical().base).folder
        tokenizer = load_tokenizer(base)
        rows = [tokenize(tokenizer, row)[0].example() for row in read_jsonl(Path(folder) / "train.jsonl")]
        (Path(scratch) / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        for time in range(times):
            for number, (way, settings) in enumerate(WAYS.items()):
                out = f"{scratch}/{time}-{number}"
                if settings is None:
                    told = ran(PLAIN, base, f"{scratch}/rows.json", str(steps), out)
                else:
                    told = ran(OURS, folder, facts, out, f"train.max_steps={steps}", *settings)
                found[way].append(told)
                print(
                    f"{way}: {speed(told):.0f} tokens/s, losses {[round(step[2], 3) for step in told]}", file=sys.stderr
                )
    return found


def ratios(found: dict[str, list[Any]]) -> dict[str, list[float]]:
    """Of each way, its tokens a second over those of the plain script in the same round."""
    plain = found["plain script"]
    return {way: [speed(run) / speed(other) for run, other in zip(runs, plain)] for way, runs in found.items()}


def table_of(found: dict[str, list[Any]]) -> Table:
    """As it is printed: medians, and the range of the ratios."""
    table = Table("", "tokens/s", "times the plain script", "loss, first and last steps")
    for way, several in ratios(found).items():
        runs = found[way]
        losses = f"{runs[0][0][2]:.3f} … {sum(step[2] for step in runs[0][-4:]) / 4:.3f}"
        table.add_row(
            way,
            f"{median(map(speed, runs)):.0f}",
            f"{median(several):.2f} ({min(several):.2f} to {max(several):.2f})",
            losses,
        )
    return table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--where", action="store_true")
    asked = parser.parse_args()
    if not asked.where:
        Console(width=100).print(table_of(trained(asked.times, asked.steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        where(*prepared(Path(scratch)), f"{scratch}/where")


if __name__ == "__main__":
    main()
