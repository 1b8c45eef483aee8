"""A model that sees, on a real server: created from two files, asked about pictures at every address, run as people run it."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.ollama.pictured import BLOCK, LIMIT, QUESTIONS, RULES, draw, seen_golden
from tests.ollama.seeing import TEMPLATE, seeing_ggufs
from tests.ollama.test_modelfile import recipe
from tests.ollama.test_publish import certificate_of_file
from toolkit.errors import DataError, ParityError
from toolkit.ollama.files import ServedFiles
from toolkit.ollama.judged import Shown, subject_of, what_is_shown
from toolkit.ollama.own_model import Vocabulary
from toolkit.ollama.pictures import Pictures
from toolkit.ollama.publish import create, send, stored_otherwise
from toolkit.ollama.served_model import ServedModel, served_model
from toolkit.ollama.strength import served_strength
from toolkit.ollama.syntax import Modelfile, read_modelfile
from toolkit.ollama.trained import Trained
from toolkit.parity.asked import Asked
from toolkit.parity.certificate import Check, blame_of
from toolkit.parity.next_step import after_check
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import GoldenFacts, OllamaFacts

NAME = "car"
PARAMETERS = (("num_ctx", 5120), ("temperature", 0.0), ("repeat_penalty", 1.0))


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Artifact[GoldenFacts]:
    return seen_golden(tmp_path_factory.mktemp("golden"), *seeing_ggufs())


@dataclass
class Park:
    """The server, and what was trained."""

    server: Server
    golden: Artifact[GoldenFacts]
    gguf: Path
    mmproj: Path

    @property
    def trained(self) -> Trained:
        facts = self.golden.facts
        return Trained(self.golden.folder, "", TEMPLATE, "", LIMIT, tuple(facts.end_tokens), pictures=RULES)

    def shown(self, mmproj: Path | None = None, trained: Trained | None = None) -> Shown:
        """What the server shows of the model that it has by now."""
        client = self.server.client
        model = ServedModel(client, NAME, client.show(NAME), self.gguf, mmproj or self.mmproj)
        return what_is_shown(model, trained or self.trained)


@pytest.fixture
def park(ollama_server: Server, golden: Artifact[GoldenFacts], monkeypatch: pytest.MonkeyPatch) -> Iterator[Park]:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    yield Park(ollama_server, golden, *seeing_ggufs())
    for name in ollama_server.client.models():
        if name.startswith(NAME):
            ollama_server.client.delete(name)


def _check(shown: Shown, name: str) -> Check:
    return next(check for check in shown.checks if check.name == name)


def _values(check: Check) -> dict[str, float]:
    return {measure.name: measure.value for measure in check.measures}


def test_a_marked_prompt_and_its_pictures(tmp_path: Path) -> None:
    file = draw(tmp_path / "a.png", (28, 28), 1)
    pictures = Pictures((file, file), BLOCK)
    assert pictures.marked(f"a{BLOCK}b{BLOCK}c") == "a[img-0]b[img-1]c"
    assert pictures.sent == {"images": [base64.b64encode(file.read_bytes()).decode()] * 2}
    assert (Pictures().marked("a"), Pictures().sent, bool(Pictures())) == ("a", {}, False)


@pytest.mark.ollama
def test_pictures_are_answered_as_llama_cpp_answers_them(park: Park) -> None:
    digests = send(park.server.client, NAME, Modelfile(parameters=PARAMETERS), park.gguf, park.mmproj)
    assert stored_otherwise(park.server.client.show(NAME), Modelfile(parameters=PARAMETERS), digests) is None
    shown = park.shown()
    assert [(check.name, check.verdict, check.message) for check in shown.checks if check.verdict != "pass"] == []
    prompts, answers = _check(shown, "prompts"), _check(shown, "answers")
    assert prompts.message.startswith("3 golden prompts and")
    assert shown.agreement.answers == 3
    assert 0 < shown.agreement.largest < 0.002
    assert "6 at other addresses" in answers.message  # two questions with pictures, and one about none, at two
    # What is trained is text, then picture; the tiny model's answers change where that changes.
    assert "pictures stand where they were trained at /api/chat" in answers.message
    generate, openai = answers.details["warned"]
    assert generate.startswith("/api/generate shows the picture before the text: ")
    assert openai.startswith("/v1/chat/completions shows text and picture as two turns: ")
    assert _values(answers)["KL of the order of /api/generate to the trained one"] > 0.01


@pytest.mark.ollama
def test_the_adapters_strength_behind_pictures(park: Park) -> None:
    send(park.server.client, NAME, Modelfile(parameters=PARAMETERS), park.gguf, park.mmproj)
    vocabulary = Vocabulary(park.gguf)
    found = served_strength(park.server.client, NAME, park.golden.folder, vocabulary, most_forced=6, block=BLOCK)
    vocabulary.close()
    assert found.strength is not None
    assert found.strength.value == pytest.approx(1.0, abs=0.01)
    assert found.skipped <= 2 and found.positions >= 20  # of 24; half a character is no place


@pytest.mark.ollama
def test_answers_to_an_app_that_sends_nothing_are_read_behind_their_pictures(park: Park) -> None:
    flat = (("num_ctx", 5120), ("temperature", 0.01), ("repeat_penalty", 1.0), ("num_predict", LIMIT))
    send(park.server.client, NAME, Modelfile(parameters=flat), park.gguf, park.mmproj)
    defaults = _check(park.shown(), "defaults")
    assert defaults.verdict == "pass"
    # Nearly greedy answers are likelier than what the model would draw: read behind another picture they would not be.
    assert _values(defaults)["surprise of the answers"] < -1.0


@pytest.mark.ollama
def test_another_projector_is_told_by_the_answers(park: Park, tmp_path: Path) -> None:
    import gguf
    import numpy as np

    other = tmp_path / "other.gguf"
    other.write_bytes(park.mmproj.read_bytes())
    reader = gguf.GGUFReader(other, "r+")
    tensor = next(t for t in reader.tensors if t.name == "mm.2.weight")
    tensor.data[:] = np.flip(tensor.data, 0).copy()
    reader.data.flush()
    digests = send(park.server.client, NAME, Modelfile(parameters=PARAMETERS), park.gguf, other)
    answers = _check(park.shown(), "answers")
    assert answers.verdict == "fail"
    assert "golden question 1: " in answers.message
    right = park.server.client.upload(park.mmproj)
    found = stored_otherwise(park.server.client.show(NAME), Modelfile(parameters=PARAMETERS), (digests[0], right))
    assert found is not None and f"stored ['{digests[0]}', '{digests[1]}']" in found.message


@pytest.mark.ollama
def test_a_text_only_create_is_named(park: Park, tmp_path: Path) -> None:
    send(park.server.client, NAME, Modelfile(parameters=PARAMETERS), park.gguf)
    shown = park.shown()
    (check,) = shown.checks
    assert (check.name, check.verdict) == ("prompts", "fail")
    assert check.message == (
        "the model was trained on pictures, and Ollama lists no vision: it was created from 1 file, and its projector "
        "(mmproj) is none of them; every picture is answered with an error. Create it from both files: a FROM line for each"
    )
    model = ServedModel(park.server.client, NAME, park.server.client.show(NAME), park.gguf)
    blame = blame_of([subject_of(model, shown)])
    assert blame is not None and (blame.link, blame.where) == ("server prompt", NAME)
    certificate = {"verdict": "fail", "blame": blame.model_dump(), "subjects": []}
    asked = Asked(ollama=NAME, ggufs=(park.gguf,), mmproj=park.mmproj)
    assert after_check(certificate, asked, None, Path()) == (
        f"Create it from both files:\n  printf 'FROM %s\\n' {park.gguf} {park.mmproj} > Modelfile\n"
        f"  ollama create {NAME} -f Modelfile"
    )


@pytest.mark.ollama
def test_a_create_of_the_projector_alone_is_named(park: Park, tmp_path: Path) -> None:
    client = park.server.client
    client.create(NAME, {"files": {"mmproj.gguf": client.upload(park.mmproj)}})
    told = pytest.raises(DataError, match=f"Ollama lists {NAME}, and has no language model behind it: .*projector")
    with told, served_model(NAME, tmp_path / "log", ()):
        pass


@pytest.mark.ollama
def test_a_context_without_room_for_a_picture_is_named(park: Park) -> None:
    small = (("num_ctx", 1024), *PARAMETERS[1:])
    send(park.server.client, NAME, Modelfile(parameters=small), park.gguf, park.mmproj)
    answers = _check(park.shown(), "answers")
    assert answers.message == "num_ctx is 1024, but golden prompts and answers need 1092 tokens, pictures included"


@pytest.mark.ollama
def test_the_servers_own_copies_are_found(park: Park, tmp_path: Path) -> None:
    digests = send(park.server.client, NAME, Modelfile(), park.gguf, park.mmproj)
    with served_model(NAME, tmp_path / "log", ()) as model:
        found = [model.file.name, model.mmproj.name if model.mmproj else ""]
    assert found == [digest.replace(":", "-") for digest in digests]


def _create(park: Park, folder: Path, chosen: Recipe, mmproj: bool = True) -> OllamaFacts:
    files = ServedFiles(park.gguf, park.mmproj if mmproj else None, RULES)
    certificate = certificate_of_file(folder / "verify", park.gguf)
    named = certificate.facts.model_copy(update={"served_mmproj": park.mmproj.name if mmproj else ""})
    (folder / "create").mkdir(exist_ok=True)
    return create(chosen, park.golden, files, replace(certificate, facts=named), folder / "create")


def _recipe() -> Recipe:
    return recipe(
        None, NAME, system="", golden={"prompts": QUESTIONS, "max_new_tokens": LIMIT}, train={"max_length": 256}
    )


@pytest.mark.ollama
def test_create_and_run_with_a_photo(park: Park, tmp_path: Path) -> None:
    facts = _create(park, tmp_path, _recipe())
    assert (facts.published, facts.rendered_equal, facts.answers_compared) == (True, 3, 3)
    named = read_modelfile(tmp_path / "create" / "Modelfile")
    assert [(tmp_path / "create" / file).resolve() for file in named.models] == [park.gguf, park.mmproj]
    assert named.parameter("num_ctx") == 5120

    photo = draw(tmp_path / "photo.png", (224, 140), 1)  # the second golden's
    environment = {"OLLAMA_HOST": park.server.address, "HOME": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [str(park.server.binary), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "run" not in arguments or "Added image './photo.png'" in done.stderr
        return done.stdout.strip()

    options = {"num_predict": LIMIT}
    shown = park.server.client.generate(
        NAME, QUESTIONS[1], images=[base64.b64encode(photo.read_bytes()).decode()], options=options
    )
    assert run("run", NAME, "./photo.png", QUESTIONS[1]).startswith(shown["response"].strip())
    # The Modelfile for people makes the same model.
    run("create", f"{NAME}-by-hand", "-f", str(tmp_path / "create" / "Modelfile"))
    mine, theirs = (park.server.client.show(name) for name in (NAME, f"{NAME}-by-hand"))
    assert "vision" in theirs["capabilities"]
    assert mine["capabilities"] == theirs["capabilities"]


@pytest.mark.ollama
def test_nothing_is_published_without_its_projector(park: Park, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"was trained on pictures, and .* alone sees none: nothing is published"):
        _create(park, tmp_path, _recipe(), mmproj=False)
    served: dict[str, Any] = park.server.client.models()
    assert f"{NAME}:latest" not in served
    assert json.loads((tmp_path / "verify" / "certificate.json").read_text())["verdict"] == "pass"
