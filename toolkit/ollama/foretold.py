"""What the Ollama of this machine would make of a GGUF that is given to it as it is."""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.models.gguf_file import read_gguf
from toolkit.ollama.known import known_templates
from toolkit.ollama.predict import predict
from toolkit.ollama.server import find_ollama
from toolkit.ollama.syntax import Modelfile
from toolkit.setup.ollama_build import VERSION

_VERSION = re.compile(r"version is (\d\S*)")


def foretold(gguf: Path) -> dict[str, Any]:
    """`version` of the Ollama that is meant, and the fields of a `toolkit.ollama.predict.Prediction`."""
    binary = find_ollama()
    version = installed_version(binary) or VERSION
    metadata = read_gguf(gguf).metadata
    template = metadata.get("tokenizer.chat_template")
    return {
        "version": version,
        **asdict(predict(template, metadata, Modelfile(), version, known_templates(binary, version))),
    }


def installed_version(binary: Path | None) -> str:
    """What an `ollama` says of itself, whether its server runs or not; empty: nothing."""
    if binary is None:
        return ""
    try:
        done = subprocess.run([str(binary), "--version"], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # With a server of another version it tells that one first, and its own last.
    found = _VERSION.findall(done.stdout + done.stderr)
    return str(found[-1]) if found else ""


def told(gguf: Path, found: dict[str, Any]) -> str:
    """In a sentence, for people."""
    how = f"{found['how']} {found['name']}".rstrip()
    return f"Ollama {found['version']} would serve a plain FROM {gguf.name} with: {how} ({found['reason']})"
