"""An adapter whose first layers were never trained is found out from its B matrices alone."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.chains import with_adapter
from tests.small_models import tiny_adapter, tiny_llama
from toolkit.models.adapters import LoraAdapter
from toolkit.parity.certificate import Check
from toolkit.parity.checks.moved import moved_check, out_of_reach

LAYERS = 4


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moved")
    return tiny_adapter(tiny_llama(folder / "base", layers=LAYERS), folder / "adapter")


def checked(adapter: Path, out: Path, change: Any) -> Check:
    return moved_check(LoraAdapter(with_adapter(adapter, out, change)))


def measures(check: Check) -> dict[str, float]:
    return {m.name: m.value for m in check.measures}


def test_every_layer_moved(adapter: Path) -> None:
    check = moved_check(LoraAdapter(adapter))
    assert (check.verdict, check.message) == ("pass", f"all {7 * LAYERS} modules moved")
    found = LoraAdapter(adapter)
    module = "model.layers.0.self_attn.q_proj"
    parts = {part: found.tensor(entry) for part, entry in found.changes[module].parts.items()}
    # The size told is that of scaling * B A, summed over the layer's modules.
    assert (parts["B"] @ parts["A"]).norm() * found.changes[module].scaling < check.details["layers"]["0"]
    assert 0.5 < measures(check)["smallest change of a layer, as a share of the median"] <= 1


def test_layers_without_gradients(adapter: Path, tmp_path: Path) -> None:
    check = checked(adapter, tmp_path / "a", lambda n, t: t * 0 if ".layers.0." in n or ".layers.1." in n else t)
    assert check.verdict == "fail"
    assert check.message.startswith("training never reached layers 0-1: 14 of 28 modules are as they began; gradients")
    assert measures(check)["modules that never moved"] == 14


def test_one_module_without_gradients(adapter: Path, tmp_path: Path) -> None:
    check = checked(adapter, tmp_path / "a", lambda n, t: t * 0 if "layers.2.mlp.up_proj" in n else t)
    assert check.verdict == "fail"
    assert check.message.startswith("training never reached layer 2: 1 of 28 modules")
    assert check.details["still"] == ["model.layers.2.mlp.up_proj"]


def test_a_layer_that_hardly_moved(adapter: Path, tmp_path: Path) -> None:
    check = checked(adapter, tmp_path / "a", lambda n, t: t * 1e-4 if ".layers.3." in n else t)
    assert check.verdict == "fail"
    assert check.message == "training hardly reached layer 3: less than a thousandth of the others' change"
    small = checked(adapter, tmp_path / "b", lambda n, t: t * 1e-2 if ".layers.3." in n else t)
    assert small.verdict == "pass"


def test_values_that_are_no_numbers(adapter: Path, tmp_path: Path) -> None:
    def lose(name: str, tensor: Any) -> Any:
        if "layers.2.mlp.up_proj" in name:
            tensor = tensor.clone()
            tensor[5, 3] = float("nan")
        return tensor

    check = checked(adapter, tmp_path / "a", lose)
    assert check.verdict == "fail"
    assert check.message == (
        "training left values that are no numbers in 1 modules, the first is model.layers.2.mlp.up_proj"
    )
    assert measures(check)["modules that hold no numbers"] == 1
    assert all(math.isfinite(size) for size in check.details["layers"].values())


@pytest.mark.parametrize(
    ("still", "excused"),
    [
        (["visual.blocks.0.attn.qkv", "visual.merger.mlp.0"], ["visual.blocks.0.attn.qkv", "visual.merger.mlp.0"]),
        # Pictures came by, and something was lost on the way.
        (["visual.blocks.0.attn.qkv"], []),
        (["model.layers.0.mlp.experts.1.up_proj", "model.layers.0.mlp.experts.1.down_proj"],
         ["model.layers.0.mlp.experts.1.up_proj", "model.layers.0.mlp.experts.1.down_proj"]),
        # Of an expert that the router chose, every part learns.
        (["model.layers.0.mlp.experts.1.up_proj"], []),
        # A layer none of whose experts moved has lost its gradients.
        ([f"model.layers.0.mlp.experts.{i}.{p}_proj" for i in (0, 1) for p in ("up", "down")], []),
        (["model.layers.0.self_attn.q_proj"], []),
    ],
)  # fmt: skip
def test_parts_that_no_row_came_by(still: list[str], excused: list[str]) -> None:
    experts = [f"model.layers.{n}.mlp.experts.{i}.{p}_proj" for n in (0, 1) for i in (0, 1) for p in ("up", "down")]
    modules = ["visual.blocks.0.attn.qkv", "visual.merger.mlp.0", "model.layers.0.self_attn.q_proj", *experts]
    assert out_of_reach(still, modules) == excused


def test_a_training_on_texts_leaves_the_part_for_pictures_as_it_was(adapter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = "base_model.model.visual.blocks.0.attn.qkv"
    tensors |= {f"{prefix}.lora_A.weight": torch.ones(8, 16), f"{prefix}.lora_B.weight": torch.zeros(16, 8)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    check = moved_check(LoraAdapter(folder))
    assert check.verdict == "pass"
    assert check.message.endswith("but 1 that the training rows did not reach, first visual.blocks.0.attn.qkv")
    assert measures(check)["modules that the training rows did not reach"] == 1
    assert measures(check)["modules that never moved"] == 0
    assert check.details["still"] == ["visual.blocks.0.attn.qkv"]


def test_nothing_moved(adapter: Path, tmp_path: Path) -> None:
    check = checked(adapter, tmp_path / "a", lambda _, t: t * 0)
    assert check.verdict == "inconclusive"
    assert check.message == "nothing moved: every B is zero, so the tuned model is its base"
