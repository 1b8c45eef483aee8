"""Starting a server for a job, and never leaving it behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import free_port
from toolkit.errors import ExternalToolError
from toolkit.ollama.client import KEPT_LOG, Client, server_address
from toolkit.ollama.server import find_ollama, is_running, serving, started


def _listens(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _gone(address: str, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not _listens(address):
            return True
        time.sleep(0.1)
    return False


def test_the_one_on_the_path_comes_first_then_the_newest_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path / "cache"))
    assert find_ollama() is None
    for version in ("0.9.0", "0.34.1", "0.33.0"):
        binary = tmp_path / "cache" / "ollama" / version / "bin" / "ollama"
        binary.parent.mkdir(parents=True)
        binary.write_text("#!/bin/sh\n")
        binary.chmod(0o755)
    found = find_ollama()
    assert found is not None and found.parts[-3] == "0.34.1"
    onpath = tmp_path / "bin" / "ollama"
    onpath.parent.mkdir()
    onpath.write_text("#!/bin/sh\n")
    onpath.chmod(0o755)
    assert find_ollama() == onpath


def test_nothing_installed_and_nothing_running_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    with serving(tmp_path / "log") as client:
        assert client is None


@pytest.mark.ollama
def test_a_server_is_started_for_the_job_and_stopped_also_after_an_error(
    ollama_binary: Path, own_home: Path, tmp_path: Path
) -> None:
    address = server_address()
    assert not is_running()
    with pytest.raises(RuntimeError, match="the job fails"), serving(tmp_path / "log") as client:
        assert client is not None and client.version() == "0.34.1"
        assert is_running()
        # What it says of itself is told with an error of its own.
        assert client._fault(500, "out of luck", "asking").hint == f"Its log says more: {tmp_path / 'log'}"
        with serving(tmp_path / "other-log") as same:  # one that runs is used, and not stopped
            assert same is not None and same.address == address
            assert same._fault(500, "", "").hint == f"Its log says more: {KEPT_LOG}"
        assert is_running()
        raise RuntimeError("the job fails")
    assert not _listens(address)
    assert not (tmp_path / "other-log").exists()
    assert (own_home / "ollama-models").is_dir()  # the folder that `ollama run` of this user looks into


@pytest.mark.ollama
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_server_outlives_the_job_that_is_killed(number: signal.Signals, ollama_binary: Path, tmp_path: Path) -> None:
    script = (
        # A job in the background of a script ignores SIGINT, and its children with it, unless they say otherwise.
        "import signal, sys, time, pathlib\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from toolkit.ollama.server import serving\n"
        f"with serving(pathlib.Path({str(tmp_path / 'log')!r})):\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert job.stdout is not None and job.stdout.readline() == b"ready\n"
    address = server_address()
    assert _listens(address)
    os.kill(job.pid, number)
    job.wait(20)
    assert _gone(address)


@pytest.mark.ollama
def test_a_taken_address_is_said_with_the_servers_words(ollama_binary: Path, tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        address = f"http://127.0.0.1:{port}"
        with Client(address) as client:
            assert not client.answers()
        with (
            pytest.raises(ExternalToolError, match="address already in use") as caught,
            started(ollama_binary, address, tmp_path / "log"),
        ):
            pass
    assert "export OLLAMA_HOST=" in caught.value.hint


def test_a_program_that_is_no_ollama_is_said_with_its_words(tmp_path: Path) -> None:
    fake = tmp_path / "ollama"
    fake.write_text("#!/bin/sh\necho cannot find libfoo.so >&2\nexit 3\n")
    fake.chmod(0o755)
    with (
        pytest.raises(ExternalToolError, match=r"ended with code 3; its last words:\n  cannot find libfoo.so"),
        started(fake, f"http://127.0.0.1:{free_port()}", tmp_path / "log"),
    ):
        pass
