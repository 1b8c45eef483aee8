"""Rows with system texts of their own, the whole way: what was trained with them is what a server writes, and what it serves by
default is the recipe's (`data.system`)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.parity_chain import AFTER, ASKED, PROBLEMS
from tests.run.here import run_here
from tests.small_models import tiny_llama
from toolkit.errors import DataError
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import read_jsonl

DAY, NIGHT, SHORT = "You are the day desk.", "You are the night desk.", "Answer in one sentence."
OWN = (NIGHT, SHORT, "")
"""System texts of the rows, in turn; every third has none."""
TRAINED = {"row": {NIGHT, SHORT, DAY}, "both": {f"{DAY}\n\n{NIGHT}", f"{DAY}\n\n{SHORT}", DAY}}


def recipe_of(folder: Path, base: Path, rule: str, own: tuple[str, ...] = OWN) -> Recipe:
    """A short training on rows with system texts, written into the folder."""
    pairs = [(q.format(p), a.format(p)) for p in PROBLEMS for q, a in zip(ASKED, AFTER)]
    rows = [{"question": q, "answer": a, "system": own[i % len(own)]} for i, (q, a) in enumerate(pairs)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Recipe.model_validate({
        "name": "desk", "base": str(base), "system": DAY,
        "data": {"path": str(folder / "rows.jsonl"), "system": rule, "validation": 0.1, "test": 0.2},
        "train": {
            "method": "lora", "max_steps": 30, "learning_rate": 1e-2, "warmup_steps": 0, "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
        },
        "golden": {"prompts": ["Is the sea blue?"], "from_test": 6, "max_new_tokens": 12},
        "export": {"file_types": ["F16"], "serve": "F16"}, "ollama": {"model": f"desk-{rule}"},
    })  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.ollama
@pytest.mark.slow
@pytest.mark.parametrize("rule", TRAINED)
def test_what_is_served_follows_from_the_rule(
    rule: str, base: Path, tmp_path: Path, ollama_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    recipe, client = recipe_of(tmp_path, base, rule), ollama_server.client
    have = run_here(recipe, tmp_path, "create")
    trained = Counter(row["prompt"][0]["content"] for row in read_jsonl(have["prepare"].folder / "train.jsonl"))
    assert set(trained) == TRAINED[rule]
    goldens = list(read_jsonl(have["golden"].folder / "golden.jsonl"))
    tested = list(read_jsonl(have["prepare"].folder / "test.jsonl"))[:6]
    assert [row["messages"] for row in goldens[1:]] == [row["prompt"] for row in tested]
    own = {row["messages"][0]["content"] for row in goldens}
    assert DAY in own and len(own) > 1  # the recipe's own prompt brings the recipe's text
    served = have["create"].facts
    assert (served.published, served.rendered_equal, served.answers_compared) == (True, 7, 7)
    try:
        assert client.show(recipe.ollama.model)["system"] == DAY
        for row in goldens:  # an app that sends a row's own text
            assert client.rendered(recipe.ollama.model, row["messages"]) == row["prompt_text"]
        (_, question), text = goldens[0]["messages"], goldens[0]["prompt_text"]
        assert client.rendered(recipe.ollama.model, [question]) == text  # one that sends none
    finally:
        client.delete(recipe.ollama.model)


def test_a_text_that_was_never_trained_with_is_not_served(base: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(DataError, match="the recipe's would be served and was never trained with") as caught:
        run_here(recipe_of(tmp_path, base, "row", (NIGHT, SHORT)), tmp_path, "prepare")
    assert "system: ''" in caught.value.hint
    run_here(recipe_of(tmp_path, base, "both", (NIGHT, SHORT)), tmp_path / "both", "prepare")
    assert "no row was trained with the recipe's system text alone" in " ".join(capsys.readouterr().err.split())
