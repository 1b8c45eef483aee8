"""`verify --gguf … --mmproj …` through the real command: anybody's pair, of an adapter that anybody trained."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.seeing_chain import SeeingChain, recipe_for, seeing_artifact, seeing_chain
from tests.parity.test_tool import run_verify
from tests.parity_chain import export
from tests.seeing_models import seeing_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clean() -> SeeingChain:
    return seeing_chain()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all commands: what the tuned model says is recorded once."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "prompts.txt").write_text("What is a colour?\nName an animal.\n", encoding="utf-8")
    return folder


def language_file(clean: SeeingChain) -> Path:
    return clean.export.gguf.folder / clean.export.gguf.facts.files[0].name


def verify(place: Path, clean: SeeingChain, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_verify(
        place, "--adapter", clean.adapter.folder, "--base", clean.base, "--prompts", "prompts.txt", "--gguf",
        language_file(clean), "--json", *arguments,
    )  # fmt: skip


def mmproj_of_another(clean: SeeingChain, out: Path, width: int) -> Path:
    """Of a model with other random weights, or of another width."""
    base = seeing_model(out / "base", "qwen2_5_vl", seed=9, width=width)
    assert clean.adapter.facts.pictures is not None
    whole = seeing_artifact(base, base, clean.adapter.facts.pictures)
    whole = replace(whole, facts=whole.facts.model_copy(update={"method": "full"}))
    made = export(recipe_for(base, ["F32"]), whole, out / "x").gguf
    assert made.facts.mmproj is not None
    return made.folder / made.facts.mmproj.name


def test_an_exports_own_pair_passes(place: Path, clean: SeeingChain) -> None:
    ended = verify(place, clean, "--mmproj", clean.mmproj)
    told = json.loads(ended.stdout)
    verdicts = {subject["name"]: subject["verdict"] for subject in told["subjects"]}
    # A random model's answers never end, so that whether it stops stays open; nothing fails.
    assert verdicts["mmproj"] == "pass" and verdicts[language_file(clean).name] != "fail", ended.stderr
    assert told["blame"] is None and ended.returncode in (0, 7)
    seen = next(subject for subject in told["subjects"] if subject["name"] == "mmproj")
    checks = {check["name"]: check for check in seen["checks"]}
    assert {name: check["verdict"] for name, check in checks.items()} == dict.fromkeys(
        ("structure", "vision", "picture", "projector"), "pass"
    )
    # No golden prompt of another tool's adapter shows a picture: some were drawn.
    assert checks["picture"]["message"].startswith("6 of 6 pictures are shown as in training")
    assert f"{clean.mmproj.parent.name}/{clean.mmproj.name}" in told["files"]


def test_the_mmproj_of_another_model_is_named(place: Path, clean: SeeingChain, tmp_path: Path) -> None:
    ended = verify(place, clean, "--mmproj", mmproj_of_another(clean, tmp_path, 256))
    told = json.loads(ended.stdout)
    assert ended.returncode == 6 and told["verdict"] == "fail", ended.stderr
    assert told["blame"]["link"] == "merge" and "vision part: it was made from another base" in told["message"], told[
        "message"
    ]


def test_the_mmproj_of_a_model_of_another_width_is_named(place: Path, clean: SeeingChain, tmp_path: Path) -> None:
    ended = verify(place, clean, "--mmproj", mmproj_of_another(clean, tmp_path, 512))
    told = json.loads(ended.stdout)
    assert ended.returncode == 6 and told["blame"]["link"] == "structure", ended.stderr
    assert "clip.vision.projection_dim is 512, and should be 256" in told["message"]


def test_a_missing_mmproj_is_asked_for(place: Path, clean: SeeingChain, tmp_path: Path) -> None:
    ended = verify(place, clean)
    assert ended.returncode == 2
    assert "training changed the part of the model that sees, and no file that sees is named" in ended.stderr
    assert "--mmproj FILE" in ended.stderr
    for given, said in (
        (tmp_path / "none.gguf", f"there is no file {tmp_path / 'none.gguf'}"),
        (language_file(clean), "is no file that sees: its general.type is model, not mmproj"),
    ):
        ended = verify(place, clean, "--mmproj", given)
        assert ended.returncode == 2 and said in " ".join(ended.stderr.split()), ended.stderr
