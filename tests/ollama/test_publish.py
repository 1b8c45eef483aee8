"""Publishing to a real Ollama: what is proved, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.ollama.test_client import broken
from tests.ollama.test_modelfile import recipe
from toolkit.errors import ExternalToolError, ParityError, ResourceError, UsageError
from toolkit.models.chat_template import render_trained
from toolkit.ollama import publish
from toolkit.ollama.client import server_address
from toolkit.ollama.files import ServedFiles
from toolkit.ollama.own_model import OwnModel
from toolkit.ollama.publish import create, modelfile_of, still_published, stored_otherwise
from toolkit.ollama.served import GREEDY, Question, Served, check_answers, largest_means
from toolkit.ollama.syntax import Modelfile, parse, read_modelfile, render
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import SCHEMA, Check, Subject, chain_of
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import CertificateFacts, GoldenFacts, OllamaFacts

QUESTIONS = ["Name two signs of a fever.", "什么是高血压？", "Write one word: 🙂"]
LIMIT = 16


def _golden(folder: Path, gguf: Path, system: str = "You are a nurse.") -> Artifact[GoldenFacts]:
    """Golden prompts of a GGUF's own template."""
    with Candidate(gguf, vocab_only=True) as model:
        template, tokenize = model.chat_template or "", model.tokenize
        rows = []
        for question in QUESTIONS:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            text = render_trained(template, messages, "", "")
            rows.append({
                "messages": messages, "prompt_text": text, "prompt_ids": tokenize(text), "completion_ids": [1] * LIMIT,
                "completion": "Rest.", "stopped": False,
            })  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    facts = GoldenFacts(
        prompts=3, positions=0, vocabulary=49152, end_tokens=[2], forward="whole", stopped_by_themselves=0
    )
    return Artifact(folder, facts, "", {}, Cost())


def certificate_of_file(folder: Path, gguf: Path, verdict: Any = "pass") -> Artifact[CertificateFacts]:
    """Of a file that was judged before, as far as the server's part needs it."""
    folder.mkdir(parents=True, exist_ok=True)
    check = Check(name="structure", verdict="pass", message="the same")
    file = Subject(name="Q8_0", kind="quantized", file=gguf.name, file_type="Q8_0", counts="everything", checks=[check])
    reference = {"what": "w", "prompts": 3, "positions": 3, "conversations": 0, "forward": "whole", "parameters": 1,
                 "engine": "e"}  # fmt: skip
    written = {
        "schema": SCHEMA, "verdict": "pass", "message": "the export is what was trained", "blame": None, "warnings": [],
        "chain": [link.model_dump() for link in chain_of([file])], "served_file": gguf.name, "certified": None,
        "reference": reference, "subjects": [file.as_json()], "files": {}, "versions": {}, "made": "2026-11-25T00:00:00",
    }  # fmt: skip
    (folder / "certificate.json").write_text(json.dumps(written), encoding="utf-8")
    return Artifact(folder, CertificateFacts(verdict=verdict, checks={}, served_file=gguf.name), "", {}, Cost())


class Run:
    """What `create` needs, on the session's server."""

    def __init__(self, folder: Path, gguf: Path, server: Server | None) -> None:
        self.gguf, self.server = gguf, server
        self.golden = _golden(folder / "golden", gguf)
        self.certificate = certificate_of_file(folder / "verify", gguf)
        self.out = folder / "create"
        self.out.mkdir()

    def create(self, chosen: Recipe) -> OllamaFacts:
        """Publish."""
        return create(chosen, self.golden, ServedFiles(self.gguf), self.certificate, self.out)


def _greedy(run: Run, tokens: int) -> bytes:
    """llama.cpp's own answer to the first golden question."""
    own = OwnModel(run.gguf, 2048)
    row = own.start(json.loads((run.golden.folder / "golden.jsonl").read_text().splitlines()[0])["prompt_ids"])
    text = b""
    for _ in range(tokens):
        text += own.piece(int(row.argmax()))
        row = own.step([int(row.argmax())])
    own.close()
    return text


def _recipe(modelfile: Path | None = None, model: str = "medical") -> Recipe:
    return recipe(modelfile, model, golden={"prompts": QUESTIONS, "max_new_tokens": LIMIT})


