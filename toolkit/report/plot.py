"""The loss curve as a picture."""

from __future__ import annotations

import json
from pathlib import Path


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
    import matplotlib

    matplotlib.use("Agg")  # no display is needed, or opened
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color="0.75", linewidth=1, label="training loss")
    axes.plot(steps, smoothed(losses), color="C0", linewidth=2, label="training loss, smoothed")
    ends = [(step, loss) for step, loss in zip((0, steps[-1]), validation) if loss is not None]
    if ends:
        axes.plot(*zip(*ends), color="C3", marker="o", linestyle="--", label="validation loss")
    axes.set_xlabel("step")
    axes.set_ylabel("nats a token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
    return True


def smoothed(values: list[float], keep: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start (as Adam's moments: Kingma & Ba 2014, arXiv 1412.6980)."""
    mean, weight, found = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found
