"""What a stage leaves is whole, or it is not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.disk import ran_on_a_full_disk
from toolkit.errors import DataError
from toolkit.run import artifacts
from toolkit.run.artifacts import Cost, finish_publishing, publish, read_artifact
from toolkit.run.facts import ReportFacts

KEY = {"version": 1}


def _publish(folder: Path, text: str) -> artifacts.Artifact[ReportFacts]:
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    (partial / "report.md").write_text(text)
    return publish(partial, folder, ReportFacts(verdict="pass"), KEY, Cost(seconds=1.5))


def test_published_folder_reads_back(tmp_path: Path) -> None:
    made = _publish(tmp_path / "report", "one")
    read = read_artifact(tmp_path / "report", ReportFacts)
    assert read == made
    assert not (tmp_path / "report.partial").exists()


def test_digest_is_of_content_only(tmp_path: Path) -> None:
    first, second = _publish(tmp_path / "a" / "report", "same"), _publish(tmp_path / "b" / "report", "same")
    assert first.digest == second.digest
    assert _publish(tmp_path / "c" / "report", "other").digest != first.digest


def test_replaces_an_older_artifact(tmp_path: Path) -> None:
    _publish(tmp_path / "report", "old")
    _publish(tmp_path / "report", "new")
    assert (tmp_path / "report" / "report.md").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["report"]


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    _publish(tmp_path / "report", "one")
    path = tmp_path / "report" / "report.md"
    path.write_text("two")
    with pytest.raises(DataError, match=r"report\.md was changed"):
        read_artifact(tmp_path / "report", ReportFacts)
    path.unlink()
    with pytest.raises(DataError, match=r"report\.md is gone"):
        read_artifact(tmp_path / "report", ReportFacts)


def test_a_touched_file_is_hashed_and_accepted(tmp_path: Path) -> None:
    _publish(tmp_path / "report", "one")
    os.utime(tmp_path / "report" / "report.md", (1, 1))
    assert read_artifact(tmp_path / "report", ReportFacts) is not None


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    _publish(tmp_path / "report", "one")
    (tmp_path / "report" / "artifact.json").write_text('{"facts": ')
    with pytest.raises(DataError, match=r"artifact\.json cannot be read"):
        read_artifact(tmp_path / "report", ReportFacts)


def test_publishing_that_was_killed_between_its_renames_is_finished(tmp_path: Path) -> None:
    _publish(tmp_path / "report", "new")
    (tmp_path / "report").rename(tmp_path / "report.partial")  # as after the first rename
    finish_publishing(tmp_path / "report.partial", tmp_path / "report")
    read = read_artifact(tmp_path / "report", ReportFacts)
    assert read is not None and (tmp_path / "report" / "report.md").read_text() == "new"


def test_an_unfinished_folder_is_not_taken_for_a_result(tmp_path: Path) -> None:
    (tmp_path / "report.partial").mkdir()
    (tmp_path / "report.partial" / "report.md").write_text("half")
    finish_publishing(tmp_path / "report.partial", tmp_path / "report")
    assert read_artifact(tmp_path / "report", ReportFacts) is None


def test_new_file_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), artifacts.new_file(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_kill_9_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a.json", {"old": True})
    code = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom toolkit.run.artifacts import new_file\n"
        "with new_file(Path(sys.argv[1])) as partial:\n    partial.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")])
    assert done.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": True}


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    artifacts.write_text(tmp_path / "a.txt", "old")
    code = """
import sys
from pathlib import Path
from toolkit.run.artifacts import write_text
write_text(Path(sys.argv[1]), "x" * 100000)
"""
    done = ran_on_a_full_disk(code, tmp_path / "a.txt", size=1000)
    assert done.returncode == 1 and "OSError" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
