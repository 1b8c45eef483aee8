"""Thoughts in rows and in templates: nothing is lost, nothing is doubled, and no family is known by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ollama.tiny import TEMPLATES, template_text
from toolkit.errors import DataError
from toolkit.models.chat_template import Messages, render_whole
from toolkit.models.thinking import (
    Marks,
    Parts,
    Render,
    as_sent_back,
    in_text,
    marks_of,
    never_ends,
    of_message,
    written,
)

QUESTION: Messages = [{"role": "user", "content": "感冒了怎么办？"}]
THOUGHT, CONTENT = "用户问感冒。\n先想一想：休息，喝水。", "多喝水，好好休息。🙂"
SAID: list[dict[str, Any]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]


def rendering(template: str, fields: dict[str, Any]) -> Render:
    """A template as a function."""

    def render(messages: Messages, opens_answer: bool) -> str | None:
        return render_whole(template, messages, "<s>", "</s>", opens_answer=opens_answer, **fields)

    return render


def learnt(name: str, answer: dict[str, Any], **fields: Any) -> tuple[str, str]:
    """The prompt's end, and what is learnt after it."""
    template = template_text(name)
    render = rendering(template, fields)
    prompt = render(QUESTION, True)
    assert prompt is not None
    answer = {"role": "assistant", **answer}
    return prompt.rpartition(QUESTION[0]["content"])[2], written(
        render, marks_of(template, fields), QUESTION, answer
    ).text


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
@pytest.mark.parametrize("fields", SAID, ids=["nothing said", "thinking", "no thinking"])
def test_every_template_learns_thought_and_content_whole_after_its_own_prompt(
    name: str, fields: dict[str, Any]
) -> None:
    template = template_text(name)
    render = rendering(template, fields)
    prompt, marks = render(QUESTION, True), marks_of(template, fields)
    if prompt is None:
        pytest.skip("the template refuses a plain question")
    forms: list[tuple[str, dict[str, Any]]] = [
        (THOUGHT, {"content": CONTENT, "reasoning_content": THOUGHT}),
        (THOUGHT, {"content": CONTENT, "thinking": THOUGHT}),
        (THOUGHT, {"content": f"<think>\n{THOUGHT}\n</think>\n\n{CONTENT}"}),
        (THOUGHT, {"content": f"{THOUGHT}</think>{CONTENT}"}),
        ("", {"content": CONTENT}),
    ]
    for thought, form in forms:
        try:
            text = written(render, marks, QUESTION, {"role": "assistant", **form}).text
        except DataError as error:
            tail = prompt.rpartition(QUESTION[0]["content"])[2]
            closed = marks is not None and marks.closed_by(tail)
            assert closed or name.startswith("CohereForAI-c4ai-command-r7b") or "rwkv" in name, error.message
            continue
        assert text.count(CONTENT) == 1 and text.count(thought or CONTENT) == 1
        assert text.index(thought or CONTENT) <= text.index(CONTENT)
        if marks is not None:
            found = marks.split(prompt, text)
            assert found.thought == thought and found.content.startswith(CONTENT)
            assert (prompt + text).count(marks.opens.strip()) <= prompt.count(marks.opens.strip()) + 1


def test_what_known_templates_learn() -> None:
    beside = {"content": "B", "reasoning_content": "A"}
    assert learnt("Qwen-Qwen3-0.6B", beside)[1] == "<think>\nA\n</think>\n\nB<|im_end|>\n"
    assert learnt("Qwen-Qwen3-0.6B", {"content": "B"})[1] == "<think>\n\n</think>\n\nB<|im_end|>\n"
    assert learnt("Qwen-Qwen3-0.6B", {"content": "B"}, enable_thinking=False) == (
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "B<|im_end|>\n",
    )  # fmt: skip
    # The prompt opens the thought: the answer begins inside it.
    assert learnt("Qwen3.5-4B", beside)[1] == "A\n</think>\n\nB<|im_end|>\n"
    assert learnt("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", beside) == (
        "<｜Assistant｜><think>\n", "A\n</think>\n\nB<｜end▁of▁sentence｜>",
    )  # fmt: skip
    assert (
        learnt("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", {"content": "B"})[1]
        == "\n</think>\n\nB<｜end▁of▁sentence｜>"
    )
    # No field is known: out of the text.
    assert learnt("HuggingFaceTB-SmolLM3-3B", beside)[1] == "<think>\nA\n</think>\n\nB<|im_end|>\n"
    assert learnt("openai-gpt-oss-120b", beside)[1] == (
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>"
    )
    # No thoughts are known at all: as most models write them, or as the row has it.
    assert learnt("meta-llama-Llama-3.2-3B-Instruct", beside)[1] == "<think>\nA\n</think>\n\nB<|eot_id|>"
    assert (
        learnt("meta-llama-Llama-3.2-3B-Instruct", {"content": "<think>A</think>B"})[1] == "<think>A</think>B<|eot_id|>"
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Qwen-Qwen3-0.6B", {"enable_thinking": False}),
        ("Qwen-QwQ-32B", {}),
        ("HuggingFaceTB-SmolLM3-3B", {"enable_thinking": False}),
    ],
)
def test_a_thought_after_a_prompt_that_has_closed_it_is_refused(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="has closed it before the answer begins") as found:
        learnt(name, {"content": "B", "thinking": "A"}, **fields)
    assert "train.chat_template_kwargs" in found.value.hint
    assert learnt(name, {"content": "B"}, **fields)[1].startswith("B")


def test_where_a_thought_is_and_where_none_is() -> None:
    assert in_text("<think>\nA\n</think>\n\nB") == Parts("A", "B")
    assert in_text("A\n</think>B") == Parts("A", "B")  # the prompt had opened it
    assert in_text("<think></think>B") == Parts("", "B")
    assert in_text("B") is None and in_text("Write <think> before and </think> after.") is None
    assert in_text("<think>A</think>B<think>C</think>D") == Parts("A", "B<think>C</think>D")
    assert never_ends(" <think>A") and not never_ends("<think>A</think>") and not never_ends("A <think>")
    assert of_message({"content": "B", "thinking": " A "}) == Parts("A", "B")
    assert of_message({"content": "B", "reasoning_content": None}) == Parts("", "B")


def test_no_app_sends_a_thought_back_that_it_was_shown_apart() -> None:
    turns = [
        *QUESTION,
        {"role": "assistant", "content": "<think>A</think>B"},
        {"role": "assistant", "content": "D", "thinking": "C"},
    ]
    knows = marks_of(template_text("Qwen-Qwen3-0.6B"))
    assert [turn["content"] for turn in as_sent_back(turns, knows)[1:]] == ["B", "D"]
    assert [turn["content"] for turn in as_sent_back(turns, None)[1:]] == [
        "<think>A</think>B",
        "<think>\nC\n</think>\n\nD",
    ]
    assert all(set(turn) == {"role", "content"} for turn in as_sent_back(turns, knows))


def test_an_answer_that_was_cut_within_its_thought_is_all_thought() -> None:
    marks = Marks("<think>\n", "\n</think>\n\n", "<think>\n\n</think>\n\n")
    assert marks.split("assistant\n", "<think>\nOne, two") == Parts("One, two", "")
    assert marks.split("assistant\n<think>\n", "One, two") == Parts("One, two", "")
    assert marks.split("assistant\n<think>\n\n</think>\n\n", "One, two") == Parts("", "One, two")
    assert marks.split("assistant\n", "<think>\n\n</think>\n\nOne") == Parts("", "One")
