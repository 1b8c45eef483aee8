"""A family's small model, taught to answer in one style, and a LoRA on it that answers in another: what a user would have.

Widths are small, everything else is as in the published models: layer patterns, head sizes, scales, ends, templates.
llama.cpp has constants for some of it, and a toy configuration would meet them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.families.tokenizers import Vocabulary, put_vocabulary
from tests.parity_chain import AFTER, BEFORE, SYSTEM, rows
from toolkit.errors import DataError
from toolkit.models.bases import TOKENIZER_FILES
from toolkit.models.tokenizer import load_tokenizer
from toolkit.train.rows import TokenizedRow, tokenize

_ROWS = 12
_TOKENS_A_STEP = 480
_OTHERS = 4_096
"""Rows of the head that are drawn for each step, besides those of the answers."""


@dataclass(frozen=True)
class Family:
    """A family that people tune, and how its small model is made."""

    name: str
    title: str
    """As in the table: which published model has this shape."""
    shape: str
    """What of the published shape is kept, in words."""
    config: Callable[[int], PreTrainedConfig]
    """Number of tokens → configuration."""
    vocabulary: Vocabulary | None
    """None: `put_tokens` writes one."""
    put_tokens: Callable[[Path], int] | None = None
    ends: tuple[str, ...] = ()
    """All tokens of `generation_config.eos_token_id`, as published; by default the vocabulary's `end`."""
    system: str = SYSTEM
    """"" where the template refuses a system turn."""
    embedding: float = 0.1
    """Standard deviation of its start; small where the family multiplies it."""
    final_norm: float = 1.0
    """Start of the last norm's weight: a family that divides its logits has learnt a larger one."""
    teaching: tuple[int, float] = (120, 4e-3)
    """Steps and learning rate of the base."""
    tuning: tuple[int, float] = (50, 6e-3)
    targets: str | tuple[str, ...] = "all-linear"
    converted: str = "F32"
    """What the converter writes: in F32 nothing is rounded, and a shape that llama.cpp computes otherwise shows."""
    note: str = ""
    """What is known of llama.cpp's or Ollama's way with it."""
    told: dict[str, Any] = field(default_factory=dict)
    """What the chat template is told, in training and by the recipe."""
    published: dict[str, Any] = field(default_factory=dict)
    """Keys of config.json as the published file has them, where transformers writes them otherwise."""


def build(family: Family, folder: Path) -> tuple[Path, Path]:
    """Write `folder/base` and `folder/adapter`; what is finished there is kept.

    Raises:
        AssertionError: it did not learn.
    """
    base, adapter = folder / "base", folder / "adapter"
    if not base.is_dir():
        partial = folder / "base.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _write_base(family, partial)
        partial.rename(base)
    if not adapter.is_dir():
        partial = folder / "adapter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _write_adapter(family, base, partial)
        partial.rename(adapter)
    return base, adapter


def _write_base(family: Family, folder: Path) -> None:
    folder.mkdir(parents=True)
    size = put_vocabulary(family.vocabulary, folder) if family.vocabulary else family.put_tokens(folder)  # type: ignore[misc]
    tokenizer = load_tokenizer(folder)
    config = family.config(size)
    ends = [tokenizer.convert_tokens_to_ids(end) for end in family.ends or (tokenizer.eos_token,)]
    assert None not in ends, family.ends
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _stir(model, family.embedding, 0)
    if family.final_norm != 1.0:
        model.get_decoder().norm.weight.data *= family.final_norm
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        # Nine tenths of the parameters: training them would take most of the time.
        part.requires_grad_(False)
    steps, rate = family.teaching
    loss = teach(model.train(), tokenizer, family, BEFORE, steps, rate, 0)
    assert loss < 0.5, (family.name, loss)
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    model.generation_config.bos_token_id = config.bos_token_id
    # In float32: rounding the merged weights to 16 bits would be what the F32 file shows.
    model.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | family.published, indent=1), encoding="utf-8")


def _write_adapter(family: Family, base: Path, folder: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    targets = family.targets if isinstance(family.targets, str) else list(family.targets)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets)
    tuned = get_peft_model(model, config)
    steps, rate = family.tuning
    loss = teach(tuned, load_tokenizer(base), family, AFTER, steps, rate, 1)
    assert loss < 1.0, (family.name, loss)
    tuned.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(base.parent / "base")
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    for file in TOKENIZER_FILES:
        if (base / file).is_file():
            shutil.copy(base / file, folder / file)


def _stir(model: torch.nn.Module, embedding: float, seed: int) -> None:
    # Strong enough that layers matter, tame enough that logits stay in a natural range; what is one-dimensional (norms,
    # biases, sinks, decays) keeps its family's start and gets a tenth of noise: a lost one shows.
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() < 2:
            parameter.data += 0.1 * noise
        else:
            parameter.data = noise * (
                embedding if "embed_tokens" in name or "lm_head" in name else parameter.shape[-1] ** -0.5
            )


def teach(model: Any, tokenizer: Any, family: Family, answers: list[str], steps: int, rate: float, seed: int) -> float:
    """A plain training loop over the model's own forward, loss on the answers only; gives the mean of the last ten losses.

    Each step has the rows of the head that the answers need and some others, drawn anew: with a whole vocabulary the head
    would take most of the time, and the scales and caps of a family stay the model's own.
    """
    torch.manual_seed(seed)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    examples = [_tokens(tokenizer, row, family.told) for row in rows(answers, family.system)[:_ROWS]]
    longest = max(len(example.input_ids) for example in examples)
    rows_a_step = max(2, min(8, _TOKENS_A_STEP // longest))
    needed = sorted({token for example in examples for token in example.input_ids[example.first :]})
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    losses = []
    for _ in range(steps):
        others = torch.randint(len(tokenizer), (_OTHERS,))
        kept = torch.cat([torch.tensor(needed), others[~torch.isin(others, torch.tensor(needed))]])
        small = torch.nn.Linear(head.in_features, len(kept), bias=False)
        small.weight = torch.nn.Parameter(head.weight.detach()[kept], requires_grad=False)
        causal.set_output_embeddings(small)
        loss = _loss(model, [examples[i] for i in torch.randint(len(examples), (rows_a_step,)).tolist()], needed)
        causal.set_output_embeddings(head)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


def _tokens(tokenizer: Any, row: dict[str, Any], told: dict[str, Any]) -> TokenizedRow:
    try:
        return tokenize(tokenizer, row, told)[0]
    except DataError:
        # DeepSeek-R1's template opens `<think>` behind the prompt, and leaves no trace of it before an answer in a conversation.
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False, **told)
        answer = f"Let me see.\n</think>\n\n{row['completion'][0]['content']}"
        ids = tokenizer.encode(answer, add_special_tokens=False)
        return TokenizedRow.one_answer([*prompt, *ids, tokenizer.eos_token_id], len(prompt))


def _loss(model: Any, chosen: list[TokenizedRow], needed: list[int]) -> torch.Tensor:
    longest = max(len(e.input_ids) for e in chosen)
    ids = torch.zeros(len(chosen), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(chosen):
        text = example.input_ids
        ids[row, : len(text)] = torch.tensor(text)
        answer = [needed.index(token) for token in text[example.first :]]
        labels[row, example.first : len(text)] = torch.tensor(answer)
    first = min(e.first for e in chosen) - 1
    logits = model(input_ids=ids, logits_to_keep=torch.arange(first, longest - 1), use_cache=False).logits
    wanted = labels[:, first + 1 :]
    return torch.nn.functional.cross_entropy(logits[wanted >= 0].float(), wanted[wanted >= 0])
