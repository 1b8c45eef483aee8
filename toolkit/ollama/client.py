"""A small client of Ollama's HTTP API, for a server on this machine only.

It sends what the `ollama` package does not: blobs with progress, `_debug_render_only`, `truncate: false`. Every failure becomes a
`ToolkitError` that quotes the server's own words.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from toolkit.errors import ExternalToolError, ResourceError, ToolkitError, UsageError
from toolkit.recipe.section import nearest
from toolkit.run.artifacts import file_sha256

DEFAULT_PORT = 11434
OLDEST_VERSION = (0, 30, 0)
"""The first that runs llama.cpp's own server, which renders the chat template that the GGUF carries."""
KEPT_LOG = "journalctl -u ollama (where it is a service), or ~/.ollama/logs/server.log"
"""Where an Ollama that was not started here keeps its log."""
_CHUNK = 1 << 20
_UNLOAD_SECONDS = 10.0
_ANSWER_SECONDS = 1800.0
"""A 7B on a CPU may take minutes to load and answer; a dead server is noticed at once, by its closed connection."""


def server_address() -> str:
    """Where the server is: `OLLAMA_HOST`, read as Ollama reads it, or 127.0.0.1:11434.

    Raises:
        UsageError: it is not this machine: models would leave it, and nothing could be proved about their bytes.
    """
    chosen = os.environ.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, found, rest = chosen.partition("://")
    if not found:
        scheme, rest = "http", chosen
    default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if found else DEFAULT_PORT
    bare = rest.split("/")[0]
    if bare.count(":") > 1 and not bare.startswith("["):
        bare = f"[{bare}]"
    try:
        parts = urlsplit(f"//{bare}")
        host, port = parts.hostname or "127.0.0.1", parts.port or default
        loopback = host == "localhost" or _is_here(ipaddress.ip_address(host))
    except ValueError:
        loopback = False
    if scheme not in {"http", "https"} or not loopback:
        raise UsageError(
            f"OLLAMA_HOST is {chosen!r}; models are only published to a server on this machine",
            "Unset it, or set it to a loopback address: export OLLAMA_HOST=127.0.0.1:11434",
        )
    if host in {"0.0.0.0", "::"}:  # an address to listen on, not one to connect to  # noqa: S104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _is_past(moment: str) -> bool:
    # Go writes nanoseconds, which Python 3.10 does not read; seconds are enough.
    return datetime.fromisoformat(re.sub(r"\.\d+", "", moment).replace("Z", "+00:00")) <= datetime.now(timezone.utc)


