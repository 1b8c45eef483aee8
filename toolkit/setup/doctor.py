"""What is installed here, what is missing, and the command that mends it.

Whatever could crash or take long (llama.cpp, bitsandbytes, CUDA) is tried in a child process, all at the same time.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.errors import ToolkitError
from toolkit.models.embedded import BUILD, NAME, find_gguf
from toolkit.run.hardware import free_disk_bytes, is_wsl, read_hardware
from toolkit.run.places import cache_home
from toolkit.setup.bootstrap import CONSTRAINTS, DISK_BYTES, LLAMA_CPP_PYTHON, OLDEST_PYTHON

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "gguf", "ollama", "llama-cpp-python",
)  # fmt: skip
TRY_SECONDS = 180
REBUILD_WHEEL = "rm -r {wheels} .venv && make setup"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    status: Literal["ok", "warn", "missing"]
    found: str
    command: str = ""
    """What mends it; empty when all is well."""


def diagnose() -> list[Finding]:
    """Look at everything; takes some seconds. On native Windows only says to use WSL2."""
    if sys.platform == "win32":
        return [
            Finding(
                "system", "missing", "native Windows", "wsl --install   (then clone and run make setup inside WSL2)"
            )
        ]
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(check) for check in (_gpu, _bitsandbytes, _llama_cpp_decodes)]
        quick = [_system(), _python(), _packages(), _compiler()]
        rest = [
            _processes(), _disk(), _memory(), _ollama(), _ollama_server(), _llama_cpp_tree(), _k_quants(), _base(),
        ]  # fmt: skip
        return quick + [check.result() for check in slow] + rest


def print_findings(findings: list[Finding]) -> None:
    """The report on standard output; commands stand on lines of their own, where no terminal cuts them."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(findings_table(findings))
    for finding in findings:
        if finding.command:
            console.print(Text(f"{finding.name}: {finding.found}. Mend it with:"))
            console.print(Text(f"  {finding.command}", "bold"), soft_wrap=True)


def findings_table(findings: list[Finding]) -> Table:
    """The report as a rich table."""
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "missing": "red"}
    table = Table("what", "", "found")
    table.columns[2].overflow = "fold"
    for finding in findings:
        table.add_row(finding.name, Text(finding.status, colours[finding.status]), Text(finding.found))
    return table


def pinned_versions() -> dict[str, str]:
    """Package → version, as the constraints pin it (those that are the same on every platform)."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and ";" not in line and not line.startswith("#"))
    return {**{name: version for name, version in pins}, "llama-cpp-python": LLAMA_CPP_PYTHON}


def explain_exit(code: int) -> str:
    """What the exit code of a child process means; a crash is a negative signal number."""
    if code >= 0:
        return f"exit code {code}"
    meanings = {signal.SIGILL: "illegal instruction", signal.SIGSEGV: "crash", signal.SIGABRT: "aborted"}
    number = signal.Signals(-code)
    return f"{meanings.get(number, 'killed')} ({number.name})"


def _try(program: str, *arguments: str) -> tuple[int, str]:
    """Run a small program in a child process; its exit code and the last line that it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONFAULTHANDLER": ""}
    command = [sys.executable, "-c", program, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRY_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {TRY_SECONDS} s"
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return done.returncode, lines[-1].strip() if lines else ""


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _system() -> Finding:
    if not is_wsl():
        return Finding("system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    if "wsl2" not in platform.release().lower():
        return Finding("system", "warn", f"WSL 1 ({platform.release()})", "wsl --set-version <distribution> 2")
    return Finding("system", "ok", f"WSL2 ({platform.release()})")


def _python() -> Finding:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Finding("Python", "missing", found, "make setup PYTHON=python3.11")
    return Finding("Python", "ok", found)


def _packages() -> Finding:
    pins, missing, other = pinned_versions(), [], []
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        # A local build tag (2.14.1+cu130) is the same version.
        if version.partition("+")[0] != pins[name]:
            other.append(f"{name} {version}, not {pins[name]}")
    if missing:
        return Finding("packages", "missing", f"not installed: {', '.join(missing)}", "make setup")
    if other:
        return Finding("packages", "warn", "; ".join(other), "rm .venv/.ready && make setup")
    return Finding("packages", "ok", f"{len(PACKAGES)} that matter are the pinned ones")


def _compiler() -> Finding:
    missing = [tool for tool in ("cc", "c++") if shutil.which(tool) is None]
    if missing:
        return Finding("compiler", "missing", f"no {' and no '.join(missing)}", "apt-get install build-essential")
    version = subprocess.run(["cc", "--version"], capture_output=True, text=True).stdout.splitlines()
    return Finding("compiler", "ok", version[0] if version else "cc, c++")


_ASK_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "available": cuda,
                  "capability": torch.cuda.get_device_capability() if cuda else None}))
