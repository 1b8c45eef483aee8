"""A disk that is full while training saves: exit code 4 and a next step, whichever library was writing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from tests.children import child_environment
from tests.disk import largest_file
from tests.small_models import tiny_llama
from toolkit.cli import HALF_WRITTEN, translated
from toolkit.errors import ResourceError
from toolkit.models.safetensors_file import writing


def _tokenizer(path: Path) -> None:
    Tokenizer(models.BPE(vocab={f"word{i}": i for i in range(10_000)}, merges=[])).save(str(path))


WRITERS: dict[str, Callable[[Path], object]] = {
    "python": lambda path: path.write_bytes(bytes(100_000)),
    "safetensors": lambda path: save_file({"a": torch.ones(30_000)}, path),
    "torch": lambda path: torch.save({"a": torch.ones(30_000)}, path),
    "torch, a small file": lambda path: torch.save(list(range(10)), path),
    "tokenizers": _tokenizer,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_library_s_own_words_for_a_full_disk_are_known(writer: str, tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=f"no space to write {tmp_path}: ") as caught,
        writing(tmp_path),
        largest_file(100),
    ):
        WRITERS[writer](tmp_path / "file")
    assert "tune2ollama clean" in caught.value.hint
    error = caught.value.__cause__
    assert isinstance(error, Exception)
    assert isinstance(translated(error), ResourceError)


def test_bytecode_that_a_full_disk_cut_is_named_with_what_mends_it(tmp_path: Path) -> None:
    (tmp_path / "cut.py").write_text("long = " + repr(list(range(10_000))), encoding="utf-8")
    command = [sys.executable, "-c", "import cut"]
    environment = child_environment(str(tmp_path), PYTHONDONTWRITEBYTECODE="")
    with largest_file(10_000):
        subprocess.run(command, env=environment, check=True)
    (bytecode,) = (tmp_path / "__pycache__").iterdir()
    assert bytecode.stat().st_size == 10_000
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert HALF_WRITTEN in failed.stderr
    error = translated(RuntimeError(f"Failed to import cut: {failed.stderr}"))
    assert f"find {shlex.quote(sys.prefix)} -name '*.pyc' -delete" in error.hint


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot"), writing(tmp_path):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "none").read_bytes()


@pytest.mark.slow
def test_train_ends_with_exit_code_4_at_the_first_checkpoint(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    random = Random(7)
    rows = "".join(f"What is {random.randbytes(8).hex()}?,It is {random.randbytes(8).hex()}.\n" for _ in range(40))
    (tmp_path / "rows.csv").write_text("ask,answer\n" + rows, encoding="utf-8")
    recipe = {
        "name": "small", "base": str(base), "data": {"path": "rows.csv", "validation": 0.2, "test": 0.2},
        "golden": {"prompts": ["Who are you?"]},
        "train": {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 2, "warmup_steps": 0},
        "ollama": {"model": "small"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "toolkit.cli", "train", "recipe.yaml"]
    with largest_file(200_000):  # the rows fit, the adapter does not
        done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 4, done.stderr[-3000:]
    assert "no space to write runs/small/train.partial: File too large" in done.stderr
    assert "tune2ollama clean OTHER-RUN" in done.stderr
    assert "not foreseen" not in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "small" / "prepare" / "artifact.json").is_file()
