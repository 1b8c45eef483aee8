"""On a CUDA card: two steps through Unsloth on the embedded base in NF4, and what was trained is what is merged.

.venv/bin/python -m pytest -m gpu tests/gpu
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.children import child_environment
from toolkit.models.reference import Reference, TeacherForced
from toolkit.models.weights import TrainedWeights
from toolkit.run.artifacts import read_jsonl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here"),
]
LAYERS = 30


def test_what_unsloth_trained_is_what_is_merged(tmp_path: Path) -> None:
    assert importlib.util.find_spec("unsloth") is not None, "with a card, make setup installs Unsloth"
    random = Random(7)
    rows = "".join(f"What is {random.randbytes(8).hex()}?,It is {random.randbytes(8).hex()}.\n" for _ in range(40))
    (tmp_path / "rows.csv").write_text("ask,answer\n" + rows, encoding="utf-8")
    recipe = {
        "name": "smoke", "base": "embedded:smollm2-135m-instruct",
        "data": {"path": "rows.csv", "validation": 0.2, "test": 0.2},
        # Unsloth quantizes the scales too, whatever it is asked for: the facts are to say so.
        "train": {"method": "qlora", "max_steps": 2, "learning_rate": 1e-3, "warmup_steps": 0, "bf16": True,
                  "gradient_checkpointing": True, "bnb_4bit_use_double_quant": False},
        "golden": {"prompts": ["Who are you?", "Name a fruit."], "max_new_tokens": 16}, "ollama": {"model": "smoke"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "toolkit.cli", "golden", "recipe.yaml", "--set", "merge.folder=true"]
    done = subprocess.run(command, cwd=tmp_path, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Unsloth is not installed" not in done.stderr

    run = tmp_path / "runs" / "smoke"
    facts = {stage: json.loads((run / stage / "artifact.json").read_text())["facts"] for stage in ("train", "merge")}
    trained = facts["train"]
    assert (trained["steps"], trained["base_dtype"]) == (2, "bfloat16" if _native_bf16() else "float16")
    assert trained["quantization"] == {"quant_type": "nf4", "blocksize": 64, "double_quantization": True}
    adapter = load_file(run / "train" / "adapter_model.safetensors")
    moved = [name for name, tensor in adapter.items() if "lora_B" in name and tensor.abs().max() > 0]
    assert len(moved) == LAYERS * 7
    assert (facts["merge"]["merged_onto"], facts["merge"]["merged_tensors"]) == ("nf4", LAYERS * 7)

    goldens = read_jsonl(run / "golden" / "golden.jsonl")
    forced = [TeacherForced(row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])) for row in goldens]
    merged = torch.cat(list(Reference(TrainedWeights(run / "merge", "float32", None)).logits(forced))).numpy()
    assert np.abs(merged - np.load(run / "golden" / "tuned.npy")).max() < 0.05


def _native_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
