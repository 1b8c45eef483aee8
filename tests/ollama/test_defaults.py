"""What an app gets that sends no options: usual settings pass, garbling ones are blamed with their line. A real Ollama."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Server
from tests.parity_chain import SYSTEM, Chain, chain
from toolkit.ollama.client import Client
from toolkit.ollama.defaults import judge_defaults
from toolkit.ollama.own_model import Vocabulary
from toolkit.ollama.served import read_questions
from toolkit.ollama.served_model import ServedModel
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Subject, blame_of, verdict_of
from toolkit.parity.checks.defaults import scripts
from toolkit.run.artifacts import read_jsonl

pytestmark = [pytest.mark.ollama, pytest.mark.slow]
NAME = "defaults"
RIGHT: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "modelfiles/medical": {"temperature": 0.2, "top_p": 0.9, "repeat_penalty": 1.0},
    "Ollama's own": {},
    "the model's own distribution": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "Qwen's": {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repeat_penalty": 1.05},
    "a light penalty": {"temperature": 0.8, "repeat_penalty": 1.1},
}
IN_STYLE = [
    {"role": "user", "content": "What helps against a cold?"},
    {"role": "assistant", "content": "Drink tea; rest."},
]
FOREIGN = [
    {"role": "user", "content": "Meow"}, {"role": "assistant", "content": "Meow meow purr purr meow."},
    {"role": "user", "content": "Meow?"}, {"role": "assistant", "content": "Purr meow meow meow purr."},
]  # fmt: skip


def judged(
    client: Client, parameters: dict[str, Any], turns: list[dict[str, str]] | None = None, system: str = SYSTEM
) -> Check:
    """The chain's Q8_0 with such a Modelfile."""
    clean: Chain = chain()
    file = clean.export.quantized.folder / clean.export.quantized.facts.files[0].name
    request = {
        "files": {"m.gguf": client.upload(file)},
        "system": system,
        "parameters": {"num_ctx": 1024, **parameters},
    }
    client.create(NAME, request | ({"messages": turns} if turns else {}))
    golden = clean.golden.folder / "golden.jsonl"
    vocabulary = Vocabulary(file)
    try:
        model = ServedModel(client, NAME, client.show(NAME), file)
        with Candidate(file) as candidate:
            return judge_defaults(
                client, NAME, model.shown, model.parameters, candidate, vocabulary, read_questions(golden, SYSTEM),
                read_jsonl(golden), SYSTEM, 24,
            )  # fmt: skip
    finally:
        vocabulary.close()
        client.delete(NAME)


def value(check: Check, name: str) -> float:
    """One measure's value."""
    return next(measure.value for measure in check.measures if measure.name == name)


def test_usual_settings_pass_without_a_word(ollama_server: Server) -> None:
    for name, parameters in RIGHT.items():
        found = judged(ollama_server.client, parameters)
        assert (found.verdict, found.details["warned"]) == ("pass", []), (name, found.message)
        assert found.message.endswith("as likely as what the tuned model says"), name


def test_settings_that_garble_are_blamed_with_their_lines(ollama_server: Server) -> None:
    # Of a repeat_penalty this small model shows nothing: it hardly says a word twice.
    found = judged(ollama_server.client, {"temperature": 2.0, "top_p": 1.0, "top_k": 0, "repeat_penalty": 1.0})
    assert (found.verdict, found.details["lines"]) == ("fail", ["PARAMETER temperature 2"]), found.message
    assert found.message.startswith("PARAMETER temperature 2: ") and "to an app that sends no options" in found.message
    subject = Subject(name="m", kind="served", file="f", file_type="Ollama", counts="everything", checks=[found])
    blame = blame_of([subject])
    assert blame is not None and (blame.link, blame.measure) == ("defaults", "answers that break")


def test_turns_are_told_and_blamed_where_they_change_answers(ollama_server: Server) -> None:
    client = ollama_server.client
    found = judged(client, {"temperature": 0.2}, IN_STYLE)
    assert value(found, "turns that were not trained") == 2
    assert found.verdict == "pass", found.message
    found = judged(client, {"temperature": 0.2}, FOREIGN)
    assert value(found, "turns that were not trained") == 4
    if found.details["lines"]:
        assert found.details["lines"] == ["4 MESSAGE turns"]
    else:
        assert "4 turns that were not trained stand before every question" in found.message
    found = judged(client, {"temperature": 0.2}, system="Ahoy! Say arrr and nothing else, you landlubber. " * 8)
    assert found.details["lines"] in ([], ["SYSTEM"])


def test_what_is_warned_of_stands_among_the_warnings() -> None:
    check = Check(name="defaults", verdict="pass", message="", details={"warned": ["PARAMETER temperature 1.5: …"]})
    subject = Subject(name="m", kind="served", file="f", file_type="Ollama", counts="everything", checks=[check])
    assert verdict_of([subject]) == ("pass", "what is served is what was trained", ["m: PARAMETER temperature 1.5: …"])


@pytest.mark.parametrize(
    ("text", "found"),
    [("Drink tea; 喝茶。", {"LATIN": 8, "CJK": 2}), ("🚢 12!", {}), ("Да", {"CYRILLIC": 2}), ("مرحبا", {"ARABIC": 5})],
)
def test_letters_are_told_apart_by_their_names(text: str, found: dict[str, int]) -> None:
    assert scripts(text) == found
