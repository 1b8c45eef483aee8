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
    """Of the first card that programs here may use, which is the one that trains; 0 without one."""


def read_hardware() -> Hardware:
    """Ask the operating system and, where it is installed, nvidia-smi. `CUDA_VISIBLE_DEVICES` chooses and hides cards."""
    memory = psutil.virtual_memory()
    name, size = _first_card()
    return Hardware(len(os.sched_getaffinity(0)), memory.total, memory.available, name, size)


def _first_card() -> tuple[str, int]:
    """(name, bytes) of the first visible card; ("", 0) without one."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "", 0
    command = [tool, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "", 0
    cards = [fields for line in answer.splitlines() if len(fields := line.split(", ")) == 4 and fields[3].isdigit()]
    # A list of numbers, or of (beginnings of) UUIDs; an empty text and -1 hide all.
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    for index, uuid, name, size in cards:
        if wanted == index or (len(wanted) > 4 and uuid.startswith(wanted)):
            return name, int(size) * 2**20
    return "", 0


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
