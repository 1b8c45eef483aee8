"""Models for the bench of the odds: five families 256 wide, with a vocabulary of some 1,300 tokens.

A real SentencePiece vocabulary, cut to what costs little: bytes, ASCII, and the first merges. Four hundred files are read, and
what reading costs is mostly the vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from tests.small_models import _randomize
from tests.spm_tokenizers import TREE, _special, _tokenizer, _write_settings, spm_tokenizer, write_model
from toolkit.models.gguf_file import read_gguf

MERGES = 900
_FIRST = 259
"""<unk>, <s>, </s> and 256 bytes."""

_SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}  # fmt: skip
_WITH_HEADS = _SHAPE | {"head_dim": 64}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, _SHAPE | {"tie_word_embeddings": True}),
    "gemma": (GemmaForCausalLM, GemmaConfig, _WITH_HEADS | {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, _WITH_HEADS | {"query_pre_attn_scalar": 64, "sliding_window": 512}),
    "phi3": (Phi3ForCausalLM, Phi3Config, _SHAPE | {"original_max_position_embeddings": 2048, "pad_token_id": 0}),
    "granite": (
        GraniteForCausalLM,
        GraniteConfig,
        _SHAPE | {"attention_multiplier": 0.125, "residual_multiplier": 0.9, "tie_word_embeddings": False},
    ),
}


def small_model(family: str, folder: Path) -> Path:
    """Write a model with random weights, its tokenizer and template; gives `folder`."""
    folder.mkdir(parents=True)
    vocabulary = _put_vocabulary(folder)
    kind, config, shape = FAMILIES[family]
    model = kind(config(vocab_size=vocabulary, **shape))
    _randomize(model, 0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    return folder


def _put_vocabulary(folder: Path) -> int:
    metadata = read_gguf(TREE / "models" / "ggml-vocab-llama-spm.gguf").metadata
    texts, scores, kinds = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    chosen = [
        i for i, text in enumerate(texts) if i < _FIRST + MERGES or (len(text) == 1 and (text.isascii() or text == "▁"))
    ]
    pieces = [[column[i] for i in chosen] for column in (texts, scores, kinds)]
    special = _special("gemma2", texts)
    write_model(folder / "tokenizer.model", *pieces)
    _tokenizer("gemma2", pieces[0], pieces[1], special).save(str(folder / "tokenizer.json"))
    _write_settings("gemma2", folder, special)
    shutil.copy(spm_tokenizer("gemma2") / "chat_template.jinja", folder / "chat_template.jinja")
    return len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + 2
