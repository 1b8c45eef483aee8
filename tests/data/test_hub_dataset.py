"""Data sets of a hub: what a user meets at first use, without a network, at another commit, and where nothing is shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.children import child_environment
from tests.data.fake_hub import Files, Hub, running

FIRST, SECOND, CARDLESS = "1" * 40, "2" * 40, "3" * 40
LOOK = """
import json, sys
from toolkit.data.loading import load
from toolkit.errors import ToolkitError
from toolkit.recipe.rows import Data
for path in sys.argv[1:]:
    try:
        loaded = load(Data(path=path))
        print(json.dumps([[row.values["answer"] for row in loaded.table.rows][:2], len(loaded.table.rows), loaded.table.notes]))
    except ToolkitError as error:
        print(json.dumps([type(error).__name__, error.message, error.hint]))
"""


def rows(word: str, count: int = 30) -> bytes:
    """Questions with answers that hold a word."""
    made = ({"question": f"What is {word} {i}, and where?", "answer": f"The {word} {i}."} for i in range(count))
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def card(**configs: str) -> bytes:
    """A card that lists configurations: name → pattern of its files of the split train."""
    listed = [{"config_name": n, "data_files": [{"split": "train", "path": p}]} for n, p in configs.items()]
    return f"---\n{yaml.safe_dump({'license': 'mit', 'configs': listed})}---\n# Rows\n".encode()


PROGRAM: Files = {"program.py": b"raise SystemExit('it was run')"}
HUB = {
    ("me/desk", FIRST): {"train.jsonl": rows("ship"), "test.jsonl": rows("port", 4), "README.md": b"Rows.", **PROGRAM},
    ("me/desk", SECOND): {"train.jsonl": rows("boat"), "README.md": b"Rows."},
    ("me/desk", CARDLESS): {"data/train.csv": b"question,answer\nWhy?,So.\nWhat?,This.\n", "weights.bin": b"0" * 99},
    ("me/many", FIRST): {
        "README.md": card(north="north/*.jsonl", south="south/**/*.jsonl"),
        "north/a.jsonl": rows("fir"), "south/deep/b.jsonl": rows("palm"), "south/c.jsonl": rows("fig", 5),
    },
    ("me/elsewhere", FIRST): {"README.md": card(all="https://example.org/rows.jsonl")},
    ("me/elsewhere", SECOND): {"README.md": card(all="../../../rows.jsonl")},
    ("me/every", FIRST): {"README.md": card(all="**"), "a.jsonl": rows("oak"), **PROGRAM},
    ("me/program", FIRST): {**PROGRAM, "program.zip": b"PK"},
    ("me/gated", FIRST): {"train.jsonl": rows("secret")},
}  # fmt: skip


@pytest.fixture
def hub() -> Hub:
    return Hub(dict(HUB), {"me/gated"})


def environment(folder: Path, address: str) -> dict[str, str]:
    """Of a user whose hub is this one."""
    return child_environment(HOME=str(folder), HF_HOME=str(folder / "hf"), HF_ENDPOINT=address)


def look(folder: Path, address: str, *paths: str) -> list[list[object]]:
    """What is read of each path: first answers, count and notes; or the error's name, message and hint."""
    command = [sys.executable, "-c", LOOK, *paths]
    done = subprocess.run(command, env=environment(folder, address), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_run_at_first_use_and_again_without_a_network(hub: Hub, tmp_path: Path) -> None:
    recipe = {
        "name": "desk", "base": "embedded:smollm2-135m-instruct", "data": {"path": f"hub:me/desk@{FIRST}"},
        "golden": {"prompts": ["Is the sea blue?"]}, "ollama": {"model": "desk"},
    }  # fmt: skip
    (tmp_path / "desk.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

    def prepare(name: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "toolkit.cli", "prepare", "desk.yaml", "--set", f"name={name}"]
        found = subprocess.run(
            command, cwd=tmp_path, env=environment(tmp_path, hub.address), capture_output=True, text=True, check=False
        )
        return found.returncode, found.stderr

    with running(hub):
        code, said = prepare("desk")
        assert code == 0, said[-3000:]
        assert "its split train is read; not read: test (4)" in " ".join(said.split())
        fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET /datasets/")}
        assert fetched == {"README.md", "train.jsonl", "test.jsonl"}  # the program is not even fetched
        # Another commit is read later: it must not be what is taken without a network.
        assert look(tmp_path, hub.address, f"hub:me/desk@{SECOND}")[0][0] == ["The boat 0.", "The boat 1."]
    code, said = prepare("again")
    assert code == 0, said[-3000:]
    first, again = (tmp_path / "runs" / name / "prepare" / "train.jsonl" for name in ("desk", "again"))
    assert again.read_text() == first.read_text() and "The ship" in first.read_text()
    shown = look(tmp_path, hub.address, f"hub:me/desk@{FIRST}", f"hub:me/desk@{CARDLESS}")
    assert shown[0][:2] == [["The ship 0.", "The ship 1."], 30]
    assert shown[1][0] == "ExternalToolError" and "could not be fetched from the hub" in str(shown[1][1])
    assert "Check the network and run again" in str(shown[1][2]) and "point data.path at them" in str(shown[1][2])


def test_what_the_hub_does_not_show_is_named(hub: Hub, tmp_path: Path) -> None:
    with running(hub):
        found = look(
            tmp_path, hub.address, f"hub:me/desk@{CARDLESS}", f"hub:me/desk@{'4' * 40}", f"hub:me/none@{FIRST}",
            f"hub:me/gated@{FIRST}", f"hub:me/program@{FIRST}", "hub:me/desk@main",
        )  # fmt: skip
    assert found[0] == [["So.", "This."], 2, []]
    assert not [line for line in hub.asked if "weights.bin" in line or "main" in line]
    for one, called in zip(found[1:4], ("me/desk@4444", "me/none@1111", "me/gated@1111")):
        assert one[0] == "UsageError" and f"the hub has no data set {called}" in str(one[1]), one
        assert "hf auth login" in str(one[2])
    assert found[4][0] == "DataError" and "holds no files of rows that are read here" in str(found[4][1])
    assert "is not run" in str(found[4][2])
    assert found[5][0] == "UsageError" and "no data set at a pinned revision" in str(found[5][1])


def test_only_the_data_sets_own_files_of_rows_are_read(hub: Hub, tmp_path: Path) -> None:
    with running(hub):
        places = (f"elsewhere@{FIRST}", f"elsewhere@{SECOND}", f"every@{FIRST}")
        found = look(tmp_path, hub.address, *(f"hub:me/{place}" for place in places))
    for one, place in zip(found[:2], ("https://example.org/rows.jsonl", "../../../rows.jsonl")):
        assert one[0] == "DataError" and f"rows that are not among its own files: {place}" in str(one[1])
    assert found[2][1] == 30
    assert not [line for line in hub.asked if "program.py" in line]


def test_of_several_configurations_one_is_named_and_only_its_files_are_fetched(hub: Hub, tmp_path: Path) -> None:
    with running(hub):
        unsaid, south = look(tmp_path, hub.address, f"hub:me/many@{FIRST}", f"hub:me/many/south@{FIRST}")
        assert not [line for line in hub.asked if "north/a.jsonl" in line]
        (wrong,) = look(tmp_path, hub.address, f"hub:me/many/west@{FIRST}")
    assert unsaid[1:] == [
        f"hub:me/many@{FIRST} has the configurations north, south",
        f"Name one: hub:me/many/north@{FIRST}",
    ]
    assert wrong[1] == f"hub:me/many/west@{FIRST} has the configurations north, south"
    assert south[1] == 35
