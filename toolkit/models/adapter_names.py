"""Layers that an adapter calls otherwise than its base: with or without `model.`, or `language_model.` around the text part."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from toolkit.errors import DataError
from toolkit.models.adapter_files import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from toolkit.models.adapters import LoraAdapter
from toolkit.models.merged import MergedWeights
from toolkit.models.weights import TrainedWeights

_INNER = {"weight", "bias", "base_layer", "original_module", "modules_to_save", "token_adapter"}


def modules_of(adapter: LoraAdapter) -> list[str]:
    """The modules whose tensors the file holds, as it calls them."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    own = PEFT_TYPE_TO_PREFIX_MAPPING.get(adapter.kind, "lora_")  # type: ignore[call-overload]
    found: dict[str, None] = {}
    for name in adapter.entries:
        if name.startswith(PREFIX):
            parts = name.removeprefix(PREFIX).split(".")
            end = next((i for i, part in enumerate(parts) if part in _INNER or part.startswith(own)), len(parts))
            found[".".join(parts[:end])] = None
    return list(found)


def other_beginning(adapter: LoraAdapter, weights: TrainedWeights | MergedWeights) -> tuple[str, str] | None:
    """(how the adapter's names begin, how the base's do) where that alone differs; None: nothing to map.

    Raises:
        DataError: there are layers that the base does not have under any beginning, or several beginnings fit.
    """
    known = {name for name, _ in weights.structure().named_modules() if name}
    known |= {name.rpartition(".")[0] for name in weights.names()}  # experts, as the files have them
    modules = modules_of(adapter)
    strange = [module for module in modules if module not in known]
    if not strange:
        return None
    fitting = [pair for pair in _candidates(strange[0], known) if all(_mapped(m, pair) in known for m in strange)]
    if not fitting:
        raise DataError(
            f"{adapter.path} changes {strange[0]}, which the base {weights.folder} does not have",
            f"Name the base that it was trained on{adapter.trained_on}.",
        )
    if len(fitting) > 1:
        told = ", ".join(_mapped(strange[0], pair) for pair in fitting)
        raise DataError(
            f"{adapter.path}: {strange[0]} may be any of {told} in the base {weights.folder}",
            f"Name the base that it was trained on{adapter.trained_on}.",
        )
    return fitting[0]


def _candidates(module: str, known: set[str]) -> list[tuple[str, str]]:
    """Pairs of beginnings that leave the longest common end; a number in one would take a layer for another."""
    parts = module.split(".")
    for start in range(len(parts)):
        end = ".".join(parts[start:])
        found = sorted(name for name in known if name == end or name.endswith(f".{end}"))
        if found:
            pairs = [(".".join(parts[:start]), name.removesuffix(end).rstrip(".")) for name in found]
            return [pair for pair in pairs if not re.search(r"\d", "".join(pair))]
    return []


def _mapped(name: str, pair: tuple[str, str]) -> str:
    old, new = pair
    if old and name != old and not name.startswith(f"{old}."):
        return name
    rest = name.removeprefix(old).lstrip(".")
    return f"{new}.{rest}" if new else rest


def write_renamed(
    adapter: LoraAdapter, weights: TrainedWeights | MergedWeights, pair: tuple[str, str], out: Path
) -> None:
    """Write the adapter with the base's names into `out`: tensors and configuration."""
    from peft.utils.other import get_pattern_key
    from safetensors.torch import load_file, save_file

    known = {name for name, _ in weights.structure().named_modules()} | {n.rpartition(".")[0] for n in weights.names()}
    names = {module: module if module in known else _mapped(module, pair) for module in modules_of(adapter)}
    tensors = {}
    for name, tensor in load_file(adapter.path).items():
        inner = name.removeprefix(PREFIX)
        module = max((m for m in names if inner == m or inner.startswith(f"{m}.")), key=len, default="")
        tensors[PREFIX + names[module] + inner.removeprefix(module) if module else name] = tensor
    config: dict[str, Any] = json.loads((adapter.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    adapted = [module for module in names if module in adapter.changes] or list(names)
    if not isinstance(config.get("target_modules"), list) or any("." in m for m in config["target_modules"]):
        config["target_modules"] = None if not config.get("target_modules") else sorted(names[m] for m in adapted)
        config["exclude_modules"] = None
    for key in ("target_parameters", "modules_to_save"):
        if config.get(key):
            config[key] = [_mapped(name, pair) if "." in name and pair[0] else name for name in config[key]]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        hits = {names[m]: patterns.get(get_pattern_key(list(patterns), m)) for m in adapted}
        config[key] = {re.escape(name): value for name, value in hits.items() if value is not None}
    save_file(tensors, out / WEIGHTS_FILE, metadata={"format": "pt"})
    (out / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
