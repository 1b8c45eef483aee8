"""Adapters with new tokens, or that part a tied head, go the whole way to a certificate that passes; a lost one does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.parity_chain import Export, export, finished, recipe, record
from tests.small_models import tiny_llama
from toolkit.parity.verify import verify
from toolkit.recipe.adopted import recipe_for_adapter
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import CertificateFacts
from toolkit.train.adopt import adopt_adapter

pytestmark = pytest.mark.slow

TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
KINDS = {
    "new tokens, whole": ({"modules_to_save": ["embed_tokens", "lm_head"]}, 2),
    "new tokens, rows": ({"trainable_token_indices": {"embed_tokens": [49_152, 49_153, 49_154]}}, 3),
    "head": ({"target_modules": [*TARGETS, "lm_head"]}, 0),
}


def adapter(base: Path, folder: Path, settings: dict[str, object], new_tokens: int) -> Path:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if new_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<part {i}>" for i in range(new_tokens)]})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tuned = get_peft_model(model, LoraConfig(**{"r": 8, "target_modules": TARGETS, **settings}))  # type: ignore[arg-type]
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            size = 0.1 if "lora_B" in name else 0.02
            parameter.data += size * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_it_passes(name: str, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    source = adapter(base, tmp_path / "source", *KINDS[name])
    (tmp_path / "train").mkdir()
    facts = adopt_adapter(recipe_for_adapter(source, "tiny", str(base)), tmp_path / "train")
    trained = Artifact(tmp_path / "train", facts, "", {}, Cost())
    chosen = recipe(["F16", "Q8_0"], "Q8_0", base)
    golden = record(chosen, trained, tmp_path / "golden")
    assert golden.facts.vocabulary == 49_152 + KINDS[name][1]
    made: Export = export(chosen, trained, tmp_path / "export")
    (tmp_path / "verify").mkdir()
    found: CertificateFacts = verify(
        chosen, trained, golden, made.model, made.gguf, made.quantized, tmp_path / "verify"
    )
    failed = {check: verdict for check, verdict in found.checks.items() if verdict in ("fail", "inconclusive")}
    # Random values never write an end of turn, which the certificate must say; nothing else is in doubt.
    assert failed == {"adapter: ends": "inconclusive"}, found.message
    assert finished(tmp_path / "verify", found).facts.served_file