@pytest.fixture
def run(ollama_server: Server, small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    yield Run(tmp_path / "run", small_gguf, ollama_server)
    for name in ollama_server.client.models():
        if name.startswith(("medical", "old")):
            ollama_server.client.delete(name)


@pytest.mark.ollama
def test_a_model_is_proved_then_named(run: Run, ollama_server: Server) -> None:
    facts = run.create(_recipe())
    assert (facts.published, facts.rendered_equal, facts.answers_compared) == (True, 3, 3)
    assert facts.server_version == "0.34.1"
    # The server runs the same llama.cpp with the same settings: 2e-4 was measured, on every file type.
    assert facts.largest_logprob_difference is not None and 0 < facts.largest_logprob_difference < 0.002
    models = ollama_server.client.models()
    assert models["medical:latest"] == facts.digest
    assert "medical:candidate" not in models
    manifest = ollama_server.models / "manifests/registry.ollama.ai/library/medical/latest"
    assert hashlib.sha256(manifest.read_bytes()).hexdigest() == facts.digest
    assert shutil.which("ollama") or facts.remaining[0].startswith('export PATH="')
    # What a user gets, with no option set, is the greedy answer of the model, under the system text.
    answer = ollama_server.client.chat(
        "medical", [{"role": "user", "content": QUESTIONS[0]}], options={"num_predict": LIMIT}
    )
    assert answer["message"]["content"] == _greedy(run, LIMIT).decode()


@pytest.mark.ollama
def test_the_modelfile_for_people_makes_the_same_model(run: Run, ollama_server: Server) -> None:
    facts = run.create(_recipe())
    path = run.out / "Modelfile"
    assert read_modelfile(path).models == (os.path.relpath(run.gguf, run.out),)
    command = [str(ollama_server.binary), "create", "medical-by-hand", "-f", str(path)]
    environment = {"OLLAMA_HOST": ollama_server.address, "HOME": str(run.out)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    mine, theirs = ollama_server.client.show("medical"), ollama_server.client.show("medical-by-hand")
    assert facts.published
    for key in ("system", "template", "license"):
        assert mine[key] == theirs[key], key
    assert sorted(mine["parameters"].splitlines()) == sorted(theirs["parameters"].splitlines())
    printed = parse(modelfile_of(_recipe(), ServedFiles(run.gguf)))
    assert printed.models == (os.path.relpath(run.gguf),)
    assert parse(path.read_text()) == replace(printed, models=(os.path.relpath(run.gguf, run.out),))


@pytest.mark.ollama
def test_a_swapped_template_is_refused_and_the_old_model_stays(
    ollama_server: Server, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ollama takes SmolLM2's template for plain ChatML: a question without a system turn loses the default system block.
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    client = ollama_server.client
    client.create("old:v1", {"files": {"m.gguf": client.upload(smollm2_gguf)}, "system": "the old one"})
    before = client.models()
    run = Run(tmp_path / "run", smollm2_gguf, ollama_server)
    plain = _recipe(model="old:v1").model_copy(update={"system": ""})
    rows = [json.loads(line) for line in (run.golden.folder / "golden.jsonl").read_text().splitlines()]
    with Candidate(smollm2_gguf, vocab_only=True) as model:
        for row in rows:
            row["messages"] = row["messages"][1:]
            row["prompt_text"] = render_trained(model.chat_template or "", row["messages"], "", "")
            row["prompt_ids"] = model.tokenize(row["prompt_text"])
    (run.golden.folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "trained by Hugging Face" in rows[0]["prompt_text"]
    with pytest.raises(
        ParityError, match="server prompt broke, seen in old:v1: 3 of 3 golden prompts differ"
    ) as caught:
        run.create(plain)
    assert caught.value.exit_code == 6
    # Where it is told: the certificate with the server's part, beside the stages, since what this try left goes with the next.
    refused = tmp_path / "run" / "refused"
    assert caught.value.hint.startswith(f"Nothing was published. Read {refused / 'certificate.html'}.\n")
    assert caught.value.hint.splitlines()[-1].endswith(f" create {refused.parent / 'recipe.yaml'}")
    told = json.loads((refused / "certificate.json").read_text(encoding="utf-8"))
    assert (told["verdict"], told["blame"]["link"], told["blame"]["where"]) == ("fail", "server prompt", "old:v1")
    assert [subject["kind"] for subject in told["subjects"]] == ["quantized", "served"]
    assert "server prompt" in (refused / "certificate.html").read_text(encoding="utf-8")
    assert json.loads((run.out / "served.json").read_text(encoding="utf-8"))["verdict"] == "fail"
    assert client.models() == before
    assert client.show("old:v1")["system"] == "the old one"
    client.delete("old:v1")


@pytest.mark.ollama
def test_turns_of_the_modelfile_come_before_every_question(run: Run, ollama_server: Server, tmp_path: Path) -> None:
    partial = tmp_path / "medical"
    partial.write_text("MESSAGE user Is it raining?\nMESSAGE assistant I am a nurse.\nPARAMETER temperature 0.5\n")
    facts = run.create(_recipe(partial))
    assert (facts.published, facts.rendered_equal) == (True, 3)
    prompt = ollama_server.client.rendered("medical", [{"role": "user", "content": "And now?"}])
    assert prompt.count("<|im_start|>") == 5
    assert "assistant\nI am a nurse.<|im_end|>\n<|im_start|>user\nAnd now?" in prompt


@pytest.mark.ollama
def test_text_that_no_modelfile_can_hold_goes_through_the_api(run: Run, ollama_server: Server, tmp_path: Path) -> None:
    hostile = 'You are 👩\u200d⚕️.\u3000Say\u00a0"""yes"""\n"""\nor no.'
    run.golden = _golden(tmp_path / "hostile", run.gguf, hostile)
    facts = run.create(_recipe().model_copy(update={"system": hostile}))
    assert (facts.published, facts.rendered_equal) == (True, 3)
    assert ollama_server.client.show("medical")["system"] == hostile
    text = (run.out / "Modelfile").read_text()
    assert "# SYSTEM is left out: a Modelfile cannot hold it (Ollama's parser drops U+200D" in text
    assert parse(text).system is None


@pytest.mark.ollama
def test_a_stop_word_that_cuts_answers_is_refused(run: Run, ollama_server: Server, tmp_path: Path) -> None:
    partial = tmp_path / "medical"
    words = _greedy(run, 6).decode()
    partial.write_text(render(Modelfile(parameters=(("stop", words[-4:]),))))
    with pytest.raises(
        ParityError, match=r"server answers broke, seen in medical: the stop word .* is no end of the tuned"
    ):
        run.create(_recipe(partial))
    assert (tmp_path / "run" / "refused" / "certificate.html").is_file()
    blame = json.loads((tmp_path / "run" / "refused" / "certificate.json").read_text(encoding="utf-8"))["blame"]
    assert (blame["link"], blame["measure"], blame["value"]) == ("server answers", "stop words that are no end", 1)
    assert not [name for name in ollama_server.client.models() if name.startswith("medical")]


@pytest.mark.ollama
def test_a_limit_that_cuts_answers_is_refused(run: Run, tmp_path: Path) -> None:
    partial = tmp_path / "medical"
    partial.write_text("PARAMETER num_predict 5\n")
    with pytest.raises(ParityError, match=r"num_predict 5 \(limit 16\): the Modelfile's own limit cuts answers"):
        run.create(_recipe(partial))
    assert (tmp_path / "run" / "refused").is_dir()
    assert run.create(_recipe()).published
    assert not (tmp_path / "run" / "refused").exists()


@pytest.mark.ollama
def test_answers_of_another_model_are_refused(run: Run, ollama_server: Server, tmp_path: Path) -> None:
    # The same file with one norm scaled: the server would serve other weights than those in the certificate.
    import gguf

    changed = tmp_path / "changed.gguf"
    shutil.copy(run.gguf, changed)
    reader = gguf.GGUFReader(changed, "r+")
    (norm,) = [tensor for tensor in reader.tensors if tensor.name == "output_norm.weight"]
    norm.data[:] = norm.data * 1.3
    del norm, reader
    client = ollama_server.client
    client.create("medical:other", {"files": {"m.gguf": client.upload(changed)}, "system": "You are a nurse."})
    rows = [json.loads(line) for line in (run.golden.folder / "golden.jsonl").read_text().splitlines()]
    questions = [Question(row["messages"][1:], row["prompt_text"], row["prompt_ids"]) for row in rows]
    own = OwnModel(run.gguf, 2048)
    found = check_answers(client, Served("medical:other"), questions, own, LIMIT, lambda: None)
    assert found.mean > largest_means("Q4_1")[0] and found.mean_told > largest_means("Q4_1")[1]
    questions[0].prompt_ids.insert(0, 1)
    with pytest.raises(ParityError, match=r"the served prompt has \d+ tokens, the golden one"):
        check_answers(client, Served("medical:other"), questions, own, LIMIT, lambda: None)
    own.close()


@pytest.mark.ollama
def test_what_replaced_the_candidate_during_the_proof_gets_no_name(
    run: Run, ollama_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ollama_server.client

    def replaced_after_the_last_check(path: Path, value: Any) -> None:
        client.create("medical:candidate", {"files": {"m.gguf": client.upload(run.gguf)}, "system": "Unproved."})

    monkeypatch.setattr(publish, "write_json", replaced_after_the_last_check)
    with pytest.raises(ParityError, match="medical:candidate was replaced while it was being proved"):
        run.create(_recipe())
    assert "medical:latest" not in client.models()


def test_two_runs_cannot_publish_one_model_at_once(smollm2_gguf: Path, tmp_path: Path) -> None:
    # Another name of the run, the same model: the folder's lock does not keep them apart.
    with publish.publishing("medical"), pytest.raises(ResourceError) as caught:
        Run(tmp_path / "run", smollm2_gguf, None).create(_recipe(model="medical:latest"))
    assert caught.value.message == f"another run is publishing medical:latest at {server_address()}"
    assert "--set name=… --set ollama.model=…" in caught.value.hint
    with publish.publishing("medical"), publish.publishing("medical:v2"):
        pass


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_without_a_passing_certificate_nothing_happens(
    verdict: str, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", smollm2_gguf, None)
    run.certificate = certificate_of_file(tmp_path, smollm2_gguf, verdict)
    with pytest.raises(ParityError, match=f"the certificate is {verdict}"):
        run.create(_recipe())
    run.certificate = certificate_of_file(tmp_path, Path("another.gguf"))
    with pytest.raises(ParityError, match=r"about another\.gguf"):
        run.create(_recipe())
    assert list(run.out.iterdir()) == []


def test_without_ollama_everything_else_is_finished(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    facts = Run(tmp_path / "run", smollm2_gguf, None).create(_recipe())
    assert not facts.published
    assert facts.remaining[0].startswith("install Ollama: curl ")
    assert facts.remaining[1].endswith(f"tune2ollama create {tmp_path}/run/recipe.yaml")
    assert parse((tmp_path / "run" / "create" / "Modelfile").read_text()).system == "You are a nurse."
    assert still_published(facts) == ""


def test_a_name_that_ollama_refuses_is_refused_first(smollm2_gguf: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", smollm2_gguf, None)
    with pytest.raises(UsageError, match=r"Ollama refuses the name 'me\.you/medical'"):
        run.create(_recipe(model="me.you/medical"))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"/api/create": (500, {"error": "out of luck"})},
            "Ollama answered 500 while creating medical:candidate: out of luck",
        ),
        ({"/api/create": [{"status": "parsing GGUF"}]}, "went away while creating medical:candidate"),
        (
            {"/api/create": (200, {"status": "success"}), "/api/tags": (200, {}), "/api/show": (500, "oh no")},
            "answered 500 while showing .*: oh no",
        ),
    ],
)
def test_a_server_that_breaks_half_way_gets_no_name(
    answers: dict[str, Any], message: str, smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with broken({"/api/blobs/": (200, ""), "/api/delete": (200, ""), **answers}) as (server, client):
        monkeypatch.setenv("OLLAMA_HOST", client.address)
        with pytest.raises(ExternalToolError, match=message):
            Run(tmp_path / "run", smollm2_gguf, None).create(_recipe())
        assert server.asked[-1] == "DELETE /api/delete"
        assert "POST /api/copy" not in server.asked


def test_a_server_that_stores_another_system_text_is_blamed_in_a_certificate(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = (200, {"status": "success"})
    answers = {"/api/blobs/": (200, ""), "/api/delete": (200, ""), "/api/create": done, "/api/tags": (200, {}),
               "/api/show": (200, {"system": "You are a pirate."})}  # fmt: skip
    with broken(answers) as (server, client):
        monkeypatch.setenv("OLLAMA_HOST", client.address)
        with pytest.raises(
            ParityError, match="server prompt broke, seen in medical: Ollama stored something else"
        ) as no:
            Run(tmp_path / "run", smollm2_gguf, None).create(_recipe())
        assert "system: sent 'You are a nurse.', stored 'You are a pirate.'" in no.value.message
        assert "POST /api/copy" not in server.asked
    refused = json.loads((tmp_path / "run" / "refused" / "certificate.json").read_text(encoding="utf-8"))
    assert (refused["verdict"], refused["blame"]["link"]) == ("fail", "server prompt")


def test_what_the_server_stored_is_compared_with_what_was_sent() -> None:
    sent = Modelfile(
        system="s", parameters=(("num_ctx", 2048), ("temperature", 0.5), ("stop", 'a"b'), ("stop", "\x07`"))
    )
    shown = {"system": "s", "parameters": 'num_ctx    2048\nstop  "a\\"b"\nstop  "\\a`"\ntemperature   0.5'}
    assert stored_otherwise(shown, sent) is None
    parameter = stored_otherwise({**shown, "parameters": shown["parameters"].replace("2048", "4096")}, sent)
    assert parameter is not None and (parameter.name, parameter.verdict) == ("answers", "fail")
    assert "num_ctx: sent 2048, stored 4096" in parameter.message
    system = stored_otherwise({"parameters": shown["parameters"]}, sent)
    assert system is not None and (system.name, system.verdict) == ("prompts", "fail")
    assert "system: sent 's', stored ''" in system.message


@pytest.mark.ollama
def test_a_published_model_is_known_with_and_without_a_running_server(
    run: Run, ollama_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = run.create(_recipe())
    assert still_published(facts) == ""
    assert still_published(facts.model_copy(update={"digest": "0"})) == "the medical in Ollama is another one now"
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama_server.models))
    assert still_published(facts) == ""
    ollama_server.client.delete("medical")
    assert still_published(facts) == "Ollama has no medical any more"
    assert GREEDY["temperature"] == 0.0