"""


def _gpu() -> Finding:
    hardware = read_hardware()
    if not hardware.gpu_memory_bytes:
        return Finding("GPU", "ok", "no NVIDIA card: the cpu profile is used")
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.split()
    card = f"{hardware.gpu_name}, {hardware.gpu_memory_bytes / 2**30:.0f} GiB, driver {driver[0] if driver else '?'}"
    code, answer = _try(_ASK_TORCH)
    if code:
        return Finding("GPU", "missing", f"{card}; torch does not start: {answer}", "make setup")
    facts: dict[str, Any] = json.loads(answer)
    if not facts["available"]:
        why = "is a CPU build" if facts["cuda"] is None else f"(CUDA {facts['cuda']}) does not reach the card"
        return Finding(
            "GPU", "warn", f"{card}; torch {facts['torch']} {why}", "update the NVIDIA driver, or make setup"
        )
    if not _is_installed("unsloth"):
        return Finding("GPU", "warn", f"{card}, CUDA {facts['cuda']}; Unsloth is not installed", "make setup")
    return Finding("GPU", "ok", f"{card}, CUDA {facts['cuda']}, compute capability {facts['capability']}")


_ROUND_TRIP = """
import torch, bitsandbytes.functional as F
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
weight = torch.randn(64, 256, device=device)
packed, state = F.quantize_4bit(weight, quant_type="nf4", blocksize=64, compress_statistics=True)
error = (F.dequantize_4bit(packed, state).float() - weight).abs().mean().item()
print(f"{error:.4f} {device}")
"""


def _bitsandbytes() -> Finding:
    if not _is_installed("bitsandbytes"):
        return Finding("bitsandbytes", "missing", "not installed", "make setup")
    code, answer = _try(_ROUND_TRIP)
    if code:
        return Finding("bitsandbytes", "missing", f"{explain_exit(code)}: {answer}", "rm .venv/.ready && make setup")
    error, device = answer.split()
    # A standard normal in NF4 with blocks of 64 is off by 0.073 on average (measured); a broken kernel is far from it.
    if not 0.05 < float(error) < 0.1:
        return Finding("bitsandbytes", "warn", f"NF4 and back on {device} is off by {error}, not 0.07", "make setup")
    return Finding("bitsandbytes", "ok", f"NF4 and back works on {device} (mean error {error})")


_DECODE = """
import sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=64, n_threads=2, verbose=False)
print(model.create_completion("Hello", max_tokens=1)["usage"]["completion_tokens"])
"""


def decode_finding(model: Path) -> Finding:
    """Whether llama.cpp decodes one token of `model` here; a crash of the child process is reported, not suffered."""
    code, answer = _try(_DECODE, str(model))
    if code == 0:
        return Finding("llama.cpp decodes", "ok", f"one token, llama-cpp-python {LLAMA_CPP_PYTHON}")
    rebuild = REBUILD_WHEEL.format(wheels=cache_home() / "wheels")
    if code < 0:
        found = f"{explain_exit(code)} at the first token: the wheel was built for another CPU"
        return Finding("llama.cpp decodes", "missing", found, f"{rebuild}   (builds it portably)")
    return Finding("llama.cpp decodes", "missing", f"{explain_exit(code)}: {answer}", "rm .venv/.ready && make setup")


def _llama_cpp_decodes() -> Finding:
    if not _is_installed("llama_cpp"):
        return Finding("llama.cpp decodes", "missing", "llama-cpp-python is not installed", "make setup")
    try:
        return decode_finding(find_gguf())
    except ToolkitError as error:
        return Finding("llama.cpp decodes", "missing", error.message, "rm .venv/.ready && make setup")


def _processes() -> Finding:
    """What several processes could train on here (`train.distributed`, docs/scale.md)."""
    hardware = read_hardware()
    if not hardware.cards:
        found = (
            f"no card, {hardware.cores} cores: train.num_processes above 1 (ddp) divides the cores, and is no faster"
        )
    elif hardware.cards == 1:
        found = "1 card: training is one process"
    else:
        with_deepspeed = (
            ", zero2, zero3" if _is_installed("deepspeed") else "; zero2 and zero3 need pip install deepspeed"
        )
        found = f"{hardware.cards} cards: train.num_processes up to {hardware.cards}, by ddp, fsdp{with_deepspeed}"
    return Finding("processes", "ok", found)


def _disk() -> Finding:
    here, cache = free_disk_bytes(Path.cwd()), free_disk_bytes(cache_home())
    found = f"{here / 2**30:.0f} GiB free here, {cache / 2**30:.0f} GiB in the cache folder"
    if min(here, cache) < DISK_BYTES:
        return Finding(
            "disk",
            "warn",
            found,
            "tune2ollama clean NAME (tune2ollama list names the runs), or move the cache: export TUNE2OLLAMA_HOME=…",
        )
    return Finding("disk", "ok", found)


def _memory() -> Finding:
    hardware = read_hardware()
    found = (
        f"{hardware.memory_bytes / 2**30:.0f} GiB, {hardware.available_memory_bytes / 2**30:.0f} GiB of it available; "
        f"{hardware.cores} cores"
    )
    if hardware.available_memory_bytes < 4 * 2**30:
        return Finding("memory", "warn", found, "close other programs; tune2ollama plan says what a recipe needs")
    return Finding("memory", "ok", found)


def _ollama() -> Finding:
    from toolkit.ollama.server import find_ollama

    binary = find_ollama()
    if binary is None:
        found = "not installed; optional: all but the last step, publishing, is done without it"
        return Finding("Ollama", "warn", found, "make ollama   (with Go), or https://ollama.com/download")
    return Finding("Ollama", "ok", str(binary))


def _ollama_server() -> Finding:
    from toolkit.ollama.client import Client, server_address

    try:
        with Client(server_address()) as client:
            if not client.answers():
                found = f"none at {client.address}; one is started when it is needed"
                return Finding("Ollama server", "ok", found)
            return Finding("Ollama server", "ok", f"version {client.version()} at {client.address}")
    except ToolkitError as error:
        return Finding("Ollama server", "warn", error.message, error.hint)


def _llama_cpp_tree() -> Finding:
    tree = cache_home() / "llama.cpp" / LLAMA_CPP_PYTHON
    for needed in ("convert_hf_to_gguf.py", "conversion", "gguf-py"):
        if not (tree / needed).exists():
            return Finding("llama.cpp tree", "missing", f"no {tree / needed}", f"rm -rf {tree} && make setup")
    return Finding("llama.cpp tree", "ok", str(tree))


def _k_quants() -> Finding:
    if not _is_installed("llama_cpp"):
        return Finding("K-quants", "missing", "llama-cpp-python is not installed", "make setup")
    from toolkit.export.ggml import faster_kinds

    kinds = faster_kinds()
    if not kinds:
        found = "rounded by llama.cpp's own routines, which take two to four times as long as ours"
        return Finding("K-quants", "warn", found, "rm .venv/.ready && make setup")
    return Finding("K-quants", "ok", f"{', '.join(kinds)} sixteen groups at a time, to llama.cpp's bytes")


def _base() -> Finding:
    found = sorted((cache_home() / "bases").glob(f"{NAME}-*-{BUILD}/config.json"))
    if found:
        return Finding("embedded base", "ok", str(found[0].parent))
    try:
        return Finding("embedded base", "ok", f"{find_gguf().name}; rebuilt at its first use (seconds)")
    except ToolkitError as error:
        return Finding("embedded base", "missing", error.message, "make setup")
