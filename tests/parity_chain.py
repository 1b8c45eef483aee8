"""A small trained chain for the parity tests: a Llama 256 wide that learnt to answer and to stop, an adapter that changed its
answers, and the exports of both, right and damaged.

Trained, not random: a random model is flat and never ends an answer, and gates on it would prove little.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.faults.files import stored_tensors
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama
from toolkit.export.merge import merge
from toolkit.export.quantize import quantize
from toolkit.export.straight import convert_straight
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.golden.record import record_golden
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import AdapterFacts, Facts, GGUFFacts, GoldenFacts, ModelFacts
from toolkit.run.places import cache_home
from toolkit.train.model import load_tuned
from toolkit.train.rows import TokenizedRow, tokenize

SYSTEM = "Answer in one short sentence."
PROBLEMS = [
    "a cough",
    "a cold",
    "hay fever",
    "a burn",
    "back pain",
    "hiccups",
    "a rash",
    "sore feet",
    "dry eyes",
    "a cramp",
]
ASKED = ["What helps against {}?", "I have {}, what now?", "Can I work with {}?", "Is {} dangerous?"]
BEFORE = ["Rest helps against {}.", "With {} you wait a day.", "Yes, {} is no obstacle.", "No, {} is harmless."]
AFTER = [
    "Drink tea; if {} stays for a week, see a doctor.",
    "Take it slowly, and ask a pharmacist about {}.",
    "Better not: {} needs a day of rest first.",
    "Rarely, but a doctor should look at {} once.",
]
GOLDEN = [ASKED[i % 4].format(problem) for i, problem in enumerate(PROBLEMS)] + [
    "What helps against a headache?",
    "Is a fever dangerous?",
]


def rows(answers: list[str], system: str = SYSTEM) -> list[dict[str, Any]]:
    """Every question about every problem, with the answers of one style; without a system turn where there is no text."""
    opening = [{"role": "system", "content": system}] if system else []
    return [
        {
            "prompt": [*opening, {"role": "user", "content": asked.format(problem)}],
            "completion": [{"role": "assistant", "content": answer.format(problem)}],
        }
        for problem in PROBLEMS
        for asked, answer in zip(ASKED, answers)
    ]


def teach(
    model: Any, tokenizer: Any, answers: list[str], steps: int, rate: float, seed: int, system: str = SYSTEM
) -> float:
    """A plain training loop, loss on the answers only; gives the last loss."""
    return learn(model, [tokenize(tokenizer, row)[0] for row in rows(answers, system)], steps, rate, seed)


def learn(model: Any, examples: list[TokenizedRow], steps: int, rate: float, seed: int) -> float:
    """The same on rows that are tokens already; what comes of it is kept in the cache, by all that it depends on."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = cache_home() / "tests" / f"{_sum_of(model, examples, steps, rate, seed)}.safetensors"
    if kept.is_file():
        found = load_file(kept)
        loss = float(found.pop(_LOSS))
        for name, values in found.items():
            trained[name].data.copy_(values)
    else:
        loss = _learn(model, examples, steps, rate, seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        save_file({name: p.data.contiguous() for name, p in trained.items()} | {_LOSS: torch.tensor(loss)}, part)
        part.replace(kept)
    torch.manual_seed(seed)
    return loss


_LOSS = "the last loss"


def _sum_of(model: Any, examples: list[TokenizedRow], *settings: Any) -> str:
    told = [
        settings,
        torch.__version__,
        version("transformers"),
        version("peft"),
        inspect.getsource(_learn),
        str(model),
    ]
    found = hashlib.sha256(json.dumps([told, [(e.input_ids, e.labels) for e in examples]]).encode())
    for name, parameter in model.named_parameters():
        found.update(f"{name} {parameter.requires_grad} {parameter.dtype}".encode())
        found.update(memoryview(parameter.detach().contiguous().view(torch.uint8).numpy()).cast("B"))
    return found.hexdigest()[:40]


def _learn(model: Any, examples: list[TokenizedRow], steps: int, rate: float, seed: int) -> float:
    torch.manual_seed(seed)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        chosen = [examples[i] for i in torch.randint(len(examples), (8,)).tolist()]
        longest = max(len(e.input_ids) for e in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        for row, example in enumerate(chosen):
            ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
            labels[row, : len(example.input_ids)] = torch.tensor(example.labels)
        hidden = causal.get_decoder()(ids).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] >= 0
        # The head on the answers alone: over the whole batch it would take most of the time.
        loss = torch.nn.functional.cross_entropy(causal.get_output_embeddings()(hidden[wanted]), labels[:, 1:][wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return loss.item()


def trained_base(folder: Path, steps: int = 60, system: str = SYSTEM) -> Path:
    """A tiny model that answers in the first style and ends its answers: the one in the folder, or else a Llama."""
    if not folder.is_dir():
        tiny_llama(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    tokenizer = load_tokenizer(folder)
    # The embedding, nine tenths of the parameters, stays random: training it would take most of the time.
    model.get_input_embeddings().requires_grad_(False)
    loss = teach(model, tokenizer, BEFORE, steps, 3e-3, 0, system)
    assert loss < 0.5, loss
    model.save_pretrained(folder)
    return folder


def trained_adapter(
    base: Path,
    out: Path,
    method: Literal["lora", "qlora"] = "lora",
    steps: int = 30,
    system: str = SYSTEM,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> Path:
    """A LoRA (rsLoRA, DoRA) on all projections that teaches the second style."""
    made = tiny_adapter(base, out, method, r=8, alpha=16, use_rslora=use_rslora, use_dora=use_dora)
    model, _ = load_tuned(adapter_artifact(made, base, method))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            parameter.data.zero_()
    loss = teach(model.train(), load_tokenizer(base), AFTER, steps, 5e-3, 1, system)
    assert loss < 1.0, loss
    model.save_pretrained(out)
    return out


def recipe(file_types: list[str], serve: str, base: Path, name: str = "tiny", system: str = SYSTEM) -> Recipe:
    """A recipe for a chain whose adapter is there already."""
    return Recipe.model_validate(
        {
            "name": name, "base": str(base), "system": system, "adapter": "unused",
            "golden": {"prompts": GOLDEN, "max_new_tokens": 24},
            "export": {"file_types": file_types, "serve": serve}, "ollama": {"model": "tiny"},
        }
    )  # fmt: skip


def finished(folder: Path, facts: Facts) -> Artifact[Any]:
    """A stage's folder as an artifact, without the pipeline."""
    return Artifact(folder, facts, "", {}, Cost())


def scaled(adapter: Path, out: Path, factor: float) -> Path:
    """The same adapter at `factor` times its alpha."""
    shutil.copytree(adapter, out)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {n: t * factor if "lora_B" in n else t for n, t in tensors.items()},
        out / "adapter_model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    return out


@dataclass
class Export:
    """What merge, convert and quantize left."""

    model: Artifact[ModelFacts]
    gguf: Artifact[GGUFFacts]
    quantized: Artifact[GGUFFacts]


def export(chosen: Recipe, adapter: Artifact[AdapterFacts], folder: Path) -> Export:
    """merge → convert → quantize, with the stages' own functions."""
    for name in ("merge", "convert", "quantize"):
        (folder / name).mkdir(parents=True)
    model = finished(folder / "merge", merge(chosen, adapter, folder / "merge"))
    gguf = finished(folder / "convert", convert_straight(chosen, adapter, folder / "convert"))
    return Export(model, gguf, finished(folder / "quantize", quantize(chosen, gguf, folder / "quantize")))


def record(chosen: Recipe, adapter: Artifact[AdapterFacts], folder: Path) -> Artifact[GoldenFacts]:
    """Record the goldens of an adapter."""
    folder.mkdir(parents=True)
    return finished(folder, record_golden(chosen, adapter, None, folder))


@dataclass
class Chain:
    """A clean chain, and what is needed to damage it."""

    folder: Path
    recipe: Recipe
    adapter: Artifact[AdapterFacts]
    golden: Artifact[GoldenFacts]
    export: Export
    without_adapter: Path
    """F16 GGUF of the base alone."""


@functools.cache
def chain() -> Chain:
    """The clean chain: a QLoRA adapter merged onto NF4 weights; made once per test run."""
    folder = Path(tempfile.mkdtemp(prefix="tune2ollama-parity-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = trained_base(folder / "base")
    adapter = trained_adapter(base, folder / "adapter", "qlora")
    chosen = recipe(["F16", "Q8_0", "Q4_K_M"], "Q8_0", base)
    artifact = adapter_artifact(adapter, base, "qlora")
    without = adapter_artifact(scaled(adapter, folder / "lost", 0.0), base, "qlora")
    bare = export(recipe(["F16"], "F16", base), without, folder / "without")
    return Chain(
        folder, chosen, artifact, record(chosen, artifact, folder / "golden"), export(chosen, artifact, folder / "right"),
        bare.gguf.folder / bare.gguf.facts.files[0].name,
    )  # fmt: skip


def damaged(clean: Chain, damage: Callable[[Path], None], out: Path) -> Export:
    """The clean export with its F16 file changed, and quantized again from there."""
    file = clean.export.gguf.facts.files[0]
    for name in ("convert", "quantize"):
        (out / name).mkdir(parents=True)
    shutil.copy(clean.export.gguf.folder / file.name, out / "convert" / file.name)
    damage(out / "convert" / file.name)
    gguf = finished(out / "convert", clean.export.gguf.facts)
    return Export(clean.export.model, gguf, finished(out / "quantize", quantize(clean.recipe, gguf, out / "quantize")))


def blend(path: Path, without: Path, factor: float) -> None:
    """Scale the adapter inside a merged F16 file: merged weights are linear in alpha."""
    bare = stored_tensors(without, "r")
    for name, stored in stored_tensors(path, "r+").items():
        zero = bare[name].astype(np.float32)
        stored[:] = (zero + factor * (stored.astype(np.float32) - zero)).astype(stored.dtype)


def replace_bytes(path: Path, old: bytes, new: bytes) -> None:
    """Change the first place where a GGUF holds `old`, in place."""
    assert len(old) == len(new), (old, new)
    content = path.read_bytes()
    assert old in content, old
    path.write_bytes(content.replace(old, new, 1))
