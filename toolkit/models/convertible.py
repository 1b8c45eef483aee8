"""Can llama.cpp run what is tuned on a base? Told before anything is spent, from the pinned converter's own list."""

from __future__ import annotations

import json
from pathlib import Path

from toolkit.errors import DataError
from toolkit.export.llama_cpp import known_architectures
from toolkit.models.bases import EMBEDDED, settings_folder
from toolkit.setup.bootstrap import LLAMA_CPP_PYTHON


def check_converts(folder: Path) -> None:
    """Find out at once whether llama.cpp knows a model's architecture.

    Raises:
        DataError: it does not.
        ExternalToolError: the converter is not here.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = [*((config.get("text_config") or {}).get("architectures") or []), *(config.get("architectures") or [])]
    if named and not known_architectures() & set(named):
        raise DataError(
            f"llama.cpp {LLAMA_CPP_PYTHON} (as llama-cpp-python counts) does not know the architecture {named[0]}: what is "
            "tuned on this base could not be served by Ollama",
            "Choose another base model.",
        )


def check_converts_base(base: str) -> None:
    """`check_converts` of a base as a recipe names it; of one of the hub that is not here, only its configuration is fetched."""
    if not base.startswith(EMBEDDED):  # that one is a Llama
        check_converts(settings_folder(base))