def _is_here(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_loopback or address.is_unspecified


class Client:
    """One server. Methods raise ExternalToolError (it failed or went away), UsageError (a name), ResourceError (its disk)."""

    def __init__(self, address: str, log: str = KEPT_LOG) -> None:
        self.address = address
        self.log = log
        timeout = httpx.Timeout(_ANSWER_SECONDS, connect=5.0)
        # Without trust_env=False a proxy from the environment would be asked for a loopback address.
        self._http = httpx.Client(base_url=address, timeout=timeout, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def answers(self) -> bool:
        """Whether an Ollama listens there."""
        try:
            return "version" in self._http.get("/api/version", timeout=2.0).json()
        except (httpx.HTTPError, ValueError, TypeError):
            return False

    def version(self) -> str:
        """The server's version; ExternalToolError when it is older than `OLDEST_VERSION`."""
        version = str(self._call("GET", "/api/version", "asking for its version")["version"])
        numbers = tuple(int(part) for part in re.split("[-+]", version, maxsplit=1)[0].split(".") if part.isdigit())
        if numbers and numbers < OLDEST_VERSION and numbers != (0, 0, 0):  # 0.0.0: built from source, without a stamp
            oldest = ".".join(map(str, OLDEST_VERSION))
            raise ExternalToolError(
                f"Ollama {version} at {self.address} is too old: {oldest} is the first that serves a model's own chat template",
                "Update it from https://ollama.com/download, or build one here: make ollama",
            )
        return version

    def models(self) -> dict[str, str]:
        """Name (with its tag) → digest of every model."""
        listed = self._call("GET", "/api/tags", "listing the models").get("models") or []
        return {str(model["name"]): str(model["digest"]) for model in listed}

    def show(self, model: str) -> dict[str, Any]:
        """What the server stored: template, system, parameters, license, messages, model_info."""
        return self._call("POST", "/api/show", f"showing {model}", {"model": model})

    def has_blob(self, digest: str) -> bool:
        """Whether the server holds the file `sha256:…` already."""
        with self._translated(f"looking for {digest}"):
            response = self._http.head(f"/api/blobs/{digest}")
            if response.status_code == httpx.codes.NOT_FOUND:
                return False
            self._check(response, f"looking for {digest}")
        return True

    def upload(self, file: Path, progress: Callable[[int], None] = lambda _: None) -> str:
        """Give the server a file, unless it has it (sending it again would reset the connection).

        Args:
            progress: called with the bytes sent so far.

        Returns:
            `sha256:` and the file's digest.
        """
        digest = f"sha256:{file_sha256(file)}"
        if self.has_blob(digest):
            progress(file.stat().st_size)
            return digest

        def chunks() -> Iterator[bytes]:
            sent = 0
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    yield chunk
                    sent += len(chunk)
                    progress(sent)

        doing = f"taking {file.name}"
        with self._translated(doing):
            headers = {"Content-Length": str(file.stat().st_size)}
            self._check(self._http.post(f"/api/blobs/{digest}", content=chunks(), headers=headers), doing)
        return digest

    def create(self, model: str, request: dict[str, Any], status: Callable[[str], None] = lambda _: None) -> None:
        """Make a model from blobs, `POST /api/create`; an older model of that name is replaced.

        Args:
            request: files, system, parameters, license, messages, template …
            status: called with every line of the server's story.
        """
        doing = f"creating {model}"
        last = ""
        for line in self.stream("/api/create", {**request, "model": model}, doing):
            last = str(line.get("status", last))
            status(last)
        if last != "success":
            raise self._went_away(doing, f"its last word was {last or 'nothing'!r}")

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name; an older model of that name is replaced."""
        self._call("POST", "/api/copy", f"naming {destination}", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        """Remove a name, and the files that no other name uses."""
        self._call("DELETE", "/api/delete", f"removing {model}", {"model": model})

    def unload(self, model: str) -> None:
        """Have the server load the model's file anew when it is asked next.

        It keeps one process for a file, and a second model of that file is answered by it, with the first one's TEMPLATE
        (server/sched.go, needsReload).
        """
        self.generate(model, "", keep_alive=0)
        deadline = time.monotonic() + _UNLOAD_SECONDS
        while time.monotonic() < deadline:
            loaded = self._call("GET", "/api/ps", "listing what is loaded").get("models") or []
            if not any(_is_past(str(one["expires_at"])) for one in loaded):
                return
            time.sleep(0.05)

    def chat(self, model: str, messages: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """`POST /api/chat`, not streamed, with `truncate: false`; `fields`: options, logprobs, top_logprobs, keep_alive …"""
        request = {"model": model, "messages": messages, "stream": False, "truncate": False, **fields}
        return self._call("POST", "/api/chat", f"asking {model}", request)

    def generate(self, model: str, prompt: str, **fields: Any) -> dict[str, Any]:
        """`POST /api/generate`, not streamed, with `truncate: false`; `raw=True` bypasses the template."""
        request = {"model": model, "prompt": prompt, "stream": False, "truncate": False, **fields}
        return self._call("POST", "/api/generate", f"asking {model}", request)

    def openai(self, model: str, messages: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """`POST /v1/chat/completions`, not streamed, as chat apps ask; it knows no `truncate: false`."""
        request = {"model": model, "messages": messages, "stream": False, **fields}
        return self._call("POST", "/v1/chat/completions", f"asking {model}", request)

    def rendered(self, model: str, messages: Sequence[dict[str, Any]], **fields: Any) -> str:
        """The prompt that the server makes of a conversation for `/api/chat`, without answering it."""
        return self.shown_prompt(self.chat(model, messages, _debug_render_only=True, **fields))

    def require_shown_prompts(self, model: str) -> None:
        """ExternalToolError when the server does not know `_debug_render_only`; it then answers instead."""
        question = [{"role": "user", "content": "a"}]
        try:
            answer = self.chat(model, question, _debug_render_only=True, options={"num_predict": 1})
        except ExternalToolError:
            return  # a template that cannot be rendered is for the comparison to tell
        self.shown_prompt(answer)

    def shown_prompt(self, answer: dict[str, Any]) -> str:
        """The prompt in an answer to a request with `_debug_render_only`; ExternalToolError when the server shows none."""
        try:
            return str(answer["_debug_info"]["rendered_template"])
        except (KeyError, TypeError) as error:
            oldest = ".".join(map(str, OLDEST_VERSION))
            raise ExternalToolError(
                f"the Ollama {self.version()} at {self.address} does not show the prompts that it renders: it answered with "
                f"{', '.join(sorted(answer)) or 'nothing'}, where `_debug_info` was expected",
                f"Use {oldest} or newer: update it from https://ollama.com/download, or build one here: make ollama",
            ) from error

    def stream(self, path: str, request: dict[str, Any], doing: str) -> Iterator[dict[str, Any]]:
        """POST and yield the answer's lines; a line with an error is raised."""
        with self._translated(doing), self._http.stream("POST", path, json=request) as response:
            if response.is_error:
                response.read()
            self._check(response, doing)
            for text in response.iter_lines():
                if text.strip():
                    line = self._json(text, doing)
                    if line.get("error"):
                        raise self._fault(int(line.get("status") or 500), str(line["error"]), doing)
                    yield line

    def _call(self, method: str, path: str, doing: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._translated(doing):
            response = self._http.request(method, path, json=request)
            self._check(response, doing)
            return self._json(response.text, doing) if response.content.strip() else {}

    def _json(self, text: str, doing: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ExternalToolError(
                f"the server at {self.address} answered {text[:200]!r} while {doing}: is that an Ollama?",
                "Stop what listens there, or choose another address: export OLLAMA_HOST=127.0.0.1:11500",
            )
        return found

    def _check(self, response: httpx.Response, doing: str) -> None:
        if response.is_success:
            return
        words = response.text.strip()
        with contextlib.suppress(ValueError, TypeError, KeyError):
            words = str(json.loads(words)["error"])
        raise self._fault(response.status_code, words[:2000], doing)

    def _fault(self, code: int, words: str, doing: str) -> ToolkitError:
        if "invalid model name" in words or "unqualified name" in words:
            return UsageError(
                f"Ollama refuses the model's name while {doing}: {words}", "Change ollama.model in the recipe."
            )
        if "no space left" in words or "disk quota" in words.lower():
            return ResourceError(
                f"Ollama's disk is full while {doing}: {words}",
                "Free some space, or point OLLAMA_MODELS elsewhere and restart it.",
            )
        if code == httpx.codes.NOT_FOUND:
            return UsageError(f"Ollama does not know it while {doing}: {words}", self._what_is_there(doing))
        return ExternalToolError(f"Ollama answered {code} while {doing}: {words}", f"Its log says more: {self.log}")

    def _what_is_there(self, doing: str) -> str:
        names: list[str] = []
        with contextlib.suppress(
            httpx.HTTPError, ValueError, TypeError, KeyError
        ):  # the first fault is the one to tell
            listed = self._http.get("/api/tags", timeout=5.0).json()["models"] or []
            names = [str(model["name"]) for model in listed]
        asked = doing.rpartition(" ")[2]
        known = ", ".join(sorted(names)[:10]) or "none"
        return f"Models at {self.address}: {known}{nearest(asked, names)}. See them all: ollama list"

    def _went_away(self, doing: str, why: str) -> ExternalToolError:
        return ExternalToolError(
            f"the Ollama at {self.address} went away while {doing} ({why}); nothing was published",
            "Start it again (ollama serve) and repeat the command.",
        )

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise ExternalToolError(
                f"no Ollama answers at {self.address} ({error})", "Start it: ollama serve"
            ) from error
        except httpx.TimeoutException as error:
            raise ExternalToolError(
                f"the Ollama at {self.address} gave no answer in {_ANSWER_SECONDS:.0f} s while {doing}",
                f"Its log may say why: {self.log}. Then restart it.",
            ) from error
        except httpx.HTTPError as error:
            raise self._went_away(doing, str(error) or type(error).__name__) from error
