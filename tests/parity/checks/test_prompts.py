"""Prompts: the same bytes from the HF tokenizer and from a GGUF's template, and every difference is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.small_models import TREE, put_tokenizer
from toolkit.models.chat_template import render_trained
from toolkit.parity.checks.prompts import conversations, prompts_check, render


def test_a_gguf_template_renders_as_the_tokenizer_does(tmp_path: Path) -> None:
    for name in ("smollm2", "qwen2"):
        put_tokenizer(tmp_path / name, name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        template = (tmp_path / name / "chat_template.jinja").read_text()
        # What `convert` puts before a template so that Ollama does not take it for another.
        protected = "{#- " + "protected " * 12 + "-#}" + template
        for _, messages in conversations("Be kind."):
            wanted = render(tokenizer, messages, "")
            assert wanted is not None
            assert render_trained(protected, messages, "", tokenizer.eos_token) == wanted


def test_every_real_template_renders_or_refuses() -> None:
    rendered = 0
    for path in sorted((TREE / "models" / "templates").glob("*.jinja")):
        texts = [render_trained(path.read_text(), messages, "<s>", "</s>") for _, messages in conversations("Be kind.")]
        rendered += any(texts)
    assert rendered >= 20


def test_conversations_are_what_the_certificate_promises() -> None:
    found = dict(conversations(""))
    assert len(found) >= 12
    assert any("党参" in m["content"] for m in found["Chinese"])
    assert found["empty turn"][-1]["content"] == ""
    assert found["leading and trailing spaces"][-1]["content"].startswith("  ")
    assert "\u200d" in found["emoji"][-1]["content"]


def test_the_first_difference_is_named() -> None:
    expected = [("golden 1", "user\nHello\nassistant\n"), ("refused", None), ("golden 2", "same")]
    check = prompts_check(expected, ["user\nHello\nassistant", "something", "same"])
    assert check.verdict == "fail"
    assert check.message.startswith("2 of 3 prompts differ; first 'golden 1', at character 20")
    assert "refuses" in check.details["different"][1]["first_difference"]
    assert prompts_check(expected, [text for _, text in expected]).verdict == "pass"


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__ }}", "{% if %}", "{{ messages[9].content.x.y }}"])
def test_a_hostile_or_broken_template_is_refused_not_run(template: str) -> None:
    assert not render_trained(template, [{"role": "user", "content": "x"}], "", "")
