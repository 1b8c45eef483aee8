"""Tiny Llama models with the real vocabularies and the real chat templates of the llama.cpp tree: enough to be rendered for."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import gguf
import numpy as np

from tests.small_models import TREE
from toolkit.models.gguf_file import GGUFHeader, read_gguf
from toolkit.ollama.repair import rewrite_template
from toolkit.run.places import cache_home

TEMPLATES = TREE / "models" / "templates"
WIDTH, FEED_FORWARD, HEADS, CONTEXT = 64, 128, 2, 4096
PLACEHOLDER = "none"

VOCABULARY = {
    "Qwen": "qwen2", "Llama": "llama-bpe", "Hermes": "llama-bpe", "functionary": "llama-bpe", "gemma": "gemma-4",
    "Phi": "phi-3", "Cohere": "command-r", "mistral": "llama-spm", "Mistral": "llama-spm", "deepseek": "deepseek-llm",
}  # fmt: skip
"""Which vocabulary of the tree a template gets, by a part of its name; others get Qwen2's."""


def template_text(name: str) -> str:
    """A template of the tree, by its file's name without the ending."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def vocabulary_of(name: str) -> str:
    """The vocabulary that a template's model gets here."""
    return next((vocabulary for part, vocabulary in VOCABULARY.items() if part in name), "qwen2")


@functools.cache
def _bare(vocabulary: str) -> Path:
    # Kept: gguf-py takes up to half a minute to read and write the largest of these vocabularies.
    kept = cache_home() / "tests" / f"tiny-llama-{vocabulary}-1.gguf"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    made = kept.with_name(f"{kept.name}.partial-{os.getpid()}")
    reader = gguf.GGUFReader(TREE / "models" / f"ggml-vocab-{vocabulary}.gguf")
    writer = gguf.GGUFWriter(made, "llama")
    writer.add_block_count(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_file_type(1)
    for field in reader.fields.values():
        if field.name.startswith("tokenizer.ggml."):
            value = field.contents()
            writer.add_key_value(field.name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_chat_template(PLACEHOLDER)
    tokens = len(reader.fields["tokenizer.ggml.tokens"].data)
    random = np.random.default_rng(1)

    def put(name: str, *shape: int) -> None:
        wide = len(shape) > 1
        values = random.standard_normal(shape, dtype=np.float32) * 0.1 + (0 if wide else 1)
        writer.add_tensor(name, values.astype(np.float16 if wide else np.float32))

    put("token_embd.weight", tokens, WIDTH)
    put("output_norm.weight", WIDTH)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        put(f"blk.0.{name}.weight", WIDTH, WIDTH)
    for name, shape in (
        ("up", (FEED_FORWARD, WIDTH)),
        ("gate", (FEED_FORWARD, WIDTH)),
        ("down", (WIDTH, FEED_FORWARD)),
    ):
        put(f"blk.0.ffn_{name}.weight", *shape)
    put("blk.0.attn_norm.weight", WIDTH)
    put("blk.0.ffn_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made.rename(kept)
    return kept


@functools.cache
def _header(vocabulary: str) -> GGUFHeader:
    return read_gguf(_bare(vocabulary))


def tiny_gguf(folder: Path, name: str, template: str, vocabulary: str = "qwen2") -> Path:
    """A model of some 5 to 50 MB with this template."""
    return rewrite_template(_bare(vocabulary), folder / f"{name}.gguf", template, _header(vocabulary))


def special_texts(vocabulary: str = "qwen2") -> tuple[str, str, bool]:
    """BOS and EOS as text ("" for none), and whether the tokenizer puts BOS first by itself."""
    metadata = _header(vocabulary).metadata
    tokens = metadata["tokenizer.ggml.tokens"]

    def text(kind: str) -> str:
        token = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        return "" if token is None else str(tokens[token])

    by_itself = metadata.get("tokenizer.ggml.add_bos_token")
    if by_itself is None:  # llama.cpp's own defaults, by kind of tokenizer
        by_itself = metadata["tokenizer.ggml.model"] == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    return text("bos"), text("eos"), bool(by_itself)
