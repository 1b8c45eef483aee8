"""Progress of a training run: a bar on stderr, a line per step in metrics.jsonl, and a stop when the numbers break.

metrics.jsonl: step, epoch, loss, grad_norm, learning_rate; and of what the objective has, as TRL calls it: reward, reward_std,
rewards/<name>/mean and /std (grpo, rloo), rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies (preferences),
kl, entropy, completions/mean_length, completions/clipped_ratio, accuracy, margin. Where held-out rows are looked at while
training, a line of its own for each look: step, epoch, eval_loss.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from toolkit.errors import DataError
from toolkit.recipe.training import Objective
from toolkit.run.artifacts import write_text
from toolkit.train.world import is_first, wait_for_all

COMPLETE = "complete"
"""A checkpoint folder that holds a file of this name was written to its end."""

SPREADLESS_STEPS = 10
"""After so many steps in which all answers to a prompt were worth the same, it is said that nothing is learnt."""
_BESIDE = ("reward", "reward_std", "kl", "entropy", "accuracy", "margin", "frac_reward_zero_std")
_GROUPS = ("rewards/", "completions/")

SECONDS_BETWEEN_LINES = 15
"""Where no terminal draws the bar (a log file), a line now and then."""


class TrainingProgress(TrainerCallback):  # type: ignore[misc]
    """Shows loss, tokens/s and remaining time; keeps metrics.jsonl; marks complete checkpoints. Of processes that train together
    the first does so; the others stop when the numbers break, as it does."""

    def __init__(self, metrics: Path, objective: Objective = "sft") -> None:
        self.metrics, self.objective = metrics, objective
        self._spreadless: int | None = 0
        """Steps without a spread of rewards, from the first on; None: there was one, or it was told."""
        self.bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=Console(stderr=True),
            disable=not is_first(),
        )
        self.task: Any = None
        self._steps_here = 0
        self._started = 0.0
        self._first_step: tuple[float, int] = (0.0, 0)
        """(seconds, tokens) of it: a card's kernels are compiled in it, so it does not foretell the others."""
        self._all_steps: tuple[float, int] = (0.0, 0)
        self._tokens_before = 0
        self._last_line = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar at the step that training starts or goes on from."""
        self._tokens_before = state.num_input_tokens_seen
        self.task = self.bar.add_task("train", total=state.max_steps, completed=state.global_step, note="first step …")
        self.bar.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock of this step; evaluation and saving are not counted as training."""
        self._started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        self._steps_here += 1
        seconds = self._all_steps[0] + time.monotonic() - self._started
        self._all_steps = (seconds, state.num_input_tokens_seen - self._tokens_before)
        if self._steps_here == 1:
            self._first_step = self._all_steps
        self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a line of metrics.

        Raises:
            DataError: the loss or the gradient is no number any more.
        """
        if logs is not None and "eval_loss" in logs:
            self._look(state, logs)
        if logs is None or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise DataError(
                    f"step {state.global_step}: {name} is {logs[name]}; training has broken down",
                    _mend(self.objective, last_complete_checkpoint(Path(args.output_dir))),
                )
        if not is_first():
            return
        told = {
            name: value
            for name, value in sorted(logs.items())
            if (name in _BESIDE or name.startswith(_GROUPS)) and isinstance(value, int | float)
        }
        line = {
            "step": state.global_step,
            "epoch": logs.get("epoch"),
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs.get("learning_rate"),
            **told,
        }  # no times: the same training leaves the same file
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        note = self._note(line)
        self.bar.update(self.task, note=note)
        if not self.bar.console.is_terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            seconds, _, steps = self._after_the_first()
            left = seconds / steps * (state.max_steps - state.global_step)
            self.bar.console.print(f"  step {state.global_step}/{state.max_steps} · {note} · {left:.0f} s left")

    def _look(self, state: Any, logs: dict[str, Any]) -> None:
        line = {"step": state.global_step, "epoch": logs.get("epoch"), "eval_loss": logs["eval_loss"]}
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.bar.console.print(f"  step {state.global_step}: loss of held-out rows {logs['eval_loss']:.3f}")

    def _note(self, line: dict[str, Any]) -> str:
        if "reward" in line:
            self._watch_spread(line)
            return f"reward {line['reward']:.2f} ± {line['reward_std']:.2f}"
        note = f"loss {line['loss']:.3f}"
        if "rewards/accuracies" in line:
            note += f" · {line['rewards/accuracies']:.0%} of pairs right, margin {line['rewards/margins']:.2f}"
        elif "accuracy" in line:
            note += f" · {line['accuracy']:.0%} of pairs right"
        return note + (f" · {self.tokens_per_second:.0f} tokens/s" if self.tokens_per_second else "")

    def _watch_spread(self, line: dict[str, Any]) -> None:
        if self._spreadless is None:
            return
        if line["reward_std"] > 0:
            self._spreadless = None
            return
        self._spreadless += 1
        if self._spreadless == SPREADLESS_STEPS:
            self._spreadless = None
            self.bar.console.print(
                f"In {SPREADLESS_STEPS} steps all answers to a prompt were worth the same ({line['reward']:.2f}), so nothing is "
                "learnt. Give the model a step of sft on the form of the answers first (earlier: in the recipe), rewards that "
                "are given in parts, easier prompts, or more answers to each: --set train.num_generations=8",
                style="yellow", markup=False, highlight=False,
            )  # fmt: skip

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint that was just written as whole: each process has written its part."""
        wait_for_all()
        if is_first():
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar.stop()

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens (prompt and answer, without padding) per second of training."""
        seconds, tokens, _ = self._after_the_first()
        return tokens / seconds if seconds else 0.0

    def _after_the_first(self) -> tuple[float, int, int]:
        """(seconds, tokens, steps) of all steps but the first; of the first while there is no other."""
        (seconds, tokens), steps = self._all_steps, max(self._steps_here, 1)
        if steps == 1:
            return seconds, tokens, 1
        return seconds - self._first_step[0], tokens - self._first_step[1], steps - 1


def _mend(objective: Objective, checkpoint: Path | None) -> str:
    """What to lower when the numbers break."""
    first = "Lower train.learning_rate; if it stays, set train.bf16=false."
    if objective in ("orpo", "simpo"):
        first += " Or lower train.beta."
    if objective in ("grpo", "rloo"):
        first += " Or raise train.beta, which holds the model to where it began."
    kept = f" The last good checkpoint is kept: {checkpoint}" if checkpoint else ""
    return first + kept


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [p for p in folder.glob("checkpoint-*") if (p / COMPLETE).is_file()]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def cut_metrics(metrics: Path, step: int) -> None:
    """Drop lines after `step`: training goes on from there and writes them again."""
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # the line that was being written when the run was killed
            continue
    write_text(metrics, "".join(kept))
