"""What is predicted about a chat template offline is what real servers then do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.ollama_templates import EMBEDDED, Measured, built_versions, embedded_template, page
from tests.conftest import free_port
from tests.ollama.served_templates import counted, measure
from tests.ollama.tiny import template_text
from toolkit.export.convert import protect_template
from toolkit.ollama import known as known_module
from toolkit.ollama.asked import ENDPOINTS, answer
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import Outcome, differing
from toolkit.ollama.known import KnownTemplate, known_templates
from toolkit.ollama.predict import RENDERER_OF, TOO_FAR, edit_distance, nearest_known, predict, told_before_training
from toolkit.ollama.served import GREEDY
from toolkit.ollama.server import started
from toolkit.ollama.syntax import Modelfile
from toolkit.run.places import cache_home
from toolkit.setup.ollama_build import VERSION

VERSIONS = [VERSION, "0.33.0", "0.30.0"]
FAMILIES = {
    # name: how a plain FROM is served, whether some conversation then differs
    EMBEDDED: ("attached Go template", True),
    "google-gemma-2-2b-it": ("attached Go template", True),
    "Qwen-Qwen2.5-7B-Instruct": ("own Jinja", False),
    "meta-llama-Llama-3.1-8B-Instruct": ("own Jinja", True),  # llama.cpp fills in today's date
}
LLAMA = {"general.architecture": "llama"}


def slow_distance(a: str, b: str) -> int:
    """The textbook's table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


@settings(max_examples=400, deadline=None)
@given(st.text(st.sampled_from("ab中"), max_size=14), st.text(st.sampled_from("abc"), max_size=14))
def test_the_edit_distance_is_the_textbooks(a: str, b: str) -> None:
    distance = slow_distance(a, b)
    assert edit_distance(a, b, 20) == edit_distance(a, b, distance) == distance
    assert edit_distance(a, b, distance - 1) is None


def test_distances_just_below_and_at_the_limit() -> None:
    one = KnownTemplate("one", "x" * 500, "{{ .Prompt }}", ())
    assert nearest_known("x" * 400 + "y" * 99 + "x", [one]) == (one, TOO_FAR - 1)
    assert nearest_known("x" * 400 + "y" * 100, [one]) is None
    # Of two at the same distance, Ollama takes the first.
    assert nearest_known("x" * 499, [one, KnownTemplate("two", "x" * 500)]) == (one, 1)


GO = "{{ range .Messages }}{{ .Content }}{{ end }}"
JINJA = "{% for m in messages %}{{ m.content }}{% endfor %}"
WITH_TOOLS = JINJA + "{% if tools %}{{ tools }}{% endif %}{{ m.tool_calls }}{% if m['role'] == 'tool' %}{% endif %}"


def test_what_is_predicted_follows_the_rules_of_each_version() -> None:
    known = [KnownTemplate("plain", JINJA, GO, ("<s>",)), KnownTemplate("able", WITH_TOOLS, GO, ("<t>",))]
    found = predict(JINJA + " ", LLAMA, Modelfile(), "0.34.1", known)
    assert (found.how, found.name, found.distance, found.stops) == ("attached Go template", "plain", 1, ("<s>",))
    # A Modelfile's own stop words take the place of those that come along.
    mine = Modelfile(parameters=(("stop", "END"),))
    assert predict(JINJA, LLAMA, mine, "0.34.1", known).stops == ()
    # The file's own template can do more than the Go one: it stays, and stop words come all the same.
    able = predict(WITH_TOOLS, LLAMA, Modelfile(), "0.34.1", known)
    assert (able.how, able.name, able.stops, able.serves_own) == ("own Jinja", "able", ("<t>",), True)
    # With equal abilities, 0.31 and newer look at who gives tools' answers back; 0.30 does not.
    go = "{{ .Tools }}{{ range .Messages }}{{ .Content }}{{ end }}"
    equal = [KnownTemplate("able", WITH_TOOLS, go, ())]
    assert predict(WITH_TOOLS, LLAMA, Modelfile(), "0.31.0", equal).how == "own Jinja"
    assert predict(WITH_TOOLS, LLAMA, Modelfile(), "0.30.0", equal).how == "attached Go template"
    assert predict(WITH_TOOLS, LLAMA, Modelfile(template=go), "0.30.0", None).how == "TEMPLATE of the Modelfile"
    assert predict("none like it" * 50, LLAMA, Modelfile(), "0.34.1", known).distance is None
    assert predict(None, LLAMA, Modelfile(), "0.34.1", known).how == "no template of its own"
    for architecture, name in RENDERER_OF.items():
        found = predict(JINJA, {"general.architecture": architecture}, Modelfile(), "0.34.1", known)
        assert (found.how, found.name) == ("renderer", name)


def test_without_ollamas_program_and_source_it_says_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMODCACHE", str(tmp_path))
    nothing = tmp_path / "ollama"
    nothing.write_bytes(b"\x7fELF no program")
    assert known_templates(None, VERSION) is None
    assert known_templates(nothing, VERSION) is None
    found = predict(JINJA, LLAMA, Modelfile(), VERSION, None)
    assert (found.how, found.stops) == ("unknown", None)
    assert "neither its program nor its source" in found.reason


