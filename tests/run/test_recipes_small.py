"""Recipes of this project, as they stand, with a small base and few steps: to a served model and its figures.

Like medical is the whole of test_pipeline.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Server
from tests.run.here import run_here
from tests.seeing_models import seeing_model
from tests.small_models import tiny_llama
from toolkit.recipe.reading import load_recipe
from toolkit.run.artifacts import read_jsonl

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = [
    "train.learning_rate=0.01", "train.max_steps=40", "train.warmup_steps=0", "train.per_device_train_batch_size=4",
    "golden.max_new_tokens=32", "evaluate.rows=6", "evaluate.forgetting=false", "export.file_types=[F16]", "export.serve=F16",
]  # fmt: skip
FIRST = {
    "r1": ["earlier.format.data.max_rows=24", "earlier.format.train.max_steps=60", "earlier.format.train.learning_rate=0.01",
           "train.max_steps=2", "train.learning_rate=0.001", "train.max_completion_length=24", "golden.max_new_tokens=64"],
    "polite": ["earlier.answers.train.max_steps=120", "earlier.answers.train.learning_rate=0.01", "train.max_steps=4",
               "train.learning_rate=0.001"],
    "tools": ["data.max_rows=40", "train.max_steps=140", "golden.max_new_tokens=64"],
    # Answers are short, so that it takes many to tell.
    "car_insurance": ["golden.from_test=12", "golden.max_new_tokens=12", "train.per_device_train_batch_size=2",
                      "train.max_steps=20", "data.validation=0.05", "data.test=0.07", "evaluate.rows=4"],
}  # fmt: skip
"""Of recipes with a step before, that one learns, the other only has to run; calls are longer than other answers."""
FIGURES = {"r1": "reward, all together", "polite": "pairs won against the base"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def seeing_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_model(tmp_path_factory.mktemp("seeing") / "base", "qwen2_5_vl")


def test_all_recipes_are_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {
        "medical",
        "alpaca",
        "tools",
        "r1",
        "polite",
        "car_insurance",
    }


@pytest.mark.ollama
@pytest.mark.slow
@pytest.mark.parametrize("name", ["alpaca", "tools", "r1", "polite", "car_insurance"])
def test_a_recipe_ends_with_a_served_model(
    name: str, base: Path, seeing_base: Path, tmp_path: Path, ollama_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    monkeypatch.chdir(RECIPES.parent)
    few = FIRST.get(name, ["data.max_rows=40"])
    base = seeing_base if name == "car_insurance" else base
    recipe = load_recipe(RECIPES / f"{name}.yaml", "cpu", [f"base={base}", *SHORT, *few])
    have = run_here(recipe, tmp_path)
    try:
        created = have["create"].facts
        goldens = list(read_jsonl(have["golden"].folder / "golden.jsonl"))
        assert created.published and created.rendered_equal == len(goldens)
        told = json.loads((have["evaluate"].folder / "evaluation.json").read_text(encoding="utf-8"))
        names = [figure["name"] for figure in told["figures"]]
        assert FIGURES.get(name, "held-out loss") in names, names
        assert "served" in told["figures"][0]["subjects"] or name == "polite"
    finally:
        ollama_server.client.delete(recipe.ollama.model)
