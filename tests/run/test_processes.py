"""No child outlives its parent, and none wastes cores that others use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from toolkit.run import processes
from toolkit.run.processes import busy_share, die_with_parent, waiting, without_compiler

ORPHAN = """
import os, pathlib, signal, sys, time
from toolkit.run.processes import die_with_parent
parent = os.getpid()
bind = die_with_parent(signal.SIGKILL)
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    bind()  # too late to be watched: the parent is dead already
    pathlib.Path(sys.argv[1]).write_text("an orphan")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a child of its parent's end")
def test_a_child_whose_parent_died_before_it_was_watched_ends(tmp_path: Path) -> None:
    # The pipe is closed when both have ended.
    subprocess.run([sys.executable, "-c", ORPHAN, str(tmp_path / "written")], stdout=subprocess.PIPE, check=True)
    assert not (tmp_path / "written").exists()


def test_a_child_of_a_living_parent_goes_on() -> None:
    command = [sys.executable, "-c", "print('alive')"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=die_with_parent(signal.SIGKILL))
    assert done.stdout == "alive\n"


def test_a_stage_that_was_ordered_by_another_process_ends() -> None:
    command = [sys.executable, "-m", "toolkit.cli", "stage-process"]
    order = f'{{"parent": {os.getppid()}, "stage": "none"}}'
    assert subprocess.run(command, input=order, text=True, capture_output=True).returncode == 128 + signal.SIGKILL


def test_an_interrupt_inside_a_callback_from_c_is_not_lost() -> None:
    program = (
        "import ctypes, signal, time; from toolkit.run.processes import keep_interrupts; keep_interrupts()\n"
        # What a script starts in the background ignores SIGINT, and its children with it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "told = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))\n"
        "try:\n    told()\n    time.sleep(30)\n    print('it went on')\nexcept KeyboardInterrupt:\n    print('it ended')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("it ended\n", "")


def test_threads_wait_awake_on_idle_cores_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for busy, told in ((3.0, "GOMP_SPINCOUNT"), (60.0, "OMP_WAIT_POLICY")):
        monkeypatch.setattr(psutil, "cpu_percent", lambda busy=busy, **_: busy)
        monkeypatch.setattr(processes, "_seen", [])
        assert list(waiting({"PATH": ""})) == [told]
        assert waiting({"OMP_WAIT_POLICY": "ACTIVE"}) == waiting({"GOMP_SPINCOUNT": "1"}) == {}


def test_what_was_seen_of_other_processes_holds_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter((40.0, 2.0))
    monkeypatch.setattr(psutil, "cpu_percent", lambda **_: next(found))
    monkeypatch.setattr(processes, "_seen", [])
    assert [busy_share(), busy_share()] == [0.4, 0.4]
    monkeypatch.setattr(processes, "_HOLDS", -1)
    assert busy_share() == 0.02


@pytest.mark.parametrize(("card", "told"), [(None, "1"), ("/usr/bin/nvidia-smi", None)])
def test_torchs_compiler_is_left_out_where_there_is_no_card(
    card: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "")  # so that it is put back
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")
    monkeypatch.setattr(shutil, "which", lambda _: card)
    without_compiler()
    assert os.environ.get("TORCHDYNAMO_DISABLE") == told
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")  # the user's own word
    without_compiler()
    assert os.environ["TORCHDYNAMO_DISABLE"] == "0"
