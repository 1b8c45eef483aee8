"""Layer by layer gives what the whole model gives, and both give what transformers, PEFT and bitsandbytes give."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.disk import largest_file
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama, tiny_qwen2
from toolkit.errors import ResourceError
from toolkit.models.reference import Reference, TeacherForced, held_out_loss, write_logits
from toolkit.models.weights import TrainedWeights
from toolkit.run.facts import Quantization
from toolkit.train.model import load_tuned

SEQUENCES = [
    TeacherForced([1, 4093, 198, 19556, 216, 7906, 240, 178], 3),
    TeacherForced(list(range(500, 540)), 30),
    TeacherForced([7, 8], 1),
]


def logits(reference: Reference) -> torch.Tensor:
    return torch.cat(list(reference.logits(SEQUENCES)))


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(("build", "tie"), [(tiny_llama, True), (tiny_qwen2, False)], ids=["llama", "qwen2"])
def test_layer_by_layer_equals_whole_and_peft(tmp_path: Path, build, tie: bool, method: str) -> None:
    base = build(tmp_path / "base", tie=tie)
    adapter = tiny_adapter(base, tmp_path / "adapter", method=method)
    weights = TrainedWeights(base, "float32", Quantization() if method == "qlora" else None)
    whole = Reference(weights, adapter, whole=True)
    layered = Reference(weights, adapter, whole=False)
    assert (whole.forward, layered.forward) == ("whole", "layer by layer")
    tuned = logits(whole)
    assert tuned.shape == (5 + 10 + 1, whole._causal.config.vocab_size)
    assert (logits(layered) - tuned).abs().max() <= 1e-4
    with whole.adapter_off(), layered.adapter_off():
        base_logits = logits(whole)
        assert (logits(layered) - base_logits).abs().max() <= 1e-4
    assert (tuned - base_logits).abs().max() > 0.5
    # The weights that stream are gone again, and a second pass reads them anew.
    assert all(p.is_meta for n, p in layered._decoder.layers[0].named_parameters() if "lora_" not in n)
    assert (logits(layered) - tuned).abs().max() <= 1e-4

    model, _ = load_tuned(adapter_artifact(adapter, base, method=method), torch.float32)
    with torch.no_grad():
        there = [model(torch.tensor([s.ids[:-1]])).logits[0, s.first - 1 :] for s in SEQUENCES]
    assert (torch.cat(there) - tuned).abs().max() <= 1e-4


def test_dora_and_rslora(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    adapter = tiny_adapter(base, tmp_path / "adapter", use_dora=True, use_rslora=True)
    weights = TrainedWeights(base, "float32", None)
    assert (logits(Reference(weights, adapter, False)) - logits(Reference(weights, adapter, True))).abs().max() <= 1e-4


def test_write_logits_streams(tmp_path: Path) -> None:
    parts = [torch.arange(6.0).reshape(2, 3), torch.ones(1, 3)]
    write_logits(iter(parts), tmp_path / "x.npy", (3, 3), "x")
    written = np.load(tmp_path / "x.npy", mmap_mode="r", allow_pickle=False)
    assert written.dtype == np.float32
    assert written.tolist() == [[0, 1, 2], [3, 4, 5], [1, 1, 1]]


def test_a_full_disk_is_told_before_any_logits_are_computed(tmp_path: Path) -> None:
    asked = []

    def logits() -> Iterator[torch.Tensor]:
        asked.append(1)
        yield torch.ones(1000, 100)

    with (
        pytest.raises(ResourceError, match=rf"no space to write {tmp_path}/x\.npy: File too large"),
        largest_file(300_000),
    ):
        write_logits(logits(), tmp_path / "x.npy", (1000, 100), "x")
    assert asked == []
    assert list(tmp_path.iterdir()) == []
    assert ResourceError.exit_code == 4


def test_held_out_loss_is_the_mean_over_answer_tokens(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in [("What helps?", "Rest."), ("And now?", "See a doctor if it lasts longer than a week.")]
    ]
    found = held_out_loss(TrainedWeights(base, "float32", None), None, rows, tokenizer, 512)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        with torch.no_grad():
            chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(len(prompt), len(ids)):
            total -= chances[position - 1, ids[position]].item()
            count += 1
    assert found == pytest.approx(total / count, abs=1e-4)
    assert held_out_loss(TrainedWeights(base, "float32", None), None, rows, tokenizer, 3) is None
