"""A LoRA adapter as PEFT writes it, and what it changes in each weight.

LoRA: Hu et al., arXiv:2106.09685; rsLoRA: Kalajdzievski, arXiv:2312.03732; DoRA: Liu et al., arXiv:2402.09353.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open

from toolkit.errors import DataError, UsageError
from toolkit.models.safetensors_file import Entry, read_header
from toolkit.models.weights import TrainedWeights

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "embedding_A",
    ".lora_embedding_B": "embedding_B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
# These ways of starting an adapter change the base's weights too, so it does not fit the base as it was published.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNSUPPORTED = ("layer_replication", "target_parameters", "trainable_token_indices", "use_qalora", "arrow_config")


@dataclass
class Change:
    """What the adapter does to one module: part (A, B, …) → its tensor in the file."""

    parts: dict[str, Entry] = field(default_factory=dict)
    scaling: float = 1.0


class LoraAdapter:
    """Reads a PEFT folder: LoRA, rsLoRA and DoRA on linear layers and embeddings, and modules saved whole.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        DataError: files that are missing, damaged, or do not fit each other.
        UsageError: a kind of adapter that has no merge here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / WEIGHTS_FILE
        self.config = read_config(folder)
        if not self.path.is_file():
            pickle = " (its adapter_model.bin is a pickle, which is not read here)"
            raise DataError(
                f"{self.path} is missing{pickle if (folder / 'adapter_model.bin').is_file() else ''}",
                "Save the adapter as safetensors: model.save_pretrained(folder).",
            )
        self.changes: dict[str, Change] = {}
        """Module → change of its weight."""
        self.replaced: dict[str, Entry] = {}
        """Tensor of the base → the tensor that takes its place (modules_to_save, trained biases)."""
        for name, entry in read_header(self.path).items():
            self._place(name, entry)
        for module, change in self.changes.items():
            self._complete(module, change)
        if not self.changes and not self.replaced:
            raise DataError(f"{self.path} holds no tensors", "Train it again, or name another adapter.")

    def _place(self, name: str, entry: Entry) -> None:
        if not name.startswith(_PREFIX):
            raise DataError(
                f"{self.path}: {name} is no tensor of a PEFT adapter", "Save it with PEFT's save_pretrained."
            )
        inner = name.removeprefix(_PREFIX)
        for suffix, part in _PARTS.items():
            if inner.endswith(suffix):
                self.changes.setdefault(inner.removesuffix(suffix), Change()).parts[part] = entry
                return
        self.replaced[inner.replace(".base_layer.", ".")] = entry

    def _complete(self, module: str, change: Change) -> None:
        has = change.parts.keys()
        low, high = ("A", "B") if "A" in has or "B" in has else ("embedding_A", "embedding_B")
        for part in (low, high) if not self.config["use_dora"] else (low, high, "magnitude"):
            if part not in has:
                raise DataError(f"{self.path}: {module} has no {part} matrix", "Train it again: the file is not whole.")
        rank = _pattern(self.config["rank_pattern"], module, self.config["r"])
        alpha = _pattern(self.config["alpha_pattern"], module, self.config["lora_alpha"])
        for part, axis in ((low, 0), (high, 1)):
            entry = change.parts[part]
            if len(entry.shape) != 2 or entry.shape[axis] != rank:
                raise DataError(
                    f"{self.path}: {entry.name} has shape {list(entry.shape)}, but {CONFIG_FILE} says rank {rank}",
                    f"Use the {CONFIG_FILE} that was saved with this file.",
                )
        change.scaling = alpha / math.sqrt(rank) if self.config["use_rslora"] else alpha / rank

    def check_fits(self, weights: TrainedWeights) -> None:
        """Compare every tensor's name and shape with the base's.

        Raises:
            DataError: the adapter belongs to another base.
        """
        names = set(weights.names())
        embedding = weights.embedding
        for module, change in self.changes.items():
            rows, columns = self._base_shape(f"{module}.weight", names, weights, embedding)
            expected: dict[str, tuple[int, ...]]
            if "A" in change.parts:
                expected = {"A": (rank_of(change), columns), "B": (rows, rank_of(change))}
            else:
                expected = {"embedding_A": (rank_of(change), rows), "embedding_B": (columns, rank_of(change))}
            if "magnitude" in change.parts:
                expected["magnitude"] = (rows if "A" in change.parts else columns,)
            for part, shape in expected.items():
                self._check_shape(change.parts[part], shape, weights)
            if "bias" in change.parts and f"{module}.bias" not in names:
                raise DataError(
                    f"{self.path}: {module} of the base has no bias to change", "Name the adapter's own base."
                )
        for name, entry in self.replaced.items():
            self._check_shape(entry, self._base_shape(name, names, weights, embedding), weights)

    def _base_shape(self, name: str, names: set[str], weights: TrainedWeights, embedding: str) -> tuple[int, ...]:
        found = embedding if name == weights.tied_head else name
        if found not in names:
            raise DataError(
                f"{self.path} changes {name}, which the base {weights.folder} does not have",
                f"Name the base that it was trained on{self._trained_on()}.",
            )
        return weights.entry(found).shape

    def _check_shape(self, entry: Entry, expected: tuple[int, ...], weights: TrainedWeights) -> None:
        if entry.shape != expected:
            raise DataError(
                f"{self.path}: {entry.name} has shape {list(entry.shape)}, "
                f"but the base {weights.folder} needs {list(expected)}",
                f"Name the base that it was trained on{self._trained_on()}.",
            )

    def _trained_on(self) -> str:
        base = self.config.get("base_model_name_or_path")
        return f"; its {CONFIG_FILE} says {base}" if base else ""

    def tensor(self, entry: Entry) -> torch.Tensor:
        """One tensor of the file, in the file's type."""
        with safe_open(self.path, framework="pt") as file:
            return cast(torch.Tensor, file.get_tensor(entry.name))

    def apply(self, module: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight with the module's change: the arithmetic of PEFT's `merge_and_unload`, bit for bit.

        Args:
            weight: [out, in] of a linear layer or [vocabulary, width] of an embedding; changed in place.

        Returns:
            The merged weight, in the type of `weight`.
        """
        change = self.changes[module]
        parts = {part: self.tensor(entry).float() for part, entry in change.parts.items()}
        if "A" in parts:
            delta = (parts["B"] @ parts["A"]) * change.scaling
        else:
            delta = (parts["embedding_B"] @ parts["embedding_A"]).T * change.scaling
        if "magnitude" not in parts:
            # PEFT adds a float32 change to a 16-bit linear weight in float32, to an embedding in 16 bits.
            weight += delta if "A" in parts else delta.to(weight.dtype)
            return weight
        # DoRA: magnitude times direction; the norm runs over a linear layer's inputs, over an embedding's tokens.
        norm = torch.linalg.norm(weight + delta, dim=1 if "A" in parts else 0)
        factor = parts["magnitude"] / norm
        merged: torch.Tensor = (factor.view(-1, 1) if "A" in parts else factor) * (weight + delta)
        return merged.to(weight.dtype)

    def apply_bias(self, module: str, bias: torch.Tensor) -> torch.Tensor:
        """The bias with the module's change (`lora_bias`), in place."""
        change = self.changes[module]
        bias += self.tensor(change.parts["bias"]).float() * change.scaling
        return bias


def rank_of(change: Change) -> int:
    """Rank of a change, from the shape of its A."""
    return change.parts["A" if "A" in change.parts else "embedding_A"].shape[0]


def _pattern(patterns: dict[str, int], module: str, otherwise: int) -> int:
    # PEFT takes the first key that matches the end of the module's name as a regular expression.
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, with its optional keys filled in.

    Raises:
        DataError: missing, not JSON, or without a key that a merge needs.
        UsageError: a kind of adapter that has no merge here.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: {folder} is no PEFT adapter", "Name the folder that holds it.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "Save the adapter again.") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise DataError(f"{path} has no key peft_type", "Save the adapter with PEFT's save_pretrained.")
    if config["peft_type"] != "LORA":
        raise UsageError(
            f"{path}: peft_type {config['peft_type']} cannot be merged here",
            "LoRA, rsLoRA and DoRA adapters can. Merge others with PEFT's merge_and_unload and name the result as base; "
            "prompt, prefix and p-tuning cannot be merged at all.",
        )
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float) or config[key] <= 0:
            raise DataError(
                f"{path}: {key} is {config.get(key, 'missing')}", "It must be a number above 0, as trained."
            )
    for key, default in (("rank_pattern", {}), ("alpha_pattern", {}), ("use_rslora", False), ("use_dora", False)):
        config[key] = config.get(key) or default
    _refuse_unsupported(path, config)
    return config


def _refuse_unsupported(path: Path, config: dict[str, Any]) -> None:
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_THE_BASE):
        raise UsageError(
            f"{path}: init_lora_weights {start} changed the base's weights too, so the adapter fits only that changed base",
            "Save it as an ordinary LoRA: model.save_pretrained(folder, path_initial_model_for_weight_conversion=…).",
        )
    if config.get("fan_in_fan_out"):
        raise UsageError(
            f"{path}: fan_in_fan_out (GPT-2's transposed layers) is not supported", "Use a Llama-like base."
        )
    for key in _UNSUPPORTED:
        if config.get(key):
            raise UsageError(f"{path}: {key} cannot be merged here", "Merge it with PEFT's merge_and_unload instead.")