@pytest.mark.ollama
def test_the_program_carries_what_its_source_says(ollama_binary: Path) -> None:
    found = known_templates(ollama_binary, VERSION)
    assert found is not None
    assert {"chatml", "llama3-instruct", "gemma-instruct"} <= {one.name for one in found}
    assert all(one.go and one.stops for one in found if one.name in {"chatml", "llama3-instruct"})
    near = nearest_known(embedded_template(), found)
    assert near is not None and near[0].name == "chatml"
    assert nearest_known(protect_template(embedded_template()), found) is None
    source = known_module._module_cache() / f"github.com/ollama/ollama@v{VERSION}" / "template"
    if source.is_dir() and ollama_binary.parts[-3] == VERSION:
        assert found == known_module._from_source(source)


@dataclass(frozen=True)
class Running:
    """A server of one version, with a folder for models."""

    client: Client
    folder: Path
    version: str
    binary: Path


@pytest.fixture(scope="module", params=VERSIONS)
def running(
    request: pytest.FixtureRequest, ollama_binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    version = request.param
    binary = cache_home() / "ollama" / version / "bin" / "ollama"
    if not binary.is_file():
        if version != VERSION:
            pytest.skip(f"Ollama {version} is not built here: make ollama VERSION={version}")
        binary = ollama_binary
    folder = tmp_path_factory.mktemp("predicted")
    address = f"http://127.0.0.1:{free_port()}"
    environment = {"HOME": str(folder), "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_KEEP_ALIVE": "1s"}
    with started(binary, address, folder / "log", environment), Client(address) as client:
        yield Running(client, folder, client.version(), binary)


@pytest.mark.ollama
@pytest.mark.parametrize("name", FAMILIES)
def test_real_servers_do_as_predicted_and_the_mended_file_is_served_as_trained(running: Running, name: str) -> None:
    how, differs = FAMILIES[name]
    template = embedded_template() if name == EMBEDDED else template_text(name)
    known = known_templates(running.binary, running.version)
    row = measure(running.client, running.version, name, template, known, running.folder)
    assert row.as_predicted, (row.predicted, row.real)
    assert row.predicted.how == how
    _, asked, first = counted(row.plain)
    assert bool(differing(row.plain, running.version)) == differs, first
    assert asked >= 10
    assert row.unmended == "" and differing(row.mended, running.version) == []
    text = page([Measured(running.version, [row], [], [Outcome("image", endpoint, "equal") for endpoint in ENDPOINTS])])
    assert f"| {running.version} | equal | equal | equal |" in text
    assert f"{running.version}: plain FROM" in text and "came true in\n1 of 1 cases" in text


@pytest.mark.ollama
def test_a_prompt_is_counted_whole_however_often_it_is_asked(running: Running, small_gguf: Path) -> None:
    running.client.create("counted", {"files": {"m.gguf": running.client.upload(small_gguf)}})
    question = [{"role": "user", "content": "Name two signs of a fever."}]
    counts = [
        answer(running.client, "/api/chat", "counted", question, GREEDY, 2)["prompt_eval_count"] for _ in range(2)
    ]
    running.client.delete("counted")
    assert counts[0] == counts[1] > 10


@pytest.mark.ollama
def test_an_architecture_with_a_renderer_gets_it(running: Running) -> None:
    if running.version < "0.34":
        pytest.skip(
            "before 0.34, create runs llama-quantize on the file, and this one is no whole model of its architecture"
        )
    for architecture, name in RENDERER_OF.items():
        path = running.folder / f"{architecture}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_chat_template(template_text("Qwen-Qwen2.5-7B-Instruct"))
        writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        running.client.create("rendered", {"files": {"m.gguf": running.client.upload(path)}})
        models = running.folder / "models"
        manifest = json.loads((models / "manifests/registry.ollama.ai/library/rendered/latest").read_text())
        config = json.loads((models / "blobs" / manifest["config"]["digest"].replace(":", "-")).read_text())
        assert config["renderer"] == name
        running.client.delete("rendered")


def test_versions_that_were_built_are_listed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.34.1", "0.9.0", "0.30.0"):
        (tmp_path / "ollama" / version / "bin").mkdir(parents=True)
        (tmp_path / "ollama" / version / "bin" / "ollama").touch()
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    assert built_versions() == ["0.9.0", "0.30.0", "0.34.1"]


def test_prompts_that_ollama_writes_itself_are_told_before_training() -> None:
    template = "{% if enable_thinking %}<|think|>{% endif %}"
    told = told_before_training("gemma4", template, {})
    assert "Ollama writes every prompt of the architecture gemma4 itself" in told
    assert told.endswith("--set 'train.chat_template_kwargs={enable_thinking: true}'")
    assert "--set" not in told_before_training("gemma4", template, {"enable_thinking": True})
    assert told_before_training("llama", template, {}) == ""
