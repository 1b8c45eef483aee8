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
    cards: int = 0
    """How many they may use."""
    bfloat16_products: bool = False
    """Of the processor: see `has_bfloat16_products`."""


def read_hardware() -> Hardware:
    """Ask the operating system and, where it is installed, nvidia-smi. `CUDA_VISIBLE_DEVICES` chooses and hides cards."""
    memory = psutil.virtual_memory()
    cards = _visible_cards()
    name, size = cards[0] if cards else ("", 0)
    cores, short = len(os.sched_getaffinity(0)), has_bfloat16_products()
    return Hardware(cores, memory.total, memory.available, name, size, len(cards), short)


def has_bfloat16_products() -> bool:
    """Whether the processor multiplies in bfloat16 itself (AVX512-BF16, AMX), as Linux tells; else such products are emulated,
    and slower than float32's."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line.split() for line in told.splitlines() if line.startswith("flags")), [])
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def _visible_cards() -> list[tuple[str, int]]:
    """(name, bytes) of each visible card, in the order that programs number them in."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    cards = [fields for line in answer.splitlines() if len(fields := line.split(", ")) == 4 and fields[3].isdigit()]
    # A list of numbers, or of (beginnings of) UUIDs, as far as they name cards; an empty text and -1 hide all.
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(card[0] for card in cards)).split(",")
    found: list[tuple[str, int]] = []
    for wanted in map(str.strip, listed):
        card = next((c for c in cards if wanted == c[0] or (len(wanted) > 4 and c[1].startswith(wanted))), None)
        if card is None:
            break
        found.append((card[2], int(card[3]) * 2**20))
    return found


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
