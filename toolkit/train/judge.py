"""A reward model: the base with a head of one number, and an adapter trained on pairs; it judges answers for rloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toolkit.models.bases import resolve_base
from toolkit.models.tokenizer import load_tokenizer, own_tokenizer
from toolkit.models.weights import attention_of
from toolkit.recipe.lora import Lora
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, BaseFacts
from toolkit.train.adapter import put_adapter

JUDGED_TOGETHER = 8


def fresh_judge(base: BaseFacts, lora: Lora, dtype: torch.dtype, seed: int) -> tuple[Any, Any]:
    """(model, tokenizer): the base's body with a new head [1, hidden], which is trained whole beside the adapter."""
    torch.manual_seed(seed)
    tokenizer = own_tokenizer(base.folder)
    model = _body(base, dtype, tokenizer)
    return put_adapter(model, lora, "SEQ_CLS")[0], tokenizer


def load_judge(artifact: Artifact[AdapterFacts]) -> Callable[[list[list[int]]], list[float]]:
    """A reward model that a step left, as a function of token ids."""
    from peft import PeftModel

    facts = artifact.facts
    tokenizer = load_tokenizer(artifact.folder, facts.base.folder)
    body = _body(resolve_base(facts.base.id), getattr(torch, facts.base_dtype), tokenizer)
    model = PeftModel.from_pretrained(body, artifact.folder).eval()
    return lambda ids: scores(model, ids)


def _body(base: BaseFacts, dtype: torch.dtype, tokenizer: Any) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = Path(base.folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=dtype, trust_remote_code=False, use_safetensors=True,
        attn_implementation=attention_of(config),
        device_map={"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
    )  # fmt: skip
    # The number is read at the last token that is no padding.
    model.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    model.config.use_cache = False
    return model


@torch.no_grad()
def scores(model: Any, sequences: list[list[int]]) -> list[float]:
    """A number for each sequence of token ids, by the model in evaluation mode."""
    was_training = model.training
    model.eval()
    found: list[float] = []
    device = next(model.parameters()).device
    pad = model.config.pad_token_id
    for start in range(0, len(sequences), JUDGED_TOGETHER):
        some = sequences[start : start + JUDGED_TOGETHER]
        longest = max(map(len, some))
        ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in some], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in some], device=device)
        found += model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
    model.train(was_training)
    return found
