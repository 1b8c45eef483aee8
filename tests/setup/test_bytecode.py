"""Compiled modules that one environment leaves to the next."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from toolkit.setup import bytecode


def package(folder: Path, text: str = "x = 1\n") -> Path:
    """A package of one module, as an installer leaves it: nothing compiled."""
    (folder / "tale").mkdir(parents=True)
    (folder / "tale" / "__init__.py").write_text(text, encoding="utf-8")
    os.utime(folder / "tale" / "__init__.py", (1_700_000_000, 1_700_000_000))
    return folder


def compiled(packages: Path) -> Path:
    return Path(cache_from_source(str(packages / "tale" / "__init__.py")))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    first = package(tmp_path / "first")
    py_compile.compile(str(first / "tale" / "__init__.py"))
    assert bytecode.keep(first, tmp_path / "cache" / "key") == 1
    return tmp_path / "cache" / "key"


def test_the_next_environment_imports_what_the_first_compiled(kept: Path, tmp_path: Path) -> None:
    second = package(tmp_path / "second")
    assert bytecode.put_back(kept, second) == 1
    program = "import sys, tale; print(tale.x, tale.__cached__)"
    done = subprocess.run(
        [sys.executable, "-v", "-c", program],
        env={**os.environ, "PYTHONPATH": str(second)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", str(compiled(second))]
    assert f"# {compiled(second)} matches {second / 'tale' / '__init__.py'}" in done.stderr
    assert bytecode.put_back(kept, second) == 0  # all there


@pytest.mark.parametrize("change", ["text", "time", "gone"])
def test_of_another_source_it_is_not_taken(kept: Path, tmp_path: Path, change: str) -> None:
    second = package(tmp_path / "second", "x = 22\n" if change == "text" else "x = 1\n")
    source = second / "tale" / "__init__.py"
    if change == "time":
        os.utime(source, (1_700_000_009, 1_700_000_009))
    if change == "gone":
        source.unlink()
    assert bytecode.put_back(kept, second) == 0
    assert not compiled(second).exists()


def test_a_damaged_one_is_not_taken(kept: Path, tmp_path: Path) -> None:
    (one,) = kept.glob("**/*.pyc")
    one.write_bytes(b"cut")
    assert bytecode.put_back(kept, package(tmp_path / "second")) == 0


def test_what_was_kept_half_is_not_there(kept: Path, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("a==1\n", encoding="utf-8")
    before = bytecode.kept(tmp_path, pins)
    assert bytecode.kept(tmp_path, pins) == before
    pins.write_text("a==2\n", encoding="utf-8")
    assert bytecode.kept(tmp_path, pins) != before
    # Of a set-up that was killed: it goes with the next.
    left = kept.with_name("key.partial") / "tale"
    left.mkdir(parents=True)
    (left / "old.pyc").write_bytes(b"")
    bytecode.keep(package(tmp_path / "third"), kept)
    assert not left.exists() and not list(kept.rglob("*.pyc"))
