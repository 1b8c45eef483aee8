"""Questions to the pinned tree: from a process of its own, and forked from one that has it loaded."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.small_models import tiny_llama
from toolkit.errors import DataError, ExternalToolError
from toolkit.export.llama_cpp import ask_converter, converter_environment, run_in_tree, tree
from toolkit.export.tree_process import _asked, loaded_tree, tree_worker
from toolkit.models.gguf_file import read_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process is that has not asked yet."""
    monkeypatch.setattr(_asked, "times", 0)
    monkeypatch.setattr(_asked, "loaded", None)


def architecture(model: Path, out: Path) -> str:
    out.mkdir()
    ask_converter(model, out, "architecture")
    return str(json.loads((out / "layout.json").read_text(encoding="utf-8"))["architecture"])


def loaded_processes() -> list[int]:
    children = psutil.Process().children()
    return [child.pid for child in children if "toolkit.export.tree_process" in child.cmdline()]


@pytest.mark.usefixtures("nothing_loaded")
def test_one_is_loaded_for_all_that_is_asked_and_ends_with_it(model: Path, tmp_path: Path) -> None:
    before = set(loaded_processes())
    assert architecture(model, tmp_path / "alone") == "llama"
    assert set(loaded_processes()) == before
    with loaded_tree():
        assert architecture(model, tmp_path / "first") == "llama"
        (first,) = set(loaded_processes()) - before
        with loaded_tree():
            assert architecture(model, tmp_path / "second") == "llama"
        assert set(loaded_processes()) - before == {first}
    assert set(loaded_processes()) == before


@pytest.mark.usefixtures("nothing_loaded")
def test_nothing_is_loaded_for_what_needs_nothing(tmp_path: Path) -> None:
    (tmp_path / "tale").mkdir()
    (tmp_path / "told.json").write_text(json.dumps({"general.name": "Tale"}), encoding="utf-8")
    before = set(loaded_processes())
    with loaded_tree():
        run_in_tree(
            "naming_worker", *map(str, (tmp_path / "tale", tmp_path / "names.gguf", tmp_path / "told.json")), "9,9,0,0"
        )
        assert set(loaded_processes()) == before
    assert read_gguf(tmp_path / "names.gguf").metadata["general.name"] == "Tale"


def test_what_it_dies_of_is_told(model: Path, tmp_path: Path) -> None:
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "odd").mkdir()
    odd = {**settings, "architectures": ["NobodysForCausalLM"]}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(odd), encoding="utf-8")
    with loaded_tree():
        with pytest.raises(DataError, match="does not know the architecture NobodysForCausalLM"):
            architecture(tmp_path / "odd", tmp_path / "out")
        with pytest.raises(ExternalToolError, match=r"No module named toolkit\.export\.nothing"):
            run_in_tree("nothing")
        assert architecture(model, tmp_path / "after") == "llama"


@pytest.mark.usefixtures("nothing_loaded")
def test_killed_it_is_loaded_anew(model: Path, tmp_path: Path) -> None:
    with loaded_tree():
        before = set(loaded_processes())
        assert architecture(model, tmp_path / "first") == "llama"
        (first,) = set(loaded_processes()) - before
        os.kill(first, signal.SIGKILL)
        while psutil.pid_exists(first) and psutil.Process(first).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert architecture(model, tmp_path / "second") == "llama"


def test_work_that_is_given_up_ends_its_process(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with loaded_tree():
        with (
            pytest.raises(KeyboardInterrupt),
            tree_worker(
                "layout_worker", str(model), str(tmp_path / "out"), environment=converter_environment(tree())
            ) as worker,
        ):
            raise KeyboardInterrupt
        assert worker.stderr.closed
        assert not any(
            "layout_worker" in " ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)
        )
        assert architecture(model, tmp_path / "after") == "llama"
