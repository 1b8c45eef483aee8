"""A base that thinks, through the whole chain to a real Ollama: with thoughts that were trained, and with none."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.ollama.tiny import TEMPLATES
from tests.parity_chain import AFTER, ASKED, PROBLEMS, SYSTEM, trained_base
from tests.run.here import run_here
from tests.small_models import tiny_llama
from toolkit.recipe.schema import Recipe
from toolkit.report.report import print_last_screen
from toolkit.run.artifacts import Artifact, read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.ollama]
THOUGHT = "They ask about {}."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with Qwen3's template, which has learnt to answer in it."""
    folder = tiny_llama(tmp_path_factory.mktemp("base") / "thinks")
    shutil.copy(TEMPLATES / "Qwen-Qwen3-0.6B.jinja", folder / "chat_template.jinja")
    return trained_base(folder)


@pytest.fixture
def run(
    ollama_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Path, bool, dict[str, Any]], tuple[dict[str, Artifact[Any]], str]]]:
    """The chain on rows with or without thoughts; gives what the stages left, and the last screen."""
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)

    def go(base: Path, thoughts: bool, told: dict[str, Any]) -> tuple[dict[str, Artifact[Any]], str]:
        recipe = recipe_of(tmp_path, base, thoughts, told)
        have = run_here(recipe, tmp_path)
        capsys.readouterr()
        print_last_screen(recipe, have)
        return have, " ".join(capsys.readouterr().out.split())

    yield go
    if "small:latest" in ollama_server.client.models():
        ollama_server.client.delete("small")


def recipe_of(folder: Path, base: Path, thoughts: bool, told: dict[str, Any]) -> Recipe:
    """A short training on rows that are written into the folder."""
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["ask", "answer", "thinking"])
        for problem in PROBLEMS:
            for asked, answer in zip(ASKED, AFTER):
                texts = (asked, answer, THOUGHT if thoughts else "")
                writer.writerow([text.format(problem) for text in texts])
    return Recipe.model_validate({
        "name": "small", "base": str(base), "system": SYSTEM,
        "data": {"path": str(folder / "rows.csv"), "columns": {"thinking": "thinking"}, "validation": 0.1, "test": 0.1},
        "train": {
            "method": "lora", "max_steps": 60, "learning_rate": 5e-3, "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1, "chat_template_kwargs": told,
        },
        "golden": {"prompts": ["What helps against a stroke?", "Is a fever dangerous?"], "from_test": 2, "max_new_tokens": 64},
        "export": {"file_types": ["F16", "Q8_0"], "serve": "F16"},
        "ollama": {"model": "small"},
    })  # fmt: skip


def measures(have: dict[str, Artifact[Any]]) -> dict[str, float]:
    """What the served check measured."""
    served = json.loads((have["create"].folder / "served.json").read_text(encoding="utf-8"))
    return {measure["name"]: measure["value"] for check in served["checks"] for measure in check["measures"]}


def goldens(have: dict[str, Artifact[Any]]) -> list[dict[str, Any]]:
    """The recorded answers."""
    return list(read_jsonl(have["golden"].folder / "golden.jsonl"))


def test_thoughts_that_were_trained_are_served(run: Any, base: Path) -> None:
    have, screen = run(base, thoughts=True, told={})
    assert all(row["thinking"].startswith("They ask about") for row in goldens(have))
    assert all(row["completion"].startswith("<think>\nThey ask") for row in goldens(have))
    found = measures(have)
    assert found["answers whose thought is told apart"] > 0
    assert found["capabilities that the template has and the server does not list"] == 0
    assert "Apps that say think: false get a prompt that was not trained" in screen and "thoughts before" in screen


def test_a_base_that_was_told_not_to_think_is_served_so(run: Any, base: Path) -> None:
    have, screen = run(base, thoughts=False, told={"enable_thinking": False})
    assert all(row["prompt_text"].endswith("<think>\n\n</think>\n\n") for row in goldens(have))
    assert not any(row["thinking"] or "think>" in row["completion"] for row in goldens(have))
    assert measures(have)["golden prompts that differ"] == measures(have)["conversations that differ"] == 0
    assert have["train"].facts.chat_template_kwargs == {"enable_thinking": False}
    assert "Apps that say nothing or say think: true or say think: false get the prompt" in screen
