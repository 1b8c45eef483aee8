"""`verify --ollama` and `--repair` through the real command, with a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.ollama.test_client import broken
from tests.parity.test_tool import clean, place, served, verify
from tests.parity_chain import SYSTEM, Chain, scaled
from toolkit.models.gguf_file import read_gguf
from toolkit.ollama.foretold import foretold, installed_version
from toolkit.ollama.repair import mended_template, rewrite_template

__all__ = ["clean", "place"]
pytestmark = [pytest.mark.ollama, pytest.mark.slow]


@pytest.fixture
def model(ollama_server: Server, clean: Chain, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The chain's Q8_0, served rightly as `strength:right`."""
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    create(ollama_server, "strength:right", served(clean, 0))
    yield "strength:right"
    ollama_server.client.delete("strength:right")


def create(server: Server, name: str, file: Path) -> None:
    """With the settings that are served."""
    settings = {"num_ctx": 1024, "temperature": 0.0, "repeat_penalty": 1.0}
    blob = {"m.gguf": server.client.upload(file)}
    server.client.create(name, {"files": blob, "system": SYSTEM, "parameters": settings})


def test_a_right_model_passes_and_is_a_subject_of_the_certificate(model: str, place: Path, clean: Chain) -> None:
    done = verify(place, clean, "--ollama", model, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    certificate: dict[str, Any] = json.loads(done.stdout)
    assert (certificate["verdict"], certificate["message"]) == ("pass", "what is served is what was trained")
    # Its own copy of the file is judged as well, with nothing else named.
    assert [s["kind"] for s in certificate["subjects"]] == ["adapter", "quantized", "served"]
    file, served_one = certificate["subjects"][1:]
    assert (file["name"], served_one["name"]) == ("strength:right's file", "strength:right")
    assert {c["name"]: c["verdict"] for c in served_one["checks"]} == dict.fromkeys(
        ("prompts", "ends", "answers", "defaults", "strength"), "pass"
    )
    assert certificate["versions"]["ollama"] == "0.34.1"
    (prompts,) = [check for check in file["checks"] if check["name"] == "prompts"]
    assert (prompts["details"]["ollama"]["how"], prompts["details"]["ollama"]["version"]) == ("own Jinja", "0.34.1")
    links = {link["link"]: link["verdict"] for link in certificate["chain"]}
    assert (links["server prompt"], links["server answers"]) == ("pass", "pass")


def test_a_name_that_is_not_there_is_told_first_with_the_nearest(model: str, place: Path, clean: Chain) -> None:
    done = verify(place, clean, "--ollama", "strenght:right")
    assert done.returncode == 2
    assert "Ollama does not know it while showing strenght:right" in done.stderr
    assert "did you mean strength:right?" in done.stderr
    assert "▶" not in done.stderr  # before anything is recorded
    assert model == "strength:right"


def test_a_server_that_shows_no_prompts_is_told_first(
    place: Path, clean: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {
        "/api/show": (200, {"modelfile": "FROM /nowhere/sha256-1\n"}),
        "/api/chat": (200, {"message": {"content": "hi"}, "done": True}),
    }
    with broken(answers) as (_, client):
        monkeypatch.setenv("OLLAMA_HOST", client.address)
        done = verify(place, clean, "--ollama", "any", "--gguf", served(clean, 0))
        assert done.returncode == 5, done.stderr[-2000:]
        assert "does not show the prompts that it renders" in done.stderr
        assert "▶" not in done.stderr
        done = verify(place, clean, "--ollama", "any")
        assert done.returncode == 3, done.stderr[-2000:]
        assert "the file behind any is not here, or not to be read by you: /nowhere/sha256-1" in done.stderr
        assert "--gguf FILE" in done.stderr


def test_an_adapter_that_changes_hardly_anything_decides_nothing(
    ollama_server: Server, clean: Chain, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    faint = scaled(clean.adapter.folder, tmp_path / "faint", 1e-9)
    create(ollama_server, "faint", clean.without_adapter)
    done = verify(place, clean, "--adapter", faint, "--ollama", "faint", "--json")
    ollama_server.client.delete("faint")
    assert done.returncode == 7, done.stdout[-3000:] + done.stderr[-2000:]
    certificate = json.loads(done.stdout)
    assert (certificate["verdict"], certificate["blame"]) == ("inconclusive", None)
    strength = next(c for c in certificate["subjects"][-1]["checks"] if c["name"] == "strength")
    assert strength["verdict"] == "inconclusive"


def test_a_file_that_is_served_wrongly_is_mended(
    ollama_server: Server, clean: Chain, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    right = served(clean, 0)
    protected = str(read_gguf(right).metadata["tokenizer.chat_template"])
    bare = rewrite_template(right, tmp_path / "bare.gguf", protected.partition("#}")[2])
    assert foretold(bare)["how"] == "attached Go template"  # within 100 edits of ChatML's
    out = tmp_path / "mended.gguf"
    done = verify(place, clean, "--gguf", bare, "--repair", out)
    said = " ".join(done.stderr.split())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Ollama 0.34.1 would serve a plain FROM bare.gguf with: attached Go template chatml" in said
    assert "Ollama 0.34.1 served" in said and f"Mended:{out}" in said.replace(" ", "")  # a long path is folded
    assert read_gguf(out).metadata["tokenizer.chat_template"] == mended_template(protected.partition("#}")[2])
    assert not [name for name in ollama_server.client.models() if name.startswith("tune2ollama-repair")]
    done = verify(place, clean, "--gguf", bare, "--repair", out)
    assert (done.returncode, f"--repair: {out} is there already" in done.stderr) == (2, True)
    done = verify(place, clean, "--gguf", out, "--repair", tmp_path / "again.gguf")
    assert "there is nothing to mend" in " ".join(done.stderr.split())
    assert not (tmp_path / "again.gguf").exists()
    done = verify(place, clean, "--hf", clean.export.model.folder, "--repair", tmp_path / "again.gguf")
    assert (done.returncode, "Name exactly one --gguf FILE." in done.stderr) == (2, True)


def test_the_installed_version_is_its_own_and_not_a_servers(ollama_binary: Path, tmp_path: Path) -> None:
    assert installed_version(ollama_binary) == ollama_binary.parts[-3]
    assert installed_version(None) == installed_version(tmp_path / "none") == ""
