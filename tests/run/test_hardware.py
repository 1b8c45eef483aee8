"""The card that is reported is the one that trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.run.hardware import read_hardware

TWO_CARDS = """\
0, GPU-1f0e2d3c-0000-1111-2222-333344445555, NVIDIA T4, 15360
1, GPU-9a8b7c6d-0000-1111-2222-333344445555, NVIDIA A100-SXM4-80GB, 81920
"""


@pytest.mark.parametrize(
    ("visible", "name", "mebibytes"),
    [
        (None, "NVIDIA T4", 15360),
        ("0", "NVIDIA T4", 15360),
        ("1", "NVIDIA A100-SXM4-80GB", 81920),
        ("1,0", "NVIDIA A100-SXM4-80GB", 81920),
        (" 1 , 0", "NVIDIA A100-SXM4-80GB", 81920),
        ("1,7,0", "NVIDIA A100-SXM4-80GB", 81920),
        ("GPU-9a8b7c6d", "NVIDIA A100-SXM4-80GB", 81920),
        ("", "", 0),
        ("-1", "", 0),
        ("2", "", 0),
    ],
)
def test_the_first_visible_card_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str, mebibytes: int
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho \"$1\" | grep -q index,uuid,name,memory.total && cat <<'END'\n{TWO_CARDS}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    hardware = read_hardware()
    assert (hardware.gpu_name, hardware.gpu_memory_bytes) == (name, mebibytes * 2**20)
    # CUDA reads the list as far as it names cards.
    assert hardware.cards == {None: 2, "1,0": 2, " 1 , 0": 2, "1,7,0": 1}.get(visible, 1 if name else 0)


@pytest.mark.parametrize("answer", ["echo No devices were found", "exit 9"])
def test_a_tool_without_a_card_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{answer}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert read_hardware().gpu_memory_bytes == 0
