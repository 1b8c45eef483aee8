"""The client against a real server, and against one that breaks."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server, free_port
from toolkit.errors import ExternalToolError, ResourceError, UsageError
from toolkit.ollama.client import Client, server_address
from toolkit.ollama.server import started
from toolkit.run.artifacts import file_sha256


@pytest.mark.parametrize(
    ("chosen", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("127.0.0.1:1234", "http://127.0.0.1:1234"),
        ("localhost", "http://localhost:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104
        ("http://127.0.0.1", "http://127.0.0.1:80"),
        ("[::1]:9000", "http://[::1]:9000"),
        ("::1", "http://[::1]:11434"),
        ("http://localhost:8080/", "http://localhost:8080"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(chosen: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", chosen)
    assert server_address() == address


@pytest.mark.parametrize(
    "chosen", ["example.com", "https://ollama.com", "192.168.1.5:11434", "ftp://127.0.0.1", "127.0.0.1:99999"]
)
def test_another_machine_is_refused(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", chosen)
    with pytest.raises(UsageError, match="only published to a server on this machine"):
        server_address()


def test_no_server_is_said_with_the_command_that_starts_one() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.answers()
        with pytest.raises(ExternalToolError, match="no Ollama answers at") as caught:
            client.version()
    assert caught.value.hint == "Start it: ollama serve"


class Broken(ThreadingHTTPServer):
    """A server of the test's own that fails as it is told: path → (status, body), or the lines before it hangs up."""

    answers: dict[str, Any]

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {"/api/version": (200, {"version": "0.34.1"}), **answers}
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Broken

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.split("sha256:")[0]
        answers = self.server.answers
        answer = answers.get(f"{self.command} {path}") or answers.get(path) or (404, {"error": "not found"})
        if isinstance(answer, list):  # a stream that is cut
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in answer:
                data = (json.dumps(line) + "\n").encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
            self.close_connection = True
            return
        status, body = answer
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_HEAD = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def broken(answers: dict[str, Any]) -> Iterator[tuple[Broken, Client]]:
    """Run a broken server."""
    server = Broken(answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}") as client:
            yield server, client
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_answers_500_is_quoted() -> None:
    with (
        broken({"/api/create": (500, {"error": "llama runner process has terminated"})}) as (_, client),
        pytest.raises(ExternalToolError, match="Ollama answered 500 while creating m: llama runner process has"),
    ):
        client.create("m", {})


def test_an_error_inside_the_stream_is_quoted() -> None:
    with (
        broken({"/api/create": [{"status": "parsing GGUF"}, {"error": "invalid file magic"}]}) as (_, client),
        pytest.raises(ExternalToolError, match="creating m: invalid file magic"),
    ):
        client.create("m", {})


def test_a_server_that_goes_away_half_way_is_noticed() -> None:
    with (
        broken({"/api/create": [{"status": "parsing GGUF"}]}) as (_, client),
        pytest.raises(ExternalToolError, match="went away while creating m"),
    ):
        client.create("m", {})


def test_a_full_disk_is_a_matter_of_resources() -> None:
    full = (500, {"error": "write /x: no space left on device"})
    with (
        broken({"HEAD /api/blobs/": (404, ""), "/api/blobs/": full}) as (_, client),
        pytest.raises(ResourceError, match="disk is full while taking test_client") as caught,
    ):
        client.upload(Path(__file__))
    assert caught.value.exit_code == 4


def test_too_old_and_not_ollama_are_told_apart() -> None:
    with (
        broken({"/api/version": (200, {"version": "0.29.9"})}) as (_, client),
        pytest.raises(ExternalToolError, match=r"Ollama 0\.29\.9 at .* is too old"),
    ):
        client.version()
    with broken({"/api/version": (200, "<html>hello</html>")}) as (_, client):
        assert not client.answers()
        with pytest.raises(ExternalToolError, match="is that an Ollama"):
            client.version()
    with (
        broken({"/api/chat": (200, {"message": {"content": "hi"}})}) as (_, client),
        pytest.raises(ExternalToolError, match="does not show the prompts"),
    ):
        client.rendered("m", [{"role": "user", "content": "hi"}])


@pytest.mark.ollama
def test_upload_create_show_copy_delete_on_the_real_server(ollama_server: Server, smollm2_gguf: Path) -> None:
    client = ollama_server.client
    assert client.version() == "0.34.1"
    sent: list[int] = []
    digest = client.upload(smollm2_gguf, sent.append)
    assert digest == f"sha256:{file_sha256(smollm2_gguf)}"
    assert sent[-1] == smollm2_gguf.stat().st_size
    assert client.has_blob(digest)
    assert not client.has_blob("sha256:" + "0" * 64)
    again: list[int] = []
    assert client.upload(smollm2_gguf, again.append) == digest
    assert again == [smollm2_gguf.stat().st_size]  # it was there: nothing was sent
    story: list[str] = []
    hostile = 'Say """hi""" to 👩\u200d👩\u200d👧\u00a0and\u3000all.\n"""\nend'
    client.create("made:one", {"files": {"m.gguf": digest}, "system": hostile}, story.append)
    assert story[-1] == "success"
    assert client.show("made:one")["system"] == hostile
    client.copy("made:one", "made:two")
    models = client.models()
    assert models["made:one"] == models["made:two"]
    client.delete("made:one")
    assert "made:one" not in client.models()
    with pytest.raises(UsageError, match="does not know it"):
        client.show("made:one")
    prompt = [{"role": "user", "content": "x"}]
    with pytest.raises(ExternalToolError, match="Ollama answered 400 while asking made:two"):
        client.chat("made:two", prompt, top_logprobs=99)
    client.delete("made:two")


@pytest.mark.ollama
def test_a_server_that_is_killed_during_an_upload_leaves_nothing(
    ollama_binary: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    environment = {"HOME": str(tmp_path), "OLLAMA_MODELS": str(tmp_path / "models")}
    with started(ollama_binary, address, tmp_path / "log", environment) as process, Client(address) as client:

        def kill(sent: int) -> None:
            if sent > 20_000_000:
                os.kill(process, signal.SIGKILL)

        with pytest.raises(ExternalToolError, match=r"went away while taking|no Ollama answers"):
            client.upload(smollm2_gguf, kill)
    with started(ollama_binary, address, tmp_path / "log", environment), Client(address) as client:
        assert client.models() == {}
        digest = f"sha256:{file_sha256(smollm2_gguf)}"
        assert not client.has_blob(digest)
        assert client.upload(smollm2_gguf) == digest
        assert client.has_blob(digest)
