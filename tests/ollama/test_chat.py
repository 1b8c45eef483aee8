"""Chatting: with a GGUF file in this process, and with a published model through a real Ollama."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.conftest import Server
from toolkit.errors import UsageError
from toolkit.models.embedded import find_gguf
from toolkit.ollama.chat import chat_with, gguf_answers, system_of
from toolkit.run.artifacts import Cost, publish
from toolkit.run.facts import AdapterFacts, BaseFacts

ASK = "What is the capital of France? Answer with one word."


def _says(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))


def test_with_a_gguf_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _says(monkeypatch, ASK, "", "/clear", "/bye", "never read")
    chat_with(str(find_gguf()))
    shown = capsys.readouterr()
    assert "Paris" in shown.out
    assert "<|im_end|>" not in shown.out
    assert "/bye ends" in shown.err


def test_the_conversation_is_remembered() -> None:
    answer = gguf_answers(find_gguf())
    turns = [
        {"role": "user", "content": "My name is Zebulon."},
        {"role": "assistant", "content": "Nice to meet you, Zebulon."},
        {"role": "user", "content": "What is my name?"},
    ]
    assert "Zebulon" in "".join(answer(turns))


@pytest.mark.ollama
def test_with_a_published_model(
    ollama_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", ollama_server.address)
    monkeypatch.chdir(tmp_path)
    client = ollama_server.client
    digest = client.upload(find_gguf())
    client.create("chatty", {"files": {"model.gguf": digest}, "parameters": {"temperature": 0, "num_predict": 24}})
    _says(monkeypatch, ASK)  # the end of the input ends the chat
    chat_with("chatty")
    assert "Paris" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"Ollama has no model chatto; it has: .*chatty:latest"):
        chat_with("chatto")
    with pytest.raises(UsageError, match="Ollama has no model yet"):
        chat_with(None)
    client.delete("chatty")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"there is no file runs/x\.gguf"):
        chat_with("runs/x.gguf")


def test_a_gguf_of_a_run_gets_the_system_text_of_its_training(tmp_path: Path) -> None:
    assert system_of(tmp_path / "quantize" / "model.gguf") == ""
    base = BaseFacts(id="b", folder="b", revision="", license="other", digest="d")
    facts = AdapterFacts(
        method="lora", base=base, base_dtype="float32", quantization=None, chat_template_sha256="", system="Be brief.",
        trained_here=True,
    )  # fmt: skip
    (tmp_path / "train.partial").mkdir()
    publish(tmp_path / "train.partial", tmp_path / "train", facts, {}, Cost())
    assert system_of(tmp_path / "quantize" / "model.gguf") == "Be brief."
