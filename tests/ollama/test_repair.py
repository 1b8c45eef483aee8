"""Mending a GGUF's chat template: nothing else changes, the text stays that of training, and a server proves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Server
from tests.ollama.served_templates import expected_of
from tests.ollama.tiny import TEMPLATES, template_text, tiny_gguf
from toolkit.errors import ParityError
from toolkit.export.convert import PROTECTION
from toolkit.models.chat_template import as_trained, render_trained
from toolkit.models.gguf_file import read_gguf
from toolkit.models.gguf_metadata import copy_with_texts
from toolkit.ollama.conversations import differing, expected_texts, further_conversations
from toolkit.ollama.repair import mended_template, repaired

LLAMA31 = "meta-llama-Llama-3.1-8B-Instruct"
TREATED_BY_NAME = "StepFun3.5-Flash"
TEMPLATE_KEY = "tokenizer.chat_template"


def test_names_that_only_llama_cpp_sets_are_renamed_in_tags_and_nowhere_else() -> None:
    assert as_trained("date_string {{ date_string }}") == "date_string {{ date_string_as_trained }}"
    assert as_trained("{% if date_string is defined %}{{ 'date_string' }}{% endif %}") == (
        "{% if date_string_as_trained is defined %}{{ 'date_string' }}{% endif %}"
    )
    for same in (
        "{{ m.date_string }}",
        "{{ my_date_string }}",
        "no tag: datetime",
        "{{ datetime",
        "{% bad datetime %}",
    ):
        assert as_trained(same) == same


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_a_mended_template_renders_every_conversation_as_before(name: str) -> None:
    template = template_text(name)
    conversations = further_conversations("Be kind.", ["<|im_end|>"])
    mended = mended_template(template)
    wanted = expected_texts(conversations, template, "<s>", "</s>", served=mended)
    assert [one.text for one in expected_texts(conversations, mended, "<s>", "</s>")] == [one.text for one in wanted]
    assert mended.startswith(PROTECTION)


def test_the_date_of_llama_31_is_that_of_training_and_not_todays() -> None:
    template, messages = template_text(LLAMA31), [{"role": "user", "content": "hi"}]
    trained = render_trained(template, messages, "", "")
    # llama.cpp passes today's date under this name.
    assert render_trained(template, messages, "", "", date_string="22 Nov 2026") != trained
    assert render_trained(mended_template(template), messages, "", "", date_string="22 Nov 2026") == trained


def test_saying_nothing_about_thoughts_means_what_it_meant_in_training() -> None:
    messages = [{"role": "user", "content": "hi"}]
    closed = template_text("Qwen-QwQ-32B")  # without a word about it, it closes the thought at once
    trained = render_trained(closed, messages, "", "")
    assert render_trained(closed, messages, "", "", enable_thinking=True) != trained
    assert render_trained(mended_template(closed), messages, "", "", enable_thinking=True) == trained
    opened = template_text("Qwen-Qwen3-0.6B")  # here nothing means yes, as llama.cpp has it: `think` stays in use
    assert as_trained(opened) == opened


@pytest.mark.ollama
def test_what_is_served_as_trained_is_not_touched(ollama_server: Server, tmp_path: Path) -> None:
    template = template_text("Qwen-Qwen2.5-7B-Instruct")
    path = tiny_gguf(tmp_path, "qwen", template)
    expected, bos = expected_of(template)
    found = repaired(ollama_server.client, "mend", path, tmp_path / "mended.gguf", template, expected, bos)
    assert (found.gguf, differing(found.before)) == (path, [])
    assert not (tmp_path / "mended.gguf").exists()
    assert not [name for name in ollama_server.client.models() if name.startswith("mend")]


@pytest.mark.ollama
@pytest.mark.parametrize("in_file", ["another", "none"])
def test_a_swapped_or_lost_template_is_put_back(ollama_server: Server, tmp_path: Path, in_file: str) -> None:
    trained = template_text("Qwen-Qwen2.5-7B-Instruct")
    path = tiny_gguf(tmp_path, "swapped", trained.replace("<|im_start|>assistant", "<|im_start|>doctor"))
    if in_file == "none":
        path = copy_with_texts(path, tmp_path / "none.gguf", {TEMPLATE_KEY: None})
    expected, bos = expected_of(trained)
    found = repaired(ollama_server.client, "mend", path, tmp_path / "mended.gguf", trained, expected, bos)
    assert differing(found.before) and not differing(found.after)
    assert read_gguf(found.gguf).metadata[TEMPLATE_KEY] == mended_template(trained)


@pytest.mark.ollama
def test_what_cannot_be_mended_is_said_and_no_file_is_left(ollama_server: Server, tmp_path: Path) -> None:
    template = template_text(TREATED_BY_NAME)
    path = tiny_gguf(tmp_path, "trimmed", template)
    expected, bos = expected_of(template)
    with pytest.raises(ParityError, match=r"trimmed\.gguf cannot be mended: this difference is not one that"):
        repaired(ollama_server.client, "mend", path, tmp_path / "mended.gguf", template, expected, bos)
    assert not (tmp_path / "mended.gguf").exists()
    assert not [name for name in ollama_server.client.models() if name.startswith("mend")]
