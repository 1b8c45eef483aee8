"""A PEFT adapter's folder: its configuration, its tensors, and for LoRA the matrices of each module.

What an adapter makes of a weight is PEFT's own business; see `toolkit.models.peft_layers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open

from toolkit.errors import DataError
from toolkit.models.adapter_files import CONFIG_FILE, PREFIX, read_config, weights_file
from toolkit.models.safetensors_file import Entry, read_header

_PARTS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}


@dataclass
class Change:
    """What a LoRA does to one module: part (A, B, …) → its tensor in the file."""

    parts: dict[str, Entry] = field(default_factory=dict)
    scaling: float = 1.0


class LoraAdapter:
    """Reads a PEFT folder, of whatever kind.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        DataError: files that are missing, damaged, or do not fit each other.
        UsageError: a kind of adapter that has no merge.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self.path = weights_file(folder)
        self.entries = read_header(self.path)
        self.changes: dict[str, Change] = {}
        """Module → its LoRA matrices; empty for other kinds."""
        self.others: dict[str, Entry] = {}
        """Every other tensor, without PEFT's prefix: modules saved whole, trained biases, matrices of other kinds."""
        if not self.entries:
            raise DataError(f"{self.path} holds no tensors", "Train it again, or name another adapter.")
        for name, entry in self.entries.items():
            self._place(name, entry)
        for module, change in self.changes.items():
            self._scale(module, change)

    def _place(self, name: str, entry: Entry) -> None:
        if not name.startswith("base_model."):
            raise DataError(
                f"{self.path}: {name} is no tensor of a PEFT adapter", "Save it with PEFT's save_pretrained."
            )
        inner = name.removeprefix(PREFIX)
        for suffix, part in _PARTS.items():
            if inner.endswith(suffix):
                self.changes.setdefault(inner.removesuffix(suffix), Change()).parts[part] = entry
                return
        self.others[inner] = entry

    def _scale(self, module: str, change: Change) -> None:
        from peft.utils.other import get_pattern_key

        has = change.parts.keys()
        low, high = ("A", "B") if "A" in has or "B" in has else ("embedding_A", "embedding_B")
        for part in (low, high):
            if part not in has:
                raise DataError(f"{self.path}: {module} has no {part} matrix", "Train it again: the file is not whole.")
        ranks, alphas = self.config["rank_pattern"], self.config["alpha_pattern"]
        rank = ranks.get(get_pattern_key(ranks, module), self.config["r"]) or 1
        alpha = alphas.get(get_pattern_key(alphas, module), self.config.get("lora_alpha", 1))
        change.scaling = alpha / math.sqrt(rank) if self.config["use_rslora"] else alpha / rank

    @property
    def kind(self) -> str:
        """As PEFT calls it: LORA, IA3, LOHA, …"""
        return str(self.config["peft_type"])

    @property
    def trained_on(self) -> str:
        """What to say of the base that its configuration names; empty where it names none."""
        base = self.config.get("base_model_name_or_path")
        return f"; its {CONFIG_FILE} says {base}" if base else ""

    def tensor(self, entry: Entry) -> torch.Tensor:
        """One tensor of the file, in the file's type."""
        with safe_open(self.path, framework="pt") as file:
            return cast(torch.Tensor, file.get_tensor(entry.name))
