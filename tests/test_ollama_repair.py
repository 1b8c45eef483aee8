"""Mending a GGUF's chat template: nothing else changes, the text stays that of training, and a server proves it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Server
from tests.ollama.served_templates import expected_of
from tests.ollama.tiny import TEMPLATES, special_texts, template_text, tiny_gguf
from toolkit.chat_template import as_trained, render_trained
from toolkit.errors import DataError, ParityError
from toolkit.export.convert import PROTECTION
from toolkit.gguf_file import read_gguf
from toolkit.ollama.conversations import differing, expected_texts, further_conversations
from toolkit.ollama.repair import mended_template, repaired, rewrite_template

LLAMA31 = "meta-llama-Llama-3.1-8B-Instruct"


def small(path: Path, template: str | None, alignment: int = 32) -> Path:
    """A file with two tensors, and metadata before and after the template."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_name("a name")
    if template is not None:
        writer.add_chat_template(template)
    writer.add_token_list(["a", "tokenizer.chat_template", "中"])
    writer.add_tensor("first.weight", np.arange(7, dtype=np.float32))
    writer.add_tensor("second.weight", np.zeros((3, 5), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=st.text(max_size=90), new=st.text(max_size=90), alignment=st.sampled_from([8, 32, 64]))
def test_only_the_template_changes(old: str, new: str, alignment: int, tmp_path: Path) -> None:
    before = small(tmp_path / "before.gguf", old, alignment)
    if not old:
        return  # gguf-py leaves an empty text out
    after = rewrite_template(before, tmp_path / "after.gguf", new)
    first, second = read_gguf(before), read_gguf(after)
    assert second.metadata == {**first.metadata, "tokenizer.chat_template": new}
    assert second.tensors == first.tensors
    assert before.read_bytes()[first.data_begin :] == after.read_bytes()[second.data_begin :]
    assert [t.data.tolist() for t in gguf.GGUFReader(after).tensors] == [
        t.data.tolist() for t in gguf.GGUFReader(before).tensors
    ]
    assert rewrite_template(after, tmp_path / "back.gguf", old).read_bytes() == before.read_bytes()


def test_a_file_without_a_template_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no chat template to replace"):
        rewrite_template(small(tmp_path / "none.gguf", None), tmp_path / "out.gguf", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.gguf"]


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
    before, after = (expected_texts(conversations, t, "<s>", "</s>") for t in (template, mended_template(template)))
    kept = "enable_thinking_as_trained" in mended_template(template)
    assert [a.text for a in after if a.conversation.think is None or not kept] == [
        b.text for b in before if b.conversation.think is None or not kept
    ]
    assert mended_template(template).startswith(PROTECTION)


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
    found = repaired(ollama_server.client, "mend", path, tmp_path / "mended.gguf", expected, bos)
    assert (found.gguf, differing(found.before)) == (path, [])
    assert not (tmp_path / "mended.gguf").exists()
    assert not [name for name in ollama_server.client.models() if name.startswith("mend")]


@pytest.mark.ollama
def test_what_cannot_be_mended_is_said_and_no_file_is_left(ollama_server: Server, tmp_path: Path) -> None:
    template = template_text("google-gemma-2-2b-it")
    path = tiny_gguf(tmp_path, "gemma", template, "gemma-4")
    # Trained with another template than the one in the file.
    other = template.replace("start_of_turn", "begin_of_turn")
    bos, eos, _ = special_texts("gemma-4")
    expected = expected_texts(further_conversations("", []), other, bos, eos)
    with pytest.raises(ParityError, match=r"gemma\.gguf cannot be mended: this difference is not one that"):
        repaired(ollama_server.client, "mend", path, tmp_path / "mended.gguf", expected, bos)
    assert not (tmp_path / "mended.gguf").exists()
    assert not [name for name in ollama_server.client.models() if name.startswith("mend")]
