"""Every weight trained, on a base in 16 bits: what was saved is what the certificate compares with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.parity_chain import AFTER, GOLDEN, SYSTEM, export, finished, record, rows, trained_base
from tests.small_models import put_tokenizer
from tests.train.test_training import make_dataset
from toolkit.parity.verify import verify
from toolkit.recipe.schema import Recipe
from toolkit.train.training import train


@pytest.mark.slow
def test_a_16_bit_base_that_was_trained_whole_is_certified(tmp_path: Path) -> None:
    base = trained_base(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    put_tokenizer(base)
    chosen = Recipe.model_validate(
        {
            "name": "whole", "base": str(base), "system": SYSTEM, "data": {"path": "unused"},
            "train": {"method": "full", "bf16": True, "max_steps": 15, "learning_rate": 1e-3, "warmup_steps": 0,
                      "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "save_steps": 100},
            "golden": {"prompts": GOLDEN, "max_new_tokens": 24},
            "export": {"file_types": ["F32", "Q8_0"], "serve": "Q8_0"}, "ollama": {"model": "whole"},
        }
    )  # fmt: skip
    examples = [{**row, "source": {"file": "a.csv", "line": i}} for i, row in enumerate(rows(AFTER))]
    (tmp_path / "train").mkdir()
    facts = train(chosen, make_dataset(tmp_path / "data", examples), tmp_path / "train")
    saved = load_file(tmp_path / "train" / "model.safetensors")
    assert facts.base_dtype == "float32"
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(not torch.equal(t, t.bfloat16().float()) for t in saved.values())

    adapter = finished(tmp_path / "train", facts)
    golden = record(chosen, adapter, tmp_path / "golden")
    made = export(chosen, adapter, tmp_path)
    out = tmp_path / "verify"
    out.mkdir()
    verdict = verify(chosen, adapter, golden, made.model, made.gguf, made.quantized, out)
    assert verdict.verdict == "pass", json.loads((out / "certificate.json").read_text())["message"]
    assert set(verdict.checks.values()) == {"pass"}
