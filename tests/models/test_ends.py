"""Where answers end: the template is asked, in the spellings of many families."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.small_models import TREE, put_tokenizer
from toolkit.models.ends import ends_of, turn_end, turn_marks

_SPECIAL = re.compile(r"<[|｜][^<>\s'\"]{1,40}[|｜]>|</s>|<s>|<end_of_turn>|<start_of_turn>|<turn\|>|<\|turn>")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    put_tokenizer(folder)
    return folder


def with_template(folder: Path, template: str) -> Any:
    """A tokenizer with a template, in which what looks like a special token is one, as in the template's own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"eos_token": "<END>", "additional_special_tokens": sorted(set(_SPECIAL.findall(template)))}
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("name", "end", "written"),
    [
        ("Qwen-Qwen3-0.6B", "<|im_end|>", True),
        ("HuggingFaceTB-SmolLM3-3B", "<|im_end|>", True),
        ("meta-llama-Llama-3.2-3B-Instruct", "<|eot_id|>", True),
        ("google-gemma-2-2b-it", "<end_of_turn>", True),
        ("google-gemma-4-31B-it", "<turn|>", True),
        ("microsoft-Phi-3.5-mini-instruct", "<|end|>", True),  # and the end of text after it
        ("mistralai-Mistral-Nemo-Instruct-2407", "<END>", True),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "<｜end▁of▁sentence｜>", True),
        ("ibm-granite-granite-4.0", "<|end_of_text|>", True),
        ("openai-gpt-oss-120b", "<|return|>", True),
        ("GLM-4.6", "<|user|>", False),  # nothing closes a turn but the next one
        ("Apertus-8B-Instruct", "<|assistant_end|>", False),  # the last answer is left open
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes(plain: Path, name: str, end: str, written: bool) -> None:
    tokenizer = with_template(plain, (TREE / "models" / "templates" / f"{name}.jinja").read_text(encoding="utf-8"))
    found = turn_end(tokenizer)
    assert found is not None
    assert (found.text, found.written) == (end, written)


ALPACA = (
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n{% elif m.role == 'assistant' %}"
    "### Response:\n{{ m.content }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
)


def test_where_no_token_closes_a_turn_the_end_of_text_does(plain: Path) -> None:
    tokenizer = with_template(plain, ALPACA)
    found = turn_end(tokenizer)
    assert found is not None
    assert (found.text, found.written) == ("<END>", False)
    assert turn_marks(tokenizer) == ["### Instruction:"]


def test_a_token_that_is_known_as_an_end_comes_first(plain: Path) -> None:
    # As Cohere's templates close the text, and then the turn.
    tokenizer = with_template(
        plain, "{% for m in messages %}<|role|>{{ m.role }}<|text|>{{ m.content }}<|text_end|><|turn_end|>{% endfor %}"
    )
    first, second = tokenizer.convert_tokens_to_ids(["<|text_end|>", "<|turn_end|>"])
    found, known = turn_end(tokenizer), turn_end(tokenizer, (second,))
    assert found is not None and known is not None
    assert (found.token, known.token) == (first, second)


def test_a_template_that_refuses_answers_has_no_end(plain: Path) -> None:
    refusing = with_template(
        plain,
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}x{% endfor %}",
    )
    assert turn_end(refusing) is None
    assert turn_marks(refusing) == []


def test_a_turns_end_that_nobody_lists_is_told(plain: Path, tmp_path: Path) -> None:
    put_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 0}), encoding="utf-8")
    for path in (tmp_path / "tokenizer_config.json", tmp_path / "special_tokens_map.json"):
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**settings, "eos_token": "<|endoftext|>"}), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = ends_of(tmp_path, tokenizer)
    assert (found.listed, found.tokens) == ([0], [0, 2])
    assert "closes a turn with '<|im_end|>' (token 2)" in found.told()
    # A generation config that lists it, alone or among others, says all that there is to say.
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}), encoding="utf-8")
    assert ends_of(tmp_path, tokenizer).told() == ""
    assert ends_of(tmp_path, tokenizer).tokens == [0, 2]
