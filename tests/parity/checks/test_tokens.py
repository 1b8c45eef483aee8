"""Tokens: a right vocabulary agrees on every text, a wrong one is found."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.small_models import TREE, put_tokenizer
from toolkit.errors import DataError
from toolkit.models.embedded import find_gguf
from toolkit.parity.candidate import Candidate
from toolkit.parity.checks.tokens import encode, random_texts, recorded_tokens_check, tokens_check


def test_random_texts_are_repeatable_and_mixed() -> None:
    texts = random_texts(special=["<|im_end|>"])
    assert len(texts) == 2000
    assert texts == random_texts(special=["<|im_end|>"])
    assert texts != random_texts(special=["<|im_end|>"], seed=1)
    joined = "".join(texts)
    for first, last in ("az", "АЯ", "一龥", "가힣", "09"):
        assert any(first <= c <= last for c in joined)
    assert sum("<|im_end|>" in t for t in texts) > 100
    assert all(unicodedata.is_normalized("NFC", t) for t in texts)


def test_the_embedded_tokenizer_agrees_with_its_gguf(tmp_path: Path) -> None:
    put_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    recorded = [(text, encode(tokenizer, text)) for text in ("<|im_start|>user\nHello 世界<|im_end|>\n", "x")]
    with Candidate(find_gguf(), vocab_only=True) as candidate:
        check = tokens_check(candidate, tokenizer, recorded, 49_152)
        assert check.verdict == "pass", check.message
        assert tokens_check(candidate, tokenizer, [("x", [1, 2])], 49_152).verdict == "fail"
        other = tokens_check(candidate, tokenizer, recorded, 50_000)
    assert other.verdict == "fail"
    assert "49152 tokens, the tuned model's 50000" in other.message
    assert recorded_tokens_check(tokenizer, tokenizer, recorded, [2]).verdict == "pass"
    assert recorded_tokens_check(tokenizer, tokenizer, [("x", [0])], [2]).verdict == "fail"


def test_another_familys_vocabulary_fails(tmp_path: Path) -> None:
    put_tokenizer(tmp_path, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    with Candidate(TREE / "models" / "ggml-vocab-llama-bpe.gguf", vocab_only=True) as candidate:
        check = tokens_check(candidate, tokenizer, [], 151_936)
    assert check.verdict == "fail"
    assert len(check.details["different"]) == 5


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(DataError, match=r"x\.gguf cannot be loaded by llama\.cpp"):
        Candidate(file)
    with pytest.raises(DataError, match="is missing"):
        Candidate(tmp_path / "none.gguf")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(find_gguf().read_bytes()[:5_000_000])
    with pytest.raises(DataError, match="cut"):
        Candidate(cut)
