"""What an export asks about a base is known when training ends: asked of what the training foretold, and not asked again."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.parity_chain import finished
from tests.small_models import tiny_llama
from tests.train.test_training import make_dataset, make_recipe, make_rows
from toolkit.export.ahead import ask_ahead
from toolkit.export.straight import convert_straight
from toolkit.models.bases import resolve_base
from toolkit.models.tokenizer import load_tokenizer
from toolkit.run.ahead import FOLDER, Ahead, foretell
from toolkit.run.places import cache_home
from toolkit.run.stage_processes import stage_environment
from toolkit.train import training

ASKED = ("layouts", "nf4", "settings", "structures")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base", layers=1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that knows nothing of any base."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("llama.cpp", "sources", "k_quants"):
        if (cache_home() / name).exists():
            (folder / name).symlink_to(cache_home() / name)
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(folder))
    return folder


def known(home: Path) -> set[Path]:
    return {path for name in ASKED for path in (home / name).rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_export_asks_nothing_that_was_asked_ahead(
    method: str, base: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_at_once(out: Path, *told: Any) -> None:
        foretell(out, *told)
        ask_ahead(out / FOLDER)

    monkeypatch.setattr(training, "foretell", asked_at_once)
    recipe = make_recipe(base, method=method)
    for name in ("train", "convert"):
        (tmp_path / name).mkdir()
    facts = training.train(recipe, make_dataset(tmp_path / "rows", make_rows(12)), tmp_path / "train")
    assert not (tmp_path / "train" / FOLDER).exists()
    before = known(home)
    held = {path.relative_to(home).parts[0] for path in before}
    assert held == {*ASKED} - ({"nf4"} if method == "lora" else set())
    convert_straight(recipe, finished(tmp_path / "train", facts), tmp_path / "convert")
    assert known(home) == before


def told(out: Path, base: Path) -> None:
    foretell(out, resolve_base(str(base)), load_tokenizer(base), {}, "float32", None, sees=False)


def test_it_is_asked_beside_the_stage_that_foretells(base: Path, home: Path, tmp_path: Path) -> None:
    with Ahead() as ahead:
        ahead.watch(tmp_path / "train", stage_environment())
        (tmp_path / "train").mkdir()
        told(tmp_path / "train", base)
        while ahead._process is None:
            time.sleep(0.05)
        ahead.wait()
    assert {path.name for path in home.iterdir()} >= {"layouts", "settings", "structures"}


def test_what_was_not_foretold_is_not_waited_for(tmp_path: Path) -> None:
    with Ahead() as ahead:
        ahead.wait()
        ahead.watch(tmp_path, stage_environment())
        ahead.wait()
        assert ahead._process is None


def test_it_ends_with_the_run(base: Path, home: Path, tmp_path: Path) -> None:
    told(tmp_path, base)
    with Ahead() as ahead:
        ahead.watch(tmp_path, stage_environment())
        while ahead._process is None:
            time.sleep(0.05)
        child = psutil.Process(ahead._process.pid)
        assert child.ppid() == os.getpid()
    assert ahead._process.returncode
    assert not child.is_running()
    shutil.rmtree(tmp_path / FOLDER)
    assert not (home / "layouts").exists() or not any((home / "layouts").glob("*/layout.json"))
