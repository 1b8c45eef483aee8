"""Set-up: what can be checked without doing the long parts again."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from toolkit.setup import bootstrap

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = Path(bootstrap.__file__).parents[2]


def pins(*files: Path) -> dict[str, Requirement]:
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in found if r.marker is None or r.marker.evaluate()}


def test_the_constraints_pin_every_package_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert sorted(extras) == ["dev", "evaluation", "gpu", "train"]
    pinned = pins(bootstrap.CONSTRAINTS, bootstrap.GPU_CONSTRAINTS)
    listed = [*project["dependencies"], *(text for extra in extras.values() for text in extra)]
    assert "unsloth" in {Requirement(text).name for text in listed}
    for wanted in map(Requirement, listed):
        if wanted.name in {"tune2ollama", "llama-cpp-python", "lm-eval"}:  # lm-eval is no part of what is set up
            continue
        exact = next(iter(pinned[canonicalize_name(wanted.name)].specifier))
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version), (
            f"{wanted} is not met by {exact}: compile the constraints again"
        )


def test_the_pins_that_decide_between_working_and_crashing() -> None:
    pinned = {name: str(requirement.specifier) for name, requirement in pins(bootstrap.CONSTRAINTS).items()}
    assert pinned["trl"] == "==1.14.2"
    assert pinned["torch"] == "==2.14.1"
    assert version("llama-cpp-python") == bootstrap.LLAMA_CPP_PYTHON
    assert f'"llama-cpp-python=={bootstrap.LLAMA_CPP_PYTHON}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_what_only_a_card_needs_is_pinned_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    always, with_card = pins(bootstrap.CONSTRAINTS), pins(bootstrap.GPU_CONSTRAINTS)
    assert str(with_card["unsloth"].specifier) == str(with_card["unsloth-zoo"].specifier) == "==2026.10.7"
    assert not always.keys() & with_card.keys()
    steps: dict[str, list[str]] = {}
    monkeypatch.setattr(bootstrap, "run", lambda step, command, *_: steps.update({step: [str(c) for c in command]}))
    monkeypatch.setattr(bootstrap, "make_venv", lambda: ["install"])
    monkeypatch.setattr(bootstrap, "_llama_cpp", lambda _: tmp_path / "x.whl")
    monkeypatch.setattr(bootstrap, "compile_modules", lambda _: None)
    for card in (False, True):
        steps.clear()
        monkeypatch.setattr(bootstrap, "_wants_gpu", lambda card=card: card)
        bootstrap.install(tmp_path)
        named = [step for step, command in steps.items() if str(bootstrap.GPU_CONSTRAINTS) in command]
        assert named == (["install gpu extra"] if card else [])


def test_a_bare_machine_is_told_everything_that_is_missing_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(bootstrap, "DISK_BYTES", 2**60)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    faults = bootstrap.check_machine((3, 9, 18), tmp_path / "cache")
    text = "\n".join(faults)
    assert "Python 3.9.18 is too old" in text
    assert "no C compiler (cc)" in text
    assert "no C++ compiler (c++)" in text
    assert "GiB free and set-up needs" in text


def test_this_machine_is_good_enough(tmp_path: Path) -> None:
    assert bootstrap.check_machine(tuple(sys.version_info[:3]), tmp_path) == []


def test_a_step_that_fails_shows_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    monkeypatch.setattr(bootstrap, "HEARTBEAT_SECONDS", 0.2)
    program = "import time; print('[7/9] Building', flush=True); time.sleep(0.7); raise SystemExit('no such header')"
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.run("compile it", [sys.executable, "-c", program])
    assert "compile it failed (exit code 1)" in str(caught.value)
    assert "no such header" in str(caught.value)
    assert str(tmp_path / "logs" / "compile-it.log") in str(caught.value)
    assert re.search(r"compile it: \d+ s … \[7/9\] Building", capsys.readouterr().err)


def test_a_slow_machine_sees_the_log_of_its_new_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "HEARTBEAT_SECONDS", 0.05)
    (tmp_path / ".venv" / "left").mkdir(parents=True)
    bootstrap.new_venv()
    assert "virtual environment: 0 s …" in capsys.readouterr().err
    assert (tmp_path / ".venv" / "bin" / "python").exists() and not (tmp_path / ".venv" / "left").exists()


def _source(folder: Path, name: str, content: bytes) -> Path:
    path = folder / f"llama_cpp_python-{bootstrap.LLAMA_CPP_PYTHON}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"llama_cpp_python-{bootstrap.LLAMA_CPP_PYTHON}/{name}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


def test_the_tree_is_unpacked_whole_and_once(tmp_path: Path) -> None:
    source = _source(tmp_path, "vendor/llama.cpp/conversion/base.py", b"x = 1\n")
    tree = bootstrap.unpack_tree(source, tmp_path)
    assert tree == tmp_path / "llama.cpp" / bootstrap.LLAMA_CPP_PYTHON
    assert (tree / "conversion" / "base.py").read_text(encoding="utf-8") == "x = 1\n"
    source.unlink()
    assert bootstrap.unpack_tree(source, tmp_path) == tree
    assert [p.name for p in tree.parent.iterdir()] == [tree.name]


def test_a_name_that_leads_out_of_the_tree_is_refused(tmp_path: Path) -> None:
    source = _source(tmp_path, "vendor/llama.cpp/../../../../../evil", b"")
    with pytest.raises(tarfile.FilterError):
        bootstrap.unpack_tree(source, tmp_path / "cache")
    assert not (tmp_path / "cache" / "llama.cpp" / bootstrap.LLAMA_CPP_PYTHON).exists()
    assert not (tmp_path / "evil").exists()


def test_a_cached_source_with_other_bytes_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    _source(tmp_path / "sources", "vendor/llama.cpp/x", b"x")
    monkeypatch.setattr(bootstrap, "VENV", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(bootstrap.SetupError, match="download llama-cpp-python failed"):
        bootstrap.fetch_source(tmp_path)


@pytest.mark.skipif(not (bootstrap.VENV / ".ready").exists(), reason="this clone was not set up with make setup")
def test_a_second_set_up_has_nothing_to_do() -> None:
    command = [sys.executable, "-m", "toolkit.setup.bootstrap"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert again.stderr == again.stdout == ""


def test_help_names_every_target() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z0-9_]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets == [
        "help",
        "setup",
        "medical",
        "alpaca",
        "tools",
        "r1",
        "polite",
        "car_insurance",
        "ollama",
        "test",
        "lint",
        "bench",
        "clean",
    ]
    for target in targets:
        assert re.search(rf"^make {target}  +\S", shown, re.MULTILINE), target
