"""Real SentencePiece vocabularies of the llama.cpp tree as HF tokenizers: what the converters of Gemma-2 and Phi-3 read.

A GGUF keeps a SentencePiece model's pieces, scores and kinds, which is all that its BPE needs: `tokenizer.model` is built from
them, and `tokenizer.json` with the merges that the scores stand for. Llama 2's pieces stand in for Gemma 2's own, which the tree
does not hold; the normalizer, the marks of the turns and the template are Gemma 2's.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from sentencepiece import sentencepiece_model_pb2 as spm
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from toolkit.models.gguf_file import read_gguf
from toolkit.run.places import cache_home

TREE = cache_home() / "llama.cpp" / "0.3.36"
SpmName = Literal["gemma2", "phi3"]
VERSION = 2
SIZES: dict[SpmName, int] = {"gemma2": 32_002, "phi3": 32_064}
_SOURCE: dict[SpmName, tuple[str, str]] = {
    "gemma2": ("ggml-vocab-llama-spm.gguf", "google-gemma-2-2b-it.jinja"),
    "phi3": ("ggml-vocab-phi-3.gguf", "microsoft-Phi-3.5-mini-instruct.jinja"),
}
_PIECES = 32_000
_KEEPS_SPACES = ("<unk>", "<s>", "<|endoftext|>")
"""Phi-3's other special tokens swallow the white space behind them."""


@functools.cache
def spm_tokenizer(name: SpmName) -> Path:
    """A folder with tokenizer.model, tokenizer.json, tokenizer_config.json and chat_template.jinja; kept in the cache."""
    return in_cache(f"{name}-tokenizer-{VERSION}", functools.partial(_write, name))


def in_cache(name: str, write: Callable[[Path], None]) -> Path:
    """A folder of this name in the cache, written once; whoever else writes it meanwhile writes the same."""
    folder = cache_home() / "tests" / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True, exist_ok=True)
    write(partial)
    if not folder.is_dir():
        partial.rename(folder)
    return folder


def _write(name: SpmName, folder: Path) -> None:
    vocabulary, template = _SOURCE[name]
    metadata = read_gguf(TREE / "models" / vocabulary).metadata
    pieces = metadata["tokenizer.ggml.tokens"][:_PIECES]
    scores = metadata["tokenizer.ggml.scores"][:_PIECES]
    kinds = metadata["tokenizer.ggml.token_type"][:_PIECES]
    special = _special(name, metadata["tokenizer.ggml.tokens"])
    write_model(folder / "tokenizer.model", pieces, scores, kinds)
    _tokenizer(name, pieces, scores, special).save(str(folder / "tokenizer.json"))
    _write_settings(name, folder, special)
    shutil.copy(TREE / "models" / "templates" / template, folder / "chat_template.jinja")


def _special(name: SpmName, tokens: list[str]) -> list[AddedToken]:
    more = tokens[_PIECES:] if name == "phi3" else ["<start_of_turn>", "<end_of_turn>"]
    texts = ["<unk>", "<s>", "</s>", *(text for text in more if not text.startswith("[PAD"))]
    swallows = name == "phi3"
    return [
        AddedToken(text, special=True, normalized=False, rstrip=swallows and text not in _KEEPS_SPACES)
        for text in texts
    ]


def write_model(path: Path, pieces: list[str], scores: list[float], kinds: list[int]) -> None:
    """Write a SentencePiece BPE model of these pieces: `tokenizer.model`."""
    model = spm.ModelProto()
    model.trainer_spec.model_type = spm.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(pieces)
    model.normalizer_spec.name = "identity"
    for text, score, kind in zip(pieces, scores, kinds):
        # The numbers of the kinds are the same in GGUF and in SentencePiece; Phi-3's file calls some control tokens unknown.
        wanted = 2 if text == "<unk>" else 3 if text in ("<s>", "</s>") else 1 if kind == 2 else kind
        model.pieces.add(piece=text, score=score, type=wanted)
    path.write_bytes(model.SerializeToString())


def bpe_of_pieces(pieces: list[str], scores: list[float]) -> Tokenizer:
    """The `tokenizer.json` of SentencePiece's pieces, without special tokens; spaces become "▁", none is put in front."""
    ids = {text: i for i, text in enumerate(pieces)}
    # Which two pieces make a third, the third with the best score first: that is SentencePiece's order of merging.
    merges = [
        (text[:cut], text[cut:])
        for text, _ in sorted(zip(pieces, scores), key=lambda piece: -piece[1])
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, dropout=None)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _tokenizer(name: SpmName, pieces: list[str], scores: list[float], special: list[AddedToken]) -> Tokenizer:
    tokenizer = bpe_of_pieces(pieces, scores)
    if name == "phi3":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), tokenizer.normalizer])
    if name == "gemma2":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    tokenizer.add_special_tokens(special)
    return tokenizer


def _write_settings(name: SpmName, folder: Path, special: list[AddedToken]) -> None:
    ids = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, "clean_up_tokenization_spaces": False,
        "bos_token": "<s>", "unk_token": "<unk>", "add_bos_token": name == "gemma2", "add_eos_token": False,
        "eos_token": "<end_of_turn>" if name == "gemma2" else "<|endoftext|>",
        "pad_token": "</s>" if name == "gemma2" else "<|endoftext|>",
    }  # fmt: skip
    settings["added_tokens_decoder"] = {
        str(ids.token_to_id(t.content)): {
            "content": t.content, "special": True, "normalized": False, "lstrip": False, "rstrip": t.rstrip,
            "single_word": False,
        }
        for t in special
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
