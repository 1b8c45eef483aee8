"""What a server can break: an answer cut by a stop word, a context too small. Through a real Ollama, judged as a link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.conftest import Server
from tests.faults.chains import fault_chain
from tests.parity_chain import SYSTEM
from toolkit.artifacts import read_jsonl
from toolkit.ollama.judged import judge_served
from toolkit.parity.certificate import Subject, blame_of, link_of
from toolkit.parity.subjects import Tuned

pytestmark = [pytest.mark.slow, pytest.mark.ollama]
NAME = "faulty"


def served(server: Server, parameters: dict[str, Any], folder: Path) -> Subject:
    """The clean chain's Q4_K_M with such parameters, judged on the server."""
    clean = fault_chain()
    file = clean.export.quantized.folder / clean.export.quantized.facts.files[0].name
    client = server.client
    settings = {"num_ctx": 2048, "temperature": 0.0, "repeat_penalty": 1.0} | parameters
    client.create(NAME, {"files": {file.name: client.upload(file)}, "system": SYSTEM, "parameters": settings})
    try:
        tuned = Tuned.of(clean.recipe, clean.adapter, clean.golden, AutoTokenizer.from_pretrained(clean.adapter.folder))
        return judge_served(NAME, tuned, clean.golden.folder, SYSTEM, folder / "log", file)[0]
    finally:
        client.delete(NAME)


def first_words() -> str:
    """A token in the middle of the first golden answer, as text."""
    clean = fault_chain()
    row = read_jsonl(clean.golden.folder / "golden.jsonl")[0]
    return str(AutoTokenizer.from_pretrained(clean.adapter.folder).decode(row["completion_ids"][2:4]))


def test_stop_words_that_cut_an_answer(ollama_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    blame = blame_of([served(ollama_server, {"stop": [first_words()]}, tmp_path)])
    assert blame is not None
    assert (blame.link, blame.check) == ("server answers", "answers"), blame.message
    assert "the server stopped where llama.cpp goes on" in blame.message


def test_a_context_too_small_for_the_prompt(
    ollama_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    subject = served(ollama_server, {"num_ctx": 16}, tmp_path)
    answers = next(check for check in subject.checks if check.name == "answers")
    assert (answers.verdict, link_of(subject, answers, [subject])) == ("fail", "server answers")
    assert "num_ctx is 16, but golden prompts and answers need" in answers.message
    # What does not fit is cut from the prompt, so that link breaks too.
    assert subject.verdict == "fail" and blame_of([subject]) is not None


def test_a_right_server_is_not(ollama_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    subject = served(ollama_server, {}, tmp_path)
    assert {check.name: check.verdict for check in subject.checks} == {
        "prompts": "pass", "answers": "pass", "strength": "pass",
    }, [check.message for check in subject.checks]  # fmt: skip
