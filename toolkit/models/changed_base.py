"""PiSSA and OLoRA take a part of the base's weights into the adapter's matrices when training begins.

PiSSA: Meng et al., arXiv:2404.02948; OLoRA: Büyükakyüz, arXiv:2406.01775. Such an adapter fits only the changed base. PEFT
computes the start from the weights alone, so it can be computed again, and what training changed is an ordinary LoRA of twice
the rank: B A - B0 A0 = [B | -B0] [A ; A0], as PEFT's own `path_initial_model_for_weight_conversion` writes it.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toolkit.errors import UsageError
from toolkit.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE, start_of
from toolkit.models.adapters import LoraAdapter
from toolkit.models.merged import MergedWeights
from toolkit.models.weights import TrainedWeights

SAVE_AS_LORA = (
    "Where it was trained, save it as an ordinary LoRA: model.save_pretrained(folder, "
    "path_initial_model_for_weight_conversion=<folder of the adapter as training began>)."
)


def refuse_unknown_start(adapter: LoraAdapter, quantized: bool) -> None:
    """Raises UsageError where the start cannot be computed again from the base's weights alone."""
    start = start_of(adapter.config)
    where = f"{adapter.folder / CONFIG_FILE}: init_lora_weights {start} changed the base's weights too"
    if start not in ("pissa", "olora"):
        why = {
            "corda": "by data that it was started with, which the adapter does not hold",
            "loftq": "by how they were quantized, which the adapter does not hold",
            "lora_ga": "by gradients that it was started with, which the adapter does not hold",
        }.get(
            next((k for k in ("corda", "loftq", "lora_ga") if start.startswith(k)), ""),
            "by chance (a random projection)",
        )
        raise UsageError(f"{where}, {why}: they cannot be computed again", SAVE_AS_LORA)
    if quantized:
        raise UsageError(f"{where} before they were quantized: what was trained on cannot be made anew", SAVE_AS_LORA)
    if adapter.config["use_dora"] or any("embedding_A" in change.parts for change in adapter.changes.values()):
        raise UsageError(f"{where}, and with DoRA or on an embedding it is no LoRA of twice the rank", SAVE_AS_LORA)


Matrices = Callable[[str], tuple[torch.Tensor, torch.Tensor]]
"""Module → its A and B, float32."""


def computed_start(adapter: LoraAdapter, weights: TrainedWeights | MergedWeights) -> Matrices:
    """The adapter's matrices as training began, computed again from the base's weights, a module at a time."""
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(adapter.folder)
    return lambda module: _start(module, weights, copy.deepcopy(config))


def write_as_lora(adapter: LoraAdapter, start: Matrices, out: Path) -> None:
    """Write what training changed, as an ordinary LoRA on the original base, into `out`.

    Args:
        start: the adapter's matrices as training began.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter.path)
    for module, change in adapter.changes.items():
        low, high = start(module)
        for part, first, axis in (("A", low, 0), ("B", -high, 1)):
            entry = change.parts[part]
            tensors[entry.name] = torch.cat([tensors[entry.name].float(), first], axis).contiguous()
    said: dict[str, Any] = json.loads((adapter.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    # The scaling stays: alpha / r, or alpha / sqrt(r).
    more = math.sqrt(2) if adapter.config["use_rslora"] else 2
    said["init_lora_weights"] = True
    said["r"], said["lora_alpha"] = said["r"] * 2, said["lora_alpha"] * more
    said["rank_pattern"] = {name: rank * 2 for name, rank in adapter.config["rank_pattern"].items()}
    said["alpha_pattern"] = {name: alpha * more for name, alpha in adapter.config["alpha_pattern"].items()}
    save_file(tensors, out / WEIGHTS_FILE, metadata={"format": "pt"})
    (out / CONFIG_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _start(module: str, weights: TrainedWeights | MergedWeights, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of one module as PEFT starts them on its weights, float32."""
    from peft import inject_adapter_in_model

    weight = weights.parameter(f"{module}.weight")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    root = nn.Module()
    place = root
    *parents, last = module.split(".")
    for name in parents:
        place.add_module(name, nn.Module())
        place = place.get_submodule(name)
    place.add_module(last, linear)
    config.modules_to_save = config.trainable_token_indices = None
    layer: Any = inject_adapter_in_model(config, root).get_submodule(module)
    return layer.lora_A["default"].weight.data.float(), layer.lora_B["default"].weight.data.float()
