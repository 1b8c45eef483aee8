"""The loss curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.report.plot import plot_losses, plot_rewards, read_losses, read_rewards, smoothed


def _metrics(folder: Path, steps: int) -> Path:
    path = folder / "metrics.jsonl"
    lines = [{"step": i, "loss": 2 / i} for i in range(1, steps + 1)] + [{"step": steps, "note": "no loss"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_it_draws_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    assert plot_losses(_metrics(tmp_path, 30), (2.5, 1.2), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (960, 540)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert (31, 119, 180) in colours  # the smoothed curve
    assert (214, 39, 40) in colours  # the validation line


def test_without_validation_there_is_no_line(tmp_path: Path) -> None:
    from PIL import Image

    assert plot_losses(_metrics(tmp_path, 30), (None, None), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert (214, 39, 40) not in colours


@pytest.mark.parametrize("steps", [0, 1])
def test_too_few_steps_make_no_picture(tmp_path: Path, steps: int) -> None:
    assert not plot_losses(_metrics(tmp_path, steps), (None, None), tmp_path / "loss.png")
    assert not plot_losses(tmp_path / "gone.jsonl", (None, None), tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_losses_are_read_in_order(tmp_path: Path) -> None:
    assert read_losses(_metrics(tmp_path, 3)) == ([1, 2, 3], [2.0, 1.0, 2 / 3])


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smoothed([4.0, 0.0]) == pytest.approx([4.0, 4.0 * 0.8 / 1.8])
    assert smoothed([]) == []


def _rewarded(folder: Path) -> Path:
    lines: list[dict[str, float]] = [
        {"step": i, "loss": 0.0, "reward": i / 10, "reward_std": 0.5, "rewards/soft_format/mean": i / 10,
         "rewards/soft_format/std": 0.2, "rewards/accuracies": 0.5, "completions/mean_length": 9.0}
        for i in range(1, 21)
    ]  # fmt: skip
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_rewards_are_read_by_names_for_people(tmp_path: Path) -> None:
    found = read_rewards(_rewarded(tmp_path))
    assert list(found) == ["reward, all together", "reward soft_format", "pairs told rightly"]
    assert found["reward soft_format"].means[:2] == [0.1, 0.2] and found["reward soft_format"].spreads == [0.2] * 20
    assert found["pairs told rightly"].spreads == [] and found["pairs told rightly"].steps[-1] == 20


def test_it_draws_each_reward(tmp_path: Path) -> None:
    from PIL import Image

    assert plot_rewards(_rewarded(tmp_path), tmp_path / "rewards.png")
    with Image.open(tmp_path / "rewards.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= colours
    assert not plot_rewards(_metrics(tmp_path, 30), tmp_path / "none.png") and not (tmp_path / "none.png").exists()
