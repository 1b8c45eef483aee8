"""A base that thinks, through the whole chain to a real Ollama: with thoughts that were trained, and with none."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.children import child_environment
from tests.conftest import free_port
from tests.ollama.tiny import TEMPLATES
from tests.parity_chain import AFTER, ASKED, PROBLEMS, SYSTEM, trained_base
from tests.small_models import tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.ollama]
THOUGHT = "They ask about {}."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with Qwen3's template, which has learnt to answer in it."""
    folder = tiny_llama(tmp_path_factory.mktemp("base") / "thinks")
    shutil.copy(TEMPLATES / "Qwen-Qwen3-0.6B.jinja", folder / "chat_template.jinja")
    return trained_base(folder)


def run(folder: Path, base: Path, thoughts: bool, told: dict[str, Any]) -> tuple[Path, str]:
    """The chain on rows with or without thoughts; gives the run's folder and the last screen."""
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["ask", "answer", "thinking"])
        for problem in PROBLEMS:
            for asked, answer in zip(ASKED, AFTER):
                texts = (asked, answer, THOUGHT if thoughts else "")
                writer.writerow([text.format(problem) for text in texts])
    recipe = {
        "name": "small", "base": str(base), "system": SYSTEM,
        "data": {"path": "rows.csv", "columns": {"thinking": "thinking"}, "validation": 0.1, "test": 0.1},
        "train": {
            "method": "lora", "max_steps": 60, "learning_rate": 5e-3, "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1, "chat_template_kwargs": told,
        },
        "golden": {"prompts": ["What helps against a stroke?", "Is a fever dangerous?"], "from_test": 2, "max_new_tokens": 64},
        "export": {"file_types": ["F16", "Q8_0"], "serve": "F16"},
        "ollama": {"model": "small"},
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    environment = child_environment(
        HOME=str(folder), OLLAMA_MODELS=str(folder / "models"), OLLAMA_HOST=f"127.0.0.1:{free_port()}"
    )
    command = [sys.executable, "-m", "toolkit.cli", "run", "small.yaml"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "runs" / "small", done.stdout


def measures(run: Path) -> dict[str, float]:
    """What the served check measured."""
    served = json.loads((run / "create" / "served.json").read_text(encoding="utf-8"))
    return {measure["name"]: measure["value"] for check in served["checks"] for measure in check["measures"]}


def goldens(run: Path) -> list[dict[str, Any]]:
    """The recorded answers."""
    return [json.loads(line) for line in (run / "golden" / "golden.jsonl").read_text(encoding="utf-8").splitlines()]


def test_thoughts_that_were_trained_are_served(ollama_binary: Path, base: Path, tmp_path: Path) -> None:
    folder, screen = run(tmp_path, base, thoughts=True, told={})
    assert all(row["thinking"].startswith("They ask about") for row in goldens(folder))
    assert all(row["completion"].startswith("<think>\nThey ask") for row in goldens(folder))
    found = measures(folder)
    assert found["answers whose thought is told apart"] > 0
    assert found["capabilities that the template has and the server does not list"] == 0
    screen = " ".join(screen.split())
    assert "Apps that say think: false get a prompt that was not trained" in screen and "thoughts before" in screen


def test_a_base_that_was_told_not_to_think_is_served_so(ollama_binary: Path, base: Path, tmp_path: Path) -> None:
    folder, screen = run(tmp_path, base, thoughts=False, told={"enable_thinking": False})
    assert all(row["prompt_text"].endswith("<think>\n\n</think>\n\n") for row in goldens(folder))
    assert not any(row["thinking"] or "think>" in row["completion"] for row in goldens(folder))
    assert measures(folder)["golden prompts that differ"] == measures(folder)["conversations that differ"] == 0
    told = json.loads((folder / "train" / "artifact.json").read_text())["facts"]["chat_template_kwargs"]
    assert told == {"enable_thinking": False}
    assert "Apps that say nothing or say think: true or say think: false get the prompt" in " ".join(screen.split())
