"""Where things that outlive a run are kept."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def cache_home() -> Path:
    """The one cache folder: `$TUNE2OLLAMA_HOME`, or else `~/.cache/tune2ollama`. Safe to delete."""
    chosen = os.environ.get("TUNE2OLLAMA_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "tune2ollama"


def own_command() -> str:
    """How this user calls the toolkit: its name when it is on the path, else where it is, seen from here."""
    if shutil.which("tune2ollama"):
        return "tune2ollama"
    return os.path.relpath(Path(sys.executable).with_name("tune2ollama"))
