"""What this machine has. Imports no torch, so that a plan takes milliseconds."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Hardware:
    """Sizes in bytes."""

    cores: int
    memory_bytes: int
    available_memory_bytes: int
    gpu_name: str
    gpu_memory_bytes: int
    """Of the largest card; 0 without one."""


def read_hardware() -> Hardware:
    """Ask the operating system and, where it is installed, nvidia-smi. `CUDA_VISIBLE_DEVICES=` hides the cards."""
    memory = psutil.virtual_memory()
    name, size = _largest_card()
    return Hardware(len(os.sched_getaffinity(0)), memory.total, memory.available, name, size)


def _largest_card() -> tuple[str, int]:
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return "", 0
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "", 0
    cards = [
        (int(size) * 2**20, name)
        for name, _, size in (line.rpartition(", ") for line in answer.splitlines())
        if size.isdigit()
    ]
    return (max(cards)[1], max(cards)[0]) if cards else ("", 0)


def free_disk_bytes(path: Path) -> int:
    """Free bytes on the filesystem that `path` is, or will be, on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_wsl() -> bool:
    """Whether this is Linux under WSL."""
    try:
        return "microsoft" in Path("/proc/version").read_text(encoding="utf-8").lower()
    except OSError:
        return False
