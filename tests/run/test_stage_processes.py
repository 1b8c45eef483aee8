"""Stages that are forked from one process end as stages with a process of their own do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.children import child_environment

DRIVER = """
import os, pathlib, sys, time
from toolkit.run import stage_processes
from toolkit.run.stages import STAGES
stage = next(stage for stage in STAGES if stage.name == "golden")
order = {"stage": "none", "folder": ".", "key": {}, "rewards": None, "recipe": {}}
with stage_processes.StageProcesses() as processes:
    for given in sys.argv[1:]:
        print(processes.run(stage, {**order, "does": given}, alone=False), flush=True)
"""
STAGE = """
import os, pathlib, signal, sys, time
import toolkit.run.pipeline, toolkit.run.stage_processes
def stage(order):
    print(os.getpid(), os.getppid(), file=sys.stderr, flush=True)
    match order["does"]:
        case "ends": return
        case "fails": sys.exit(3)
        case "is killed": os.kill(os.getpid(), signal.SIGKILL)
        case "reads": sys.exit(len(sys.stdin.read()))
        case "waits": time.sleep(60)
toolkit.run.pipeline.run_stage_here = stage
toolkit.run.stage_processes._load = lambda: None
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose sitecustomize puts another stage into the processes that are started."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif 'stage-server' in getattr(sys, 'orig_argv', []):\n    exec({STAGE!r})\n", encoding="utf-8"
    )
    return tmp_path


def started(place: Path, *does: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *does], env=child_environment(str(place)), cwd=place, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_each_ends_in_its_own_way_and_the_next_one_runs(place: Path) -> None:
    out, said = started(place, "ends", "fails", "is killed", "reads", "ends").communicate(timeout=120)
    assert out.split() == ["0", "3", "-9", "0", "0"], said
    processes = [line.split() for line in said.splitlines()]
    assert len({stage for stage, _ in processes}) == 5 and len({parent for _, parent in processes}) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells a child of its parent's end")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_none_outlives_the_command(place: Path, number: signal.Signals) -> None:
    command = started(place, "waits")
    assert command.stderr is not None
    pids = [int(pid) for pid in command.stderr.readline().split()]
    os.kill(command.pid, number)
    command.communicate(timeout=300)
    for pid in pids:
        try:
            psutil.Process(pid).wait(10)
        except psutil.NoSuchProcess:
            continue
    assert not any(map(psutil.pid_exists, pids))


def test_a_server_that_died_is_started_again(place: Path) -> None:
    program = DRIVER.replace("pathlib, sys, time", "pathlib, signal, sys, time").replace(
        "        print(", "        if given == 'server dies':\n            os.kill(processes._server.process.pid, "
        "signal.SIGKILL)\n        print("
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, "ends", "server dies", "ends"], env=child_environment(str(place)), cwd=place,
        text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["0", "-9", "0"], done.stderr


def test_what_later_stages_need_is_loaded_while_another_runs(place: Path) -> None:
    program = DRIVER.replace(
        "    for given",
        "    processes.get_ready([s for s in STAGES if s.name == 'prepare'])\n    assert processes._server is None\n"
        "    processes.get_ready([stage])\n    print(processes._server.process.pid)\n    for given",
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "ends"], env=child_environment(str(place)), cwd=place, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    server, code = done.stdout.split()
    assert code == "0" and done.stderr.split()[1] == server


def test_what_needs_a_part_is_forked_only_where_all_is_loaded_already(place: Path) -> None:
    program = DRIVER[: DRIVER.index("    for given")] + (
        "    create = next(stage for stage in STAGES if stage.name == 'create')\n"
        "    processes._fresh = lambda order: 77\n"
        "    processes.get_ready([create])\n"
        "    print(processes.run(create, {**order, 'does': 'ends'}, alone=False))\n"
        "    processes.get_ready([stage])\n"
        "    print(processes.run(create, {**order, 'does': 'fails'}, alone=False))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=child_environment(str(place)), cwd=place, text=True, capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["77", "3"], done.stderr
