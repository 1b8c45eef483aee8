"""The whole chain through the real command: once clean, once killed at every stage, and with exports that must be refused."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from tests.children import child_environment
from tests.conftest import free_port
from tests.small_models import tiny_llama
from toolkit.export.convert import convert
from toolkit.export.merge import merge
from toolkit.ollama.client import Client
from toolkit.ollama.server import find_ollama
from toolkit.recipe.reading import RESOLVED_FILE, load_recipe
from toolkit.run.artifacts import Artifact, Cost, publish, read_artifact
from toolkit.run.facts import AdapterFacts, ModelFacts
from toolkit.run.stages import STAGE_NAMES

pytestmark = pytest.mark.slow

QUICK = {"prepare", "golden", "quantize", "verify", "evaluate", "report"}
"""Stages that end within moments after their first file."""
INTERRUPTED = {"prepare", "train", "convert", "create"}
"""Stages during which Ctrl-C is tried, too: alone, with threads, with a child process, with a server."""
SYLLABLES = ["ba", "ke", "lo", "mi", "nu", "ra", "se", "to", "vi", "zu", "pa", "de", "go", "hi", "fu"]


def _words(random: Random) -> str:
    return " ".join("".join(random.choices(SYLLABLES, k=3)) for _ in range(4))


class Project:
    """A user's folder with a recipe, a base and data, and an Ollama address of its own."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        folder.mkdir()
        with (folder / "rows.csv").open("w", encoding="gb18030", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["question", "reply"])
            random = Random(7)
            writer.writerows([f"{_words(random)}，医生?", f"Yes, {_words(random)}."] for _ in range(40))
        recipe = {
            "name": "small",
            "base": str(base),
            "system": "You are brief.",
            "data": {
                "path": "rows.csv",
                "columns": {"prompt": "question", "completion": "reply"},
                "validation": 0.2,
                "test": 0.2,
            },
            "train": {
                "max_steps": 24, "learning_rate": 1e-2, "save_steps": 4, "warmup_steps": 0,
                "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
            },
            "golden": {"prompts": ["Is the sea blue?", "Is the moon white?", "Is the cat black?"], "max_new_tokens": 16},
            "export": {"file_types": ["F16", "Q8_0"], "serve": "Q8_0"},
            "ollama": {"model": "small"},
        }  # fmt: skip
        (folder / "small.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        self.environment = child_environment(
            HOME=str(folder / "home"),
            OLLAMA_MODELS=str(folder / "home" / "models"),
            OLLAMA_HOST=f"127.0.0.1:{free_port()}",
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The real command, running."""
        command = [sys.executable, "-m", "toolkit.cli", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            # What a script starts in the background ignores SIGINT, and its children with it.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def tune2ollama(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The real command, ended."""
        process = self.start(*arguments)
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def run(self) -> Path:
        """Where the artifacts are."""
        return self.folder / "runs" / "small"

    def published(self) -> list[str]:
        """Tags of the model that Ollama has."""
        return sorted(path.name for path in (self.folder / "home/models/manifests").glob("*/library/small/*"))

    def usual_seconds(self, stage: str) -> float:
        """How long a stage took."""
        return float(json.loads((self.run / stage / "artifact.json").read_text())["cost"]["seconds"])

    def digests(self) -> dict[str, str]:
        """Stage → digest of its files."""
        return {stage: json.loads((self.run / stage / "artifact.json").read_text())["digest"] for stage in STAGE_NAMES}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def clean(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project that went the whole way, as far as it goes where there is no Ollama."""
    project = Project(tmp_path_factory.mktemp("clean") / "project", base)
    done = project.tune2ollama("run", "small.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    (project.folder / "screen.txt").write_text(done.stdout, encoding="utf-8")
    yield project


def _certificate(project: Project) -> dict[str, Any]:
    return json.loads((project.run / "verify" / "certificate.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_the_chain_ends_with_a_certificate(clean: Project) -> None:
    assert _certificate(clean)["verdict"] == "pass"
    assert (clean.run / _certificate(clean)["certified"]["file"]).is_file()
    prepared = json.loads((clean.run / "prepare" / "artifact.json").read_text())["facts"]
    assert prepared["encodings"] == {"rows.csv": "GB2312"}
    assert "ollama run small" in (clean.folder / "screen.txt").read_text().splitlines()[-1]


@pytest.mark.ollama
def test_the_chain_ends_with_a_served_model(clean: Project, ollama_binary: Path) -> None:
    created = json.loads((clean.run / "create" / "artifact.json").read_text())["facts"]
    assert created["published"] and created["model"] == "small"
    assert created["rendered_equal"] == created["answers_compared"] == 3
    assert clean.published() == ["latest"]


def test_a_second_run_does_nothing_and_says_so(clean: Project) -> None:
    before = clean.digests()
    done = clean.tune2ollama("run", "small.yaml")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"✓ (\w+) +current", done.stderr) == list(STAGE_NAMES)
    assert "▶" not in done.stderr
    assert clean.digests() == before


def test_the_recipe_as_it_ran_goes_on_with_the_same_run(clean: Project) -> None:
    done = clean.tune2ollama("quantize", "runs/small/recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"✓ (\w+) +current", done.stderr) == ["prepare", "train", "convert", "quantize"]
    assert done.stderr.splitlines()[-1].endswith("tune2ollama verify runs/small/recipe.yaml")


def test_the_modelfile_is_about_the_certified_file(clean: Project) -> None:
    done = clean.tune2ollama("modelfile", "small.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "FROM ./runs/small/verify/small-Q8_0.gguf"
    assert (clean.run / "verify" / "small-Q8_0.gguf").is_file()


def test_dry_run_says_what_a_change_would_redo_and_why(clean: Project) -> None:
    done = clean.tune2ollama("run", "small.yaml", "--dry-run", "--json", "--set", "lora.lora_alpha=8")
    stages = json.loads(done.stdout)["stages"]
    assert stages["prepare"] == "current"
    assert stages["train"] == "runs: the recipe's lora.lora_alpha changed: 16 → 8"
    assert stages["golden"] == stages["report"] == "runs: an earlier stage runs"


def test_the_runtime_s_answer_is_the_tuned_model_s(clean: Project) -> None:
    rows = [json.loads(line) for line in (clean.run / "golden" / "golden.jsonl").read_text().splitlines()]
    assert any(row["completion"] != row["base_completion"] for row in rows)


def _at_work(project: Project, stage: str, since: float) -> bool:
    """Whether a stage has written something, since a moment, that a kill can leave behind."""
    partial = project.run / f"{stage}.partial"
    if stage == "train":  # late enough that there is something to go on from
        return (partial / "checkpoints" / "checkpoint-4" / "complete").exists()
    if stage == "create":
        return "candidate" in project.published()
    with contextlib.suppress(FileNotFoundError):  # it has been renamed
        return any(path.lstat().st_mtime >= since for path in partial.iterdir())
    return False


def _stop_during(project: Project, stage: str, number: signal.Signals, delay: float | None = None) -> tuple[int, str]:
    """Run until a stage is at work, or for a delay after it was begun, then send the command a signal.

    Returns:
        Its exit code and what it said. What the stage was quick enough to finish is removed, so that it can be stopped again.
    """
    since = time.time()
    process = project.start("run", "small.yaml")
    begun, finished = project.run / f"{stage}.partial", project.run / stage
    while process.poll() is None and not finished.exists():
        if begun.exists() if delay is not None else _at_work(project, stage, since):
            break
        time.sleep(0.002)
    time.sleep(delay or 0)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    with Client(f"http://{project.environment['OLLAMA_HOST']}") as client:
        while client.answers():  # a server that was started for the run ends with it
            time.sleep(0.05)
    if finished.exists():
        assert stage in QUICK or delay is not None, said[-2000:]
        shutil.rmtree(finished)
    return process.returncode, said


@pytest.mark.timeout(1800)
def test_stopped_at_every_stage_it_ends_with_the_same_artifacts(clean: Project, base: Path, tmp_path: Path) -> None:
    project, random = Project(tmp_path / "project", base), Random(20)
    for stage in STAGE_NAMES:
        if stage == "create" and find_ollama() is None:
            continue  # nothing to be stopped: it only says what remains
        if stage in INTERRUPTED:
            delay = min(clean.usual_seconds(stage) * random.uniform(0.2, 0.7), 2)
            code, said = _stop_during(project, stage, signal.SIGINT, delay)
            assert code == 130, (stage, said[-2000:])
            assert "run the same command again" in said and "Traceback" not in said
        code, _ = _stop_during(project, stage, signal.SIGKILL)
        assert code == -signal.SIGKILL or stage == "report"
    done = project.tune2ollama("run", "small.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    wanted, got = clean.digests(), project.digests()
    for stage in STAGE_NAMES:
        # These tell times, and what a server's last bits were.
        if stage not in {"verify", "create", "evaluate", "report"}:
            assert got[stage] == wanted[stage], stage
    assert (project.run / "create" / "Modelfile").read_bytes() == (clean.run / "create" / "Modelfile").read_bytes()
    assert _certificate(project)["verdict"] == "pass"
    assert sorted(p.name for p in project.run.iterdir() if p.name.endswith((".partial", ".old"))) == []
    assert project.published() == clean.published()


def test_two_runs_at_once_are_refused(clean: Project, base: Path, tmp_path: Path) -> None:
    project = Project(tmp_path / "project", base)
    first = project.start("train", "small.yaml")
    while not (project.run / "train.partial").exists() and first.poll() is None:
        time.sleep(0.01)
    second = project.tune2ollama("run", "small.yaml")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.returncode == 4
    assert "another run is working" in second.stderr


def _export(project: Project, model: Artifact[ModelFacts]) -> None:
    """Put the file that a model folder makes in the place of the run's own, with an honest manifest, as a faulty stage would."""
    converted = project.run / "convert"
    key = json.loads((converted / "artifact.json").read_text())["key"]
    adapter = read_artifact(project.run / "train", AdapterFacts)
    assert adapter is not None
    shutil.rmtree(converted)
    partial = converted.with_name("tampered")
    partial.mkdir()
    recipe = load_recipe(project.run / RESOLVED_FILE)
    facts = convert(recipe, adapter, model, partial)
    publish(partial, converted, facts, key, Cost())


@pytest.mark.parametrize("fault", ["adapter left out", "template swapped"])
def test_a_wrong_export_is_refused_with_exit_code_6(clean: Project, base: Path, tmp_path: Path, fault: str) -> None:
    project = Project(tmp_path / "project", base)
    shutil.copytree(clean.run, project.run, copy_function=shutil.copy2)
    for stage in STAGE_NAMES[STAGE_NAMES.index("quantize") :]:
        shutil.rmtree(project.run / stage)
    adapter, model = read_artifact(project.run / "train", AdapterFacts), tmp_path / "model"
    assert adapter is not None
    model.mkdir()
    merged = merge(load_recipe(project.run / RESOLVED_FILE), adapter, model)
    if fault == "template swapped":
        path = model / "chat_template.jinja"
        path.write_text(path.read_text().replace("<|im_start|>", "<|start|>"), encoding="utf-8")
    else:
        (file,) = model.glob("*.safetensors")
        original = load_file(base / "model.safetensors")
        save_file({name: original[name].float() for name in load_file(file)}, file, metadata={"format": "pt"})
    _export(project, Artifact(model, merged, "", {}, Cost()))
    done = project.tune2ollama("run", "small.yaml")
    assert done.returncode == 6, done.stderr[-2000:]
    assert "the certificate says fail" in done.stderr and "Nothing was published" in done.stderr
    assert not (project.run / "create").exists()
    if fault == "template swapped":
        assert project.tune2ollama("modelfile", "small.yaml").returncode == 6
    failed = {
        f"{subject['name']}: {check['name']}"
        for subject in _certificate(project)["subjects"]
        for check in subject["checks"]
        if check["verdict"] == "fail"
    }
    wanted = "prompts" if fault == "template swapped" else "weights"
    assert {f"F16: {wanted}", f"Q8_0: {wanted}"} <= failed
    assert _certificate(project)["blame"]["link"] == ("template" if fault == "template swapped" else "merge")
