"""The command: instant help, documented verbs, one translation of errors."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.children import ROOT, child_environment
from toolkit.cli import cli, translated
from toolkit.commands.exports import ADOPTED
from toolkit.run.stages import STAGE_NAMES, STAGES

VERBS = [
    "chat", "clean", "convert", "create", "doctor", "evaluate", "export", "golden", "init", "inspect", "list", "merge",
    "modelfile", "plan", "prepare", "quantize", "report", "run", "train", "verify",
]  # fmt: skip


def tune2ollama(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    command = [sys.executable, "-m", "toolkit.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=child_environment())


def test_help_imports_only_click() -> None:
    code = (
        "import sys, contextlib\nfrom toolkit.cli import cli\n"
        "with contextlib.suppress(SystemExit):\n    cli(['--help'])\n"
        "print('LOADED', *sorted({m.partition('.')[0] for m in sys.modules} & set('"
        "torch transformers peft trl pydantic yaml rich httpx numpy psutil llama_cpp gguf datasets jinja2'.split())))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.splitlines()[-1] == "LOADED"


def test_every_verb_is_there_with_a_runnable_example() -> None:
    assert sorted(name for name, command in cli.commands.items() if not command.hidden) == VERBS
    for verb in VERBS:
        text = CliRunner().invoke(cli, [verb, "--help"]).output
        assert f"tune2ollama {verb}" in text, verb


def test_the_documented_help_is_today_s() -> None:
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == commands_page(), (
        "docs/commands.md is stale; write it anew: python -m tests.commands.test_cli"
    )


def commands_page() -> str:
    """docs/commands.md, made from the commands themselves."""
    parts = ["# Commands\n\nMade from `--help`; a test compares them.\n"]
    for verb in VERBS:
        text = CliRunner().invoke(cli, [verb, "--help"], prog_name="tune2ollama", terminal_width=100).output
        parts.append(f"## {verb}\n\n```\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "recipes/none.yaml"], 2, "there is no recipe"),
        (["run", "recipes/medical.yaml", "--set", "lora.rank=8"], 2, "unknown key lora.rank"),
        (["run"], 2, "Missing argument"),
        (["export", "nowhere", "--name", "x"], 3, "is no PEFT adapter"),
        (["clean", "nothing-of-that-name"], 2, "there is no run"),
    ],
)
def test_errors_become_text_and_an_exit_code(arguments: list[str], code: int, words: str) -> None:
    done = tune2ollama(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_export_takes_the_stages_that_there_are_and_no_others() -> None:
    # All but prepare and what reads its rows: an adapter made elsewhere brings none.
    assert tuple(stage.name for stage in STAGES if stage.name in ("merge", *STAGE_NAMES[1:])) == ADOPTED
    done = tune2ollama("export", "nowhere", "--name", "x", "--upto", "verfy")
    assert done.returncode == 2
    assert "'verfy' is not one of 'train', 'merge', 'golden'" in done.stderr


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 6), ("inconclusive", 7)])
def test_the_exit_code_is_the_verdict_where_nobody_reads_to_the_end(verdict: str, code: int) -> None:
    program = (
        "import sys; import toolkit.parity.tool as tool; from toolkit.cli import main\n"
        f"certificate = {{'verdict': {verdict!r}, 'message': 'm', 'subjects': [], 'blame': None, 'long': 'x' * 1_000_000}}\n"
        "tool.check = lambda *_: certificate\n"
        "sys.argv = ['tune2ollama', 'verify', '--adapter', 'a', '--gguf', 'b', '--json']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait() == code, process.stderr and process.stderr.read()


def test_init_names_the_recipe_for_machines(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nWhy?,Because.\n", encoding="utf-8")
    done = tune2ollama("init", "rows.csv", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["recipe"], found["told"][-1]) == ("recipes/rows.yaml", "1 of 1 rows can be learnt from")
    assert (tmp_path / "recipes" / "rows.yaml").is_file()


def test_the_advice_for_a_full_disk_spares_this_run() -> None:
    error = translated(OSError(errno.ENOSPC, "No space left on device", "runs/small/train"))
    assert error.exit_code == 4 and error.message.startswith("the disk is full: runs/small/train")
    assert "tune2ollama clean OTHER-RUN" in error.hint


def test_a_traceback_only_with_debug() -> None:
    done = tune2ollama("--debug", "run", "recipes/none.yaml")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_dry_run_shows_the_resolved_recipe_and_why(tmp_path: Path) -> None:
    done = tune2ollama(
        "run", "recipes/medical.yaml", "--profile", "cpu", "--set", "name=never-run", "--dry-run", "--json"
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["recipe"]["base"] == "embedded:smollm2-135m-instruct"
    assert shown["stages"]["prepare"] == "runs: not done yet"
    assert shown["stages"]["report"] == "runs: an earlier stage runs"


if __name__ == "__main__":
    (ROOT / "docs" / "commands.md").write_text(commands_page(), encoding="utf-8")
