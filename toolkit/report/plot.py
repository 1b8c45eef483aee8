"""The curves of a training as pictures: its loss, and its rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


def read_losses(metrics: Path) -> tuple[list[int], list[float]]:
    """Steps and training losses of a metrics.jsonl; a line without a loss is left out."""
    steps, losses = [], []
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "loss" in row:
                steps.append(int(row["step"]))
                losses.append(float(row["loss"]))
    return steps, losses


def plot_losses(metrics: Path, validation: tuple[float | None, float | None], picture: Path) -> bool:
    """Draw the training loss over the steps, with the validation loss at both ends.

    Args:
        validation: before and after training, nats a token; None where it was not measured.
        picture: PNG file to write.

    Returns:
        False, and no file, when there are fewer than two steps.
    """
    steps, losses = read_losses(metrics)
    if len(steps) < 2:
        return False
    figure, axes = _figure()
    axes.plot(steps, losses, color="0.75", linewidth=1, label="training loss")
    axes.plot(steps, smoothed(losses), color="C0", linewidth=2, label="training loss, smoothed")
    ends = [(step, loss) for step, loss in zip((0, steps[-1]), validation) if loss is not None]
    if ends:
        axes.plot(*zip(*ends), color="C3", marker="o", linestyle="--", label="validation loss")
    _finish(figure, axes, "nats a token", picture)
    return True


class Curve(NamedTuple):
    """A reward over the steps."""

    steps: list[int]
    means: list[float]
    spreads: list[float]
    """Standard deviations; empty where there are none."""


def read_rewards(metrics: Path) -> dict[str, Curve]:
    """What a metrics.jsonl tells of rewards, in the order of its keys: of grpo and rloo each reward and their sum; of preference
    methods the share of pairs that are told rightly, and by what margin."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []
    found: dict[str, Curve] = {}
    for line in lines:
        for key, mean in line.items():
            name, spread = _reward_of(key)
            if name:
                curve = found.setdefault(name, Curve([], [], []))
                curve.steps.append(int(line["step"]))
                curve.means.append(float(mean))
                if spread in line:
                    curve.spreads.append(float(line[spread]))
    return found


def _reward_of(key: str) -> tuple[str, str]:
    """(what a key of the metrics is called for people, the key of its spread); empty where it is none."""
    if key == "reward":
        return "reward, all together", "reward_std"
    if key.startswith("rewards/") and key.endswith("/mean"):
        name = key.split("/")[1]
        return f"reward {name}", f"rewards/{name}/std"
    named = {
        "rewards/accuracies": "pairs told rightly",
        "rewards/margins": "margin of rewards",
        "accuracy": "pairs told rightly",
    }
    return named.get(key, ""), ""


def plot_rewards(metrics: Path, picture: Path) -> bool:
    """Draw every reward over the steps, smoothed, with the spread of the answers as a band.

    Args:
        picture: PNG file to write.

    Returns:
        False, and no file, when there are none, or fewer than two steps.
    """
    found = {name: curve for name, curve in read_rewards(metrics).items() if len(curve.steps) > 1}
    if not found:
        return False
    figure, axes = _figure()
    for number, (name, curve) in enumerate(found.items()):
        colour, means = f"C{number}", smoothed(curve.means)
        axes.plot(curve.steps, means, color=colour, linewidth=2, label=name)
        axes.plot(curve.steps, curve.means, color=colour, linewidth=0.7, alpha=0.4)
        if len(curve.spreads) == len(curve.steps) and name != "reward, all together":
            spread = smoothed(curve.spreads)
            low, high = ([m + sign * s for m, s in zip(means, spread)] for sign in (-1, 1))
            axes.fill_between(curve.steps, low, high, color=colour, alpha=0.08, linewidth=0)
    _finish(figure, axes, "mean reward (smoothed), and the spread of the answers", picture)
    return True


def _figure() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, or opened
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    return figure, axes


def _finish(figure: Any, axes: Any, what: str, picture: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step")
    axes.set_ylabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    # Many names would lie upon the curves.
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if len(axes.get_legend_handles_labels()[1]) > 3 else {}
    axes.legend(frameon=False, fontsize="small", **beside)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def smoothed(values: list[float], keep: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start (as Adam's moments: Kingma & Ba 2014, arXiv 1412.6980)."""
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found
