"""The embedded base that sees: true tokens, true processor, always the same, and a whole model as far as anybody can tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.errors import UsageError
from toolkit.models import small_vision
from toolkit.models.bases import check_base, resolve_base
from toolkit.models.convertible import check_converts_base
from toolkit.models.pictures import rules_of
from toolkit.models.qwen2_tokenizer import IMAGE, OF_VISION
from toolkit.models.tokenizer import load_tokenizer

BASE = "embedded:qwen2.5-vl-small"


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(resolve_base(BASE).folder)


def test_tokens_have_the_numbers_of_the_published_models(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [151643, 151644, 151645]
    assert tokenizer.convert_tokens_to_ids(list(OF_VISION)) == list(range(151_646, 151_657))
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == IMAGE == 151_655
    assert tokenizer("Hello, world", add_special_tokens=False)["input_ids"] == [9707, 11, 1879]


def test_the_template_writes_texts_and_pictures(folder: Path) -> None:
    turn = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image"}]}
    text = load_tokenizer(folder).apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is it?<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    )


def test_its_pictures_follow_the_servers_rules(folder: Path) -> None:
    rules = rules_of(folder)
    assert rules is not None
    assert (rules.kind, rules.patch, rules.min_tokens, rules.image_token_id) == ("dynamic", 28, 1024, IMAGE)


def test_it_begins_always_the_same_with_random_norms_and_biases() -> None:
    once, again = small_vision.fresh_model(), small_vision.fresh_model()
    for (name, first), second in zip(once.named_parameters(), again.parameters()):
        assert torch.equal(first, second), name
        assert first.std().item() > 0.01, name
    assert 4e6 > sum(p.numel() for n, p in once.named_parameters() if "embed_tokens" not in n) > 2e6


def test_it_is_named_and_checked_as_the_other_one_is() -> None:
    check_base(BASE)
    check_converts_base(BASE)
    with pytest.raises(UsageError, match=r"did you mean embedded:qwen2\.5-vl-small"):
        check_base("embedded:qwen2.5-vl")
