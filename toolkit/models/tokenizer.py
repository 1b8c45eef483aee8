"""Reading a tokenizer as training read it."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

_KEPT_AT_MOST = 4
"""Tokenizers: a vocabulary of 150,000 tokens takes some 100 MB."""
_READ_BY_OTHERS = {".safetensors", ".gguf", ".npy", ".npz", ".bin", ".pt", ".pth", ".jsonl", ".md", ".png", ".html"}
_TEMPLATES = "additional_chat_templates"

_kept: dict[str, Any] = {}


def load_tokenizer(folder: str | Path, base: str | Path | None = None) -> Any:
    """The tokenizer in a folder, to be read with; who adds tokens or gives it to a trainer wants `own_tokenizer`.

    transformers chooses the class by the model type in config.json before it looks at tokenizer_config.json, where many models
    name a class that would split texts otherwise. An adapter's folder has no config.json, so its base's has to be shown.

    Files of the same content are read once in a process: a large vocabulary takes transformers a second and more.

    Args:
        base: folder of the base, for a folder without a configuration.
    """
    beside = Path(base if base is not None else folder)
    key = _sum_of(Path(folder), beside)
    if key not in _kept:
        _kept[key] = _read(folder, beside)
    found = _kept[key] = _kept.pop(key)  # the last one that was asked for stays longest
    while len(_kept) > _KEPT_AT_MOST:
        del _kept[next(iter(_kept))]
    found = copy.copy(found)
    found.name_or_path = str(folder)
    return found


def own_tokenizer(folder: str | Path, base: str | Path | None = None) -> Any:
    """The same, of the caller's own."""
    return copy.deepcopy(load_tokenizer(folder, base))


def _read(folder: str | Path, beside: Path) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(beside, trust_remote_code=False) if (beside / "config.json").is_file() else None
    return AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False)


def _sum_of(folder: Path, beside: Path) -> str:
    """Of all that transformers may look at: which files these are differs between its classes."""
    found = hashlib.sha256()
    files = [path for place in (folder, folder / _TEMPLATES) if place.is_dir() for path in place.iterdir()]
    chosen = [path for path in files if path.suffix not in _READ_BY_OTHERS and not path.name.startswith("adapter_")]
    for path in (*sorted(chosen), beside / "config.json"):
        content = path.read_bytes() if path.is_file() else b""
        found.update(f"{path.name} {len(content)}\n".encode())
        found.update(content)
    return found.hexdigest()
