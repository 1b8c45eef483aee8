"""A model on an Ollama server, and the files behind it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, ExternalToolError, UsageError
from toolkit.ollama.client import Client
from toolkit.ollama.modelfile import full_name, shown_parameters
from toolkit.ollama.server import INSTALL, serving
from toolkit.ollama.syntax import Message
from toolkit.parity.probe import probe
from toolkit.run.artifacts import file_sha256

_FROM = re.compile(r"^FROM (/.+)$", re.MULTILINE)
_HOW_TO_GET_IT = (
    "Name the file that was given to Ollama: --gguf FILE. Or get at Ollama's own: sudo usermod -aG ollama $USER, then log "
    "in again; or, for this once, sudo cp it somewhere and name that."
)
_DEFAULTS = {"num_ctx": 4096, "num_predict": -1, "temperature": 0.8, "repeat_penalty": 1.0}
"""Where a model says nothing (api/types.go, DefaultOptions); num_ctx: under 24 GiB of graphics memory."""


@dataclass(frozen=True)
class ServedModel:
    """A model on a server, and the file behind it."""

    client: Client
    name: str
    """As `ollama list` shows it."""
    shown: dict[str, Any]
    """`/api/show`"""
    file: Path
    mmproj: Path | None = None
    """Its projector."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Of its Modelfile, with Ollama's defaults."""
        return _DEFAULTS | shown_parameters(str(self.shown.get("parameters", "")))

    @property
    def turns(self) -> tuple[Message, ...]:
        """MESSAGE turns of its Modelfile."""
        return tuple(Message(str(turn["role"]), str(turn["content"])) for turn in self.shown.get("messages") or [])


@contextlib.contextmanager
def served_model(name: str, log: Path, files: Sequence[Path], mmproj: Path | None = None) -> Iterator[ServedModel]:
    """The model of the running server, or of one that is started for it.

    Args:
        log: gets what a server says that has to be started.
        mmproj: its projector, where the server's own copy cannot be read.
        files: GGUF files that are judged anyway. One of them is taken for the one that is served when it has the same
            bytes, and the first one when the server's own copy cannot be read.

    Raises:
        UsageError: the server has no such model.
        ExternalToolError: no server, or one that is too old.
        DataError: the file behind it cannot be read, or llama.cpp cannot run it; or there is only a projector.
    """
    with serving(log) as client:
        if client is None:
            raise ExternalToolError("there is no Ollama to ask", INSTALL[:1].upper() + INSTALL[1:])
        client.version()
        shown = _shown(client, name)
        copy = own_copy(shown)
        file = next((path for path in files if copy is None or _same(path, copy)), copy)
        if file is None:
            raise DataError(_unreadable(name, shown), _HOW_TO_GET_IT)
        client.require_shown_prompts(name)
        if file == copy:
            probe(file)
        yield ServedModel(client, name, shown, file, own_projector(shown) or mmproj)


def _shown(client: Client, name: str) -> dict[str, Any]:
    try:
        return client.show(name)
    except UsageError as error:
        if full_name(name) not in client.models():
            raise
        # It lists what was created from a projector alone, and says of it that it is not found.
        raise DataError(
            f"Ollama lists {name}, and has no language model behind it: it was created from a projector (mmproj) alone",
            f"Create it from both files, a FROM line for each: ollama create {name} -f Modelfile",
        ) from error


def own_copy(shown: dict[str, Any]) -> Path | None:
    """The server's own copy of the GGUF; None when it is not on this machine, or not to be read by this user."""
    return next(_own_copies(shown), None)


def own_projector(shown: dict[str, Any]) -> Path | None:
    """The server's own copy of the projector, which it names behind the GGUF; None as of `own_copy`, or where it has none."""
    copies = list(_own_copies(shown))
    return copies[1] if len(copies) > 1 else None


def _own_copies(shown: dict[str, Any]) -> Iterator[Path | None]:
    for named in _FROM.findall(str(shown.get("modelfile", ""))):
        try:
            with Path(named).open("rb"):
                yield Path(named)
        except OSError:  # also of a folder that is closed, as /usr/share/ollama is to everybody but its service
            yield None


def _same(file: Path, copy: Path) -> bool:
    # Ollama names its files after their sums.
    return file.stat().st_size == copy.stat().st_size and file_sha256(file) == copy.name.removeprefix("sha256-")


def _unreadable(name: str, shown: dict[str, Any]) -> str:
    found = _FROM.search(str(shown.get("modelfile", "")))
    if found is None:
        return f"Ollama does not tell which file is behind {name}"
    return f"the file behind {name} is not here, or not to be read by you: {found[1]}"
