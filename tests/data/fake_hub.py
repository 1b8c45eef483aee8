"""A hub on loopback: the few addresses that huggingface_hub asks for a data set's files, over real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Hub:
    """What it holds."""

    commits: dict[tuple[str, str], Files] = field(default_factory=dict)
    """(owner/name, commit) → files; a moving name such as main is a commit here, too."""
    gated: set[str] = field(default_factory=set)
    """Data sets whose files it shows to nobody."""
    asked: list[str] = field(default_factory=list)
    address: str = ""


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve it on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            status, headers, body = answer(hub, path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body, as the hub gives them."""
    parts = path.strip("/").split("/")
    if parts[:2] == ["api", "datasets"]:
        repository, what, commit = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "", "/".join(parts[5:6])
    else:
        repository, what, commit = "/".join(parts[1:3]), parts[3] if len(parts) > 3 else "", "/".join(parts[4:5])
    if repository not in {name for name, _ in hub.commits}:  # the hub does not tell whether it is private or not there
        return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
    files = hub.commits.get((repository, commit))
    if files is None:
        return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {commit}"}, b""
    if what == "tree":
        listed = [
            {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha256(body).hexdigest()[:40]}
            for name, body in files.items()
        ]
        return 200, {"Content-Type": "application/json"}, json.dumps(listed).encode()
    if repository in hub.gated:
        return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"}, b""
    body = files.get("/".join(parts[5:]))
    if body is None:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
    return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}, body
