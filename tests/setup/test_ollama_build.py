"""Building a real Ollama."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from toolkit.run.places import cache_home
from toolkit.setup.bootstrap import LLAMA_CPP_PYTHON, SetupError
from toolkit.setup.ollama_build import LIBRARIES, TOOLS, VERSION, build, check, main, missing


def test_a_version_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["latest"]) == 5
    assert "make ollama VERSION=0.34.1" in capsys.readouterr().err
    assert main(["1.2.3", "4"]) == 2


def test_everything_that_is_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    faults = missing(tmp_path / "cache")
    assert [fault.split(" is ")[0].split(" (")[0] for fault in faults[:3]] == ["Go", "CMake", "no C++ compiler"]
    assert faults[3].endswith("make setup")
    with pytest.raises(SetupError, match="Ollama cannot be built here"):
        build()


@pytest.mark.ollama
def test_what_is_there_is_not_built_again(ollama_binary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = cache_home() / "ollama" / VERSION
    if not home.is_dir():
        pytest.skip(f"this machine's Ollama is {ollama_binary}, not one that `make ollama` built")
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == str(home / "bin" / "ollama")
    check(home / "bin" / "ollama", VERSION)
    with pytest.raises(SetupError, match="says of itself"):
        check(home / "bin" / "ollama", "0.1.2")


@pytest.mark.ollama
@pytest.mark.slow
def test_a_build_is_whole_or_not_there(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = cache_home() / "ollama" / VERSION / "lib" / "ollama"
    if shutil.which("go") is None or not built.is_dir():
        pytest.skip("needs Go, and the tools that `make ollama` compiled")
    # Go's own caches are the user's: downloading and compiling everything anew would take minutes.
    monkeypatch.setenv("HOME", os.environ.get("REAL_HOME", str(own_home)))
    cache = tmp_path / "cache"
    other = cache / "ollama" / "0.0.0" / "lib" / "ollama"
    other.mkdir(parents=True)
    for tool in TOOLS:
        shutil.copy2(built / tool, other / tool)
    if (built.parent / LIBRARIES).is_dir():
        shutil.copytree(built.parent / LIBRARIES, other.parent / LIBRARIES)
    (other / "llama.cpp-python.version").write_text(LLAMA_CPP_PYTHON + "\n")
    (cache / "llama.cpp").mkdir()
    (cache / "llama.cpp" / LLAMA_CPP_PYTHON).symlink_to(cache_home() / "llama.cpp" / LLAMA_CPP_PYTHON)
    (cache / "ollama" / ".partial-killed").mkdir()
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(cache))
    binary = build()
    assert sorted(path.name for path in (cache / "ollama").iterdir()) == ["0.0.0", VERSION, "build.lock"]
    said = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=True)
    assert VERSION in said.stdout + said.stderr
