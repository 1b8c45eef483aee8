"""Where things that outlive a run are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """The one cache folder: `$TUNE2OLLAMA_HOME`, or else `~/.cache/tune2ollama`. Safe to delete."""
    chosen = os.environ.get("TUNE2OLLAMA_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "tune2ollama"
