"""What `list` shows and what `clean` removes, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from toolkit.cli import cli
from toolkit.errors import ResourceError, UsageError
from toolkit.run.locks import only_run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path / "cache"))
    for stage in ("small/prepare", "small/train", "exported/train", "small/golden.partial"):
        (tmp_path / "runs" / stage).mkdir(parents=True)
        if not stage.endswith("partial"):
            (tmp_path / "runs" / stage / "artifact.json").write_text("{}", encoding="utf-8")
    (tmp_path / "cache" / "bases").mkdir(parents=True)


def _tune2ollama(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(cli, arguments, input=answer)


def _names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_list_goes_by_the_recipe_s_name_and_shows_runs_without_a_recipe() -> None:
    recipes = Path("recipes")
    recipes.mkdir()
    (recipes / "a-file.yaml").write_text("# Small → `ollama run small`.\nname: small\n", encoding="utf-8")
    (recipes / "broken.yaml").write_text("# Broken.\nname: [\n", encoding="utf-8")
    assert json.loads(_tune2ollama("list", "--json").stdout) == [
        {
            "recipe": "recipes/a-file.yaml",
            "name": "small",
            "about": "Small → `ollama run small`.",
            "state": "done: prepare, train",
        },
        {"recipe": "recipes/broken.yaml", "name": "broken", "about": "Broken.", "state": "not run yet"},
        {
            "recipe": "runs/exported/recipe.yaml",
            "name": "exported",
            "about": "no recipe of this name is here",
            "state": "done: train",
        },
    ]
    assert "done: prepare, train" in _tune2ollama("list").stdout


def test_clean_removes_the_run_that_is_named_and_no_other() -> None:
    done = _tune2ollama("clean", "small", "--yes", "--json")
    assert json.loads(done.stdout) == {"removed": ["runs/small"]}
    assert _names("runs") == ["exported"]


def test_clean_without_a_name_asks_and_removes_all_runs() -> None:
    assert _tune2ollama("clean", answer="n\n").exit_code == 1
    assert _names("runs") == ["exported", "small"]
    done = _tune2ollama("clean", answer="y\n")
    assert done.stderr.splitlines()[:2] == ["runs/exported", "runs/small"]
    assert _names("runs") == []
    assert _names("cache") == ["bases"]
    assert json.loads(_tune2ollama("clean", "--json").stdout) == {"removed": []}


def test_clean_removes_rebuilt_bases_only_when_asked() -> None:
    done = _tune2ollama("clean", "--cache", "--yes", "--json")
    assert json.loads(done.stdout)["removed"][2].endswith("/cache/bases")
    assert _names("cache") == []


def test_clean_removes_nothing_while_a_run_is_at_work() -> None:
    with only_run(Path("runs/small"), ""):
        done = _tune2ollama("clean", "--yes")
    assert isinstance(done.exception, ResourceError)
    assert done.exception.message == "another run is working in runs/small"
    assert "Nothing was removed" in done.exception.hint
    assert (Path("runs/exported/train/artifact.json")).is_file()


def test_clean_names_the_runs_that_are_there() -> None:
    done = _tune2ollama("clean", "smal")
    assert isinstance(done.exception, UsageError)
    assert done.exception.message == "there is no run smal (did you mean small?); there are: exported, small"
