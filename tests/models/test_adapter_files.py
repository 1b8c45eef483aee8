"""What is wrong with an adapter's files is told in the first second, by name, and without torch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.children import child_environment
from toolkit.errors import DataError, UsageError
from toolkit.models.adapter_files import check_adapter, latest, newest_checkpoint
from toolkit.models.safetensors_file import first_not_finite, read_header

MODULES = [f"model.layers.{layer}.{name}" for layer in range(2) for name in ("self_attn.q_proj", "mlp.up_proj")]


def adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for module in MODULES:
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ones((4, 8), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ones((8, 4), np.float16)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"],
        "base_model_name_or_path": "some/base",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_right_one_is_read(tmp_path: Path) -> None:
    config = check_adapter(
        adapter(tmp_path, modules_to_save=["norm"], layers_pattern="layers", rank_pattern={"q_.*": 4})
    )
    assert (config["r"], config["use_dora"], config["alpha_pattern"]) == (4, False, {})


def test_other_kinds_have_no_rank_of_lora(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "target_modules": ["q_proj"]}))
    assert check_adapter(folder)["r"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_values_that_are_no_numbers(value: float, dtype: Any, tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    weights = np.ones((8, 4), dtype)
    weights[7, 3] = value
    save_file({name: weights}, folder / "adapter_model.safetensors")
    with pytest.raises(
        DataError, match=r"layers\.1\.mlp\.up_proj\.lora_B\.weight holds values that are no numbers"
    ) as found:
        check_adapter(folder)
    assert found.value.exit_code == 3


def test_bfloat16_too(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    path = tmp_path / "x.safetensors"
    largest = torch.finfo(torch.bfloat16).max
    right = {"a": torch.tensor([largest, -largest, 0.0, 1e-40], dtype=torch.bfloat16), "b": torch.arange(3)}
    save_torch(right, path)
    assert first_not_finite(path, read_header(path)) is None
    save_torch({**right, "c": torch.tensor([1.0, float("inf")], dtype=torch.bfloat16)}, path)
    assert first_not_finite(path, read_header(path)) == "c"


BOMBS = [
    {"alpha_pattern": {"(([a-z_.0-9])+)+X": 32}},
    {"rank_pattern": {"q_proj": 4, r"(.*)*(.*)*(.*)*!": 4}},
    {"target_modules": r"(\w+\.?)+#"},
    {"exclude_modules": r"((a|b|[a-z._0-9])*)*#"},
    {"modules_to_save": [r"((\w|\.)*)*#"]},
    {"layers_pattern": [r"((\w|\.)+)+#"], "layers_to_transform": [0]},
]


@pytest.mark.parametrize("bomb", BOMBS, ids=[next(iter(bomb)) for bomb in BOMBS])
def test_a_pattern_that_runs_away(bomb: dict[str, Any], tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(DataError, match=rf"adapter_config\.json: {next(iter(bomb))}: matching .* runs away"):
        check_adapter(adapter(tmp_path, **bomb))
    assert time.monotonic() - begun < 10  # it would take longer than the world exists


def test_no_pattern_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"alpha_pattern: '\(q_proj' is no pattern"):
        check_adapter(adapter(tmp_path, alpha_pattern={"(q_proj": 4}))
    with pytest.raises(DataError, match="rank_pattern is no table"):
        check_adapter(adapter(tmp_path, rank_pattern=["q_proj"]))


def test_an_alarm_that_was_set_stays_set(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    kept = signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        check_adapter(adapter(tmp_path, alpha_pattern={"q_proj": 4}))
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 400
    finally:
        signal.setitimer(signal.ITIMER_REAL, *kept)
        signal.signal(signal.SIGALRM, before)


def test_another_thread_reads_it_too(tmp_path: Path) -> None:
    found: list[Any] = []
    folder = adapter(tmp_path, alpha_pattern={"q_proj": 4})
    thread = threading.Thread(target=lambda: found.append(check_adapter(folder)))
    thread.start()
    thread.join()
    assert found[0]["r"] == 4


@pytest.mark.parametrize("depth", [2_000, 200_000])
@pytest.mark.parametrize("text", ["[{}]", '{{"a":{}}}'])
def test_json_too_deep(depth: int, text: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    opening, closing = text.replace("{{", "{").replace("}}", "}").split("{}") if "{}" in text else ("", "")
    (folder / "adapter_config.json").write_text(opening * depth + "1" + closing * depth)
    with pytest.raises(DataError, match=r"adapter_config\.json (cannot be read as JSON|has no key)"):
        check_adapter(folder)


def test_virtual_tokens_have_no_merge(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="adds virtual tokens"):
        check_adapter(adapter(tmp_path, peft_type="PROMPT_TUNING", num_virtual_tokens=8))


# Output folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path: Path) -> Path:
    for step in (9, 20, 100, 110):
        adapter(tmp_path / "out" / f"checkpoint-{step}")
    (tmp_path / "out" / "checkpoint-best").mkdir()
    torn = tmp_path / "out" / "checkpoint-110" / "adapter_model.safetensors"  # the trainer was killed while it wrote
    torn.write_bytes(torn.read_bytes()[:-8])
    (tmp_path / "out" / "runs").mkdir()
    return tmp_path / "out"


def test_the_newest_complete_checkpoint_is_offered(output: Path) -> None:
    assert newest_checkpoint(output) == output / "checkpoint-100"
    with pytest.raises(DataError, match="holds checkpoints; the newest complete one is") as found:
        check_adapter(output)
    assert f"{output / 'checkpoint-100'}" in found.value.message
    assert f"tune2ollama export {output} --latest" in found.value.hint


def test_what_latest_takes(output: Path, tmp_path: Path) -> None:
    assert latest(output) == output / "checkpoint-100"
    adapter(output)  # what a trainer saves at its end
    assert latest(output) == output
    with pytest.raises(DataError, match="holds no complete checkpoint"):
        latest(tmp_path / "out" / "runs")
    with pytest.raises(DataError, match="there is no folder"):
        check_adapter(tmp_path / "nowhere")


# The command ------------------------------------------------------------------------------------------------------

NO_TORCH = """
import sys, runpy
sys.argv = ["tune2ollama", "export", *sys.argv[1:]]
try:
    runpy.run_module("toolkit.cli", run_name="__main__")
finally:
    print("TORCH" if "torch" in sys.modules else "LIGHT")
"""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"alpha_pattern": {"(([a-z_.0-9])+)+X": 32}}, "runs away"),
        ({"base_model_name_or_path": "some/Model-7B-AWQ"}, "--base some/Model-7B"),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 8}, "virtual tokens"),
    ],
)
def test_the_command_says_so_before_torch_is_there(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", **changes)
    command = [sys.executable, "-c", NO_TORCH, str(folder), "--name", "x"]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True)
    assert done.returncode in (2, 3), done.stderr
    assert told in done.stderr and done.stdout.splitlines()[-1] == "LIGHT"
