"""The doctor, on this machine and on broken ones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.small_models import tiny_llama
from toolkit.setup import doctor
from toolkit.setup.base_finding import of_base
from toolkit.setup.bootstrap import LLAMA_CPP_PYTHON


@pytest.fixture(scope="module")
def findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.diagnose()}


def test_it_looks_at_everything(findings: dict[str, doctor.Finding]) -> None:
    assert list(findings) == [
        "system", "Python", "packages", "compiler", "GPU", "bitsandbytes", "llama.cpp decodes",
        "processes", "disk", "memory", "Ollama", "Ollama server", "llama.cpp tree", "K-quants", "embedded base",
    ]  # fmt: skip
    assert json.loads(json.dumps([asdict(f) for f in findings.values()]))[0]["name"] == "system"


def test_what_a_stage_needs_works_here(findings: dict[str, doctor.Finding]) -> None:
    assert findings["llama.cpp decodes"] == doctor.Finding(
        "llama.cpp decodes", "ok", f"one token, llama-cpp-python {LLAMA_CPP_PYTHON}"
    )
    assert findings["bitsandbytes"].status == "ok"
    assert findings["Python"].status == "ok"
    assert findings["packages"].status != "missing"


def test_a_fault_always_comes_with_a_command(findings: dict[str, doctor.Finding]) -> None:
    for finding in findings.values():
        assert (finding.command == "") == (finding.status == "ok"), finding


def test_the_report_shows_every_finding(
    findings: dict[str, doctor.Finding], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    doctor.print_findings(list(findings.values()))
    shown = capsys.readouterr().out
    for finding in findings.values():
        assert finding.name in shown
        assert finding.found in shown


def test_no_command_is_cut_or_wrapped_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tree = Path("/home/somebody/with a long name/.cache/tune2ollama/llama.cpp") / LLAMA_CPP_PYTHON
    command = f"rm -rf {tree} && make setup"
    assert len(command) > 80
    found = "what was found, told at such length that it has to be wrapped in a terminal of eighty columns"
    doctor.print_findings(
        [doctor.Finding("llama.cpp tree", "missing", found, command), doctor.Finding("disk", "ok", "")]
    )
    shown = capsys.readouterr().out.splitlines()
    assert f"  {command}" in shown
    assert not [line for line in shown if "…" in line]


def test_a_crash_of_llama_cpp_is_reported_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "_DECODE", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    finding = doctor.decode_finding(tmp_path / "model.gguf")
    assert finding.status == "missing"
    assert finding.found == "illegal instruction (SIGILL) at the first token: the wheel was built for another CPU"
    assert finding.command.startswith(f"rm -r {tmp_path / 'wheels'} .venv && make setup")


def test_a_damaged_model_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    finding = doctor.decode_finding(tmp_path / "model.gguf")
    assert finding.status == "missing"
    assert finding.found.startswith("exit code 1: ")


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "exit code 1"), (-4, "illegal instruction (SIGILL)"), (-11, "crash (SIGSEGV)"), (-9, "killed (SIGKILL)")],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert doctor.explain_exit(code) == words


def test_another_version_of_a_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = doctor.pinned_versions()
    assert pins["trl"] == "1.14.2"
    assert set(doctor.PACKAGES) <= set(pins)
    monkeypatch.setattr(doctor, "pinned_versions", lambda: {**pins, "trl": "1.15.0"})
    finding = doctor._packages()
    assert finding.status == "warn"
    assert "trl 1.14.2, not 1.15.0" in finding.found


def test_an_empty_cache_and_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._llama_cpp_tree().status == "missing"
    assert doctor._compiler().found == "no cc and no c++"
    ollama = doctor._ollama()
    assert (ollama.status, ollama.found.split(";")[0]) == ("warn", "not installed")  # it is optional: exit code 0
    assert "rebuilt at its first use" in doctor._base().found


def test_on_native_windows_it_only_says_to_use_wsl2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    (finding,) = doctor.diagnose()
    assert finding.found == "native Windows"
    assert finding.command.startswith("wsl --install")


def test_importing_it_is_light() -> None:
    program = "import sys, toolkit.setup.doctor; print([m for m in ('torch', 'numpy', 'pydantic', 'rich') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() in {"[]", "['pydantic']"}


def test_a_base_is_looked_at_before_it_is_tuned(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    assert of_base(str(base)).found == "llama.cpp converts it, as architecture llama"
    settings = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    settings["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = False  # words are no longer cut apart
    (base / "tokenizer.json").write_text(json.dumps(settings), encoding="utf-8")
    finding = of_base(str(base))
    assert (finding.status, finding.command) == ("missing", "Choose a base whose tokenizer was not changed.")
    assert finding.found == "llama.cpp does not know this tokenizer's pre-tokenizer"
    (base / "model.safetensors").unlink()
    assert of_base(str(base)).status == "missing"
