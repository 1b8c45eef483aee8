"""The doctor's line about a base model that somebody thinks of tuning: is it whole, and does llama.cpp convert it?"""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.models.bases import EMBEDDED, check_base, is_here, read_chat_template, resolve_base
from toolkit.models.convertible import check_converts_base
from toolkit.models.layout import layout_of
from toolkit.models.safetensors_file import model_entries, model_files
from toolkit.ollama.predict import told_before_training
from toolkit.setup.doctor import Finding

HEAD = "lm_head.weight"
"""What transformers calls an output head, where a model has one of its own."""


def of_base(base: str) -> Finding:
    """Check a base's files and architecture, and ask the pinned converter about its tokenizer and tensors (ten seconds, once).

    Args:
        base: as a recipe names it; of one of the hub that is not here, only its configuration is fetched and looked at.
    """
    name = f"base {base}"
    try:
        check_base(base)
        check_converts_base(base)
        if base.startswith(EMBEDDED):
            return Finding(name, "ok", "llama.cpp converts it")
        if not is_here(base):
            return Finding(
                name, "warn", "llama.cpp knows its architecture; its tokenizer is looked at when the weights are here",
                "the first run fetches it",
            )  # fmt: skip
        folder = Path(resolve_base(base).folder)
        entries = model_entries(model_files(folder))
        layout = layout_of(folder, entries.values(), None if HEAD in entries else HEAD)
    except ToolkitError as error:
        return Finding(name, "missing", error.message, error.hint)
    if layout.unknown:
        found = f"architecture {layout.architecture}, of which {len(layout.unknown)} tensors cannot be followed"
        return Finding(name, "warn", found, "they are judged by the answers alone")
    if told := told_before_training(layout.architecture, read_chat_template(folder) or "", {}):
        return Finding(name, "warn", told, f"tune2ollama plan RECIPE --set base={base}")
    return Finding(name, "ok", f"llama.cpp converts it, as architecture {layout.architecture}")
