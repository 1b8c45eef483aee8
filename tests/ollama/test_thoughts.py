"""Models that think, on a real server: every way of asking, every address; and what is blamed when a thought is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.ollama.tiny import special_texts, template_text, tiny_gguf, vocabulary_of
from toolkit.errors import ParityError
from toolkit.models.chat_template import render_trained
from toolkit.models.thinking import Marks, Parts, marks_of
from toolkit.ollama.conversations import check_conversations, differing, expected_texts, further_conversations
from toolkit.ollama.predict import abilities
from toolkit.ollama.repair import mended_template
from toolkit.ollama.served import GREEDY
from toolkit.ollama.thoughts import THINKS, check_ways, fits, keeps_to_training, told_by, ways_of, who_sees_what
from toolkit.ollama.told import Told

QWEN3 = Marks("<think>\n", "\n</think>\n\n", "<think>\n\n</think>\n\n")
PROMPT = "<|im_start|>assistant\n"
QUESTION = [{"role": "user", "content": "What helps against a cold?"}]
SERVED = [
    ("Qwen-Qwen3-0.6B", {}),
    ("Qwen-Qwen3-0.6B", {"enable_thinking": False}),
    ("Qwen3.5-4B", {"enable_thinking": False}),
    ("HuggingFaceTB-SmolLM3-3B", {"enable_thinking": False}),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", {}),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", {"enable_thinking": True}),
    ("deepseek-ai-DeepSeek-V3.1", {"thinking": True}),
    ("Qwen-QwQ-32B", {}),
    ("GLM-4.6", {"enable_thinking": False}),
    ("LFM2.5-8B-A1B", {}),
]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("<think>\nHm, 一二。\n</think>\n\nRest.", Parts("Hm, 一二。", "Rest.")),
        ("<think>\nHm\n</think>\n\nRest.", Parts("Hm\n", "\nRest.")),  # as some parsers leave the white space
        ("<think>\n\n</think>\n\nRest.", Parts("", "Rest.")),
        ("Rest.", Parts("", "Rest.")),
        ("<think>\nHm, so", Parts("Hm, so", "")),  # cut by num_predict
        ("<think>\nHm, so\n</th", Parts("Hm, so", "")),
        ("<think>\nHm\n</think>\n\nRest.", Parts("", "<think>\nHm\n</think>\n\nRest.")),  # /api/generate
        ("<think>\n\n</think>\n\n</think>\n\nRest.", Parts("", "</think>\n\nRest.")),
        ("<think>\nHm\n</think>\n\nUse </think> or <think>.", Parts("Hm", "Use </think> or <think>.")),
    ],
)
def test_an_answer_is_whole(raw: str, told: Parts) -> None:
    assert fits(QWEN3, PROMPT, raw, Told(told.content, told.thought, []))


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("<think>\nHm, 一二。\n</think>\n\nRest.", Parts("", "Rest.")),  # the thought is lost
        ("<think>\nHm\n</think>\n\nRest.", Parts("Hm", "")),  # the answer is lost
        ("<think>\nHm\n</think>\n\nRest.", Parts("Hm\n</think>\n\nRest.", "")),  # all of it is taken for a thought
        ("<think>\nHm\n</think>\n\nRest.", Parts("Rest.", "Hm")),
        ("<think>\nHm\n</think>\n\nRest.", Parts("", "HmRest.")),  # the thought is shown as an answer
        ("Rest.", Parts("Rest.", "")),
        ("Rest and drink.", Parts("", "Rest and")),
        ("<think>\nHm, so it", Parts("Hm, so", "")),
    ],
)
def test_an_answer_is_not_whole(raw: str, told: Parts) -> None:
    assert not fits(QWEN3, PROMPT, raw, Told(told.content, told.thought, []))


def test_who_sees_what_is_said_where_it_differs() -> None:
    plain, thinking = template_text("Qwen-Qwen2.5-7B-Instruct"), template_text("Qwen-Qwen3-0.6B")
    assert who_sees_what(plain, {}) == []
    first, second = who_sees_what(thinking, {})
    assert first.startswith('Apps that say nothing or say think: true or say think: "high"') and "was trained." in first
    assert "think: false get a prompt that was not trained" in second and r"<think>\n\n</think>\n\n" in second
    off = {"enable_thinking": False}
    first, second = who_sees_what(mended_template(thinking, off), off)
    assert (
        first.startswith("Apps that say nothing or say think: true or say think: false")
        and '"enable_thinking": false' in first
    )
    assert 'think: "high" (or another level) get a prompt that was not trained' in second


@pytest.mark.ollama
@pytest.mark.parametrize(("name", "fields"), SERVED, ids=str)
def test_a_published_template_serves_every_way_of_asking(
    ollama_server: Server, tmp_path: Path, name: str, fields: dict[str, Any]
) -> None:
    client, template, vocabulary = ollama_server.client, template_text(name), vocabulary_of(name)
    bos, eos, by_itself = special_texts(vocabulary)
    served = mended_template(template, fields)
    expected = expected_texts(further_conversations("Be kind.", []), template, bos, eos, served=served, fields=fields)
    path = tiny_gguf(tmp_path, "thinks", served, vocabulary)
    client.create(
        "thinks", {"files": {"m.gguf": client.upload(path)}, "parameters": {"temperature": 0, "num_ctx": 2048}}
    )
    try:
        assert abilities(template) <= set(client.show("thinks")["capabilities"])
        outcomes = check_conversations(client, "thinks", expected, bos if by_itself else "")
        assert differing(outcomes, client.version()) == []
        marks = marks_of(template, fields)
        assert marks is not None
        ways = ways_of("q", QUESTION, template, fields, keeps_to_training(served), bos, eos, [])
        assert [way.think for way in ways] == list(THINKS)
        shown = check_ways(client, "thinks", ways, marks, bos if by_itself else "", GREEDY, 12)
        assert shown.answers == 11  # /v1 has no plain yes
    finally:
        client.delete("thinks")


@pytest.mark.ollama
def test_nothing_said_means_yes_to_the_server_and_a_level_is_told_apart(ollama_server: Server, tmp_path: Path) -> None:
    """What the mending rests on: Ollama fills in `think: true` where nothing is said, and sends a level besides."""
    client = ollama_server.client
    shows = "{{ '<think></think>' if false }}{{ enable_thinking }} {{ reasoning_effort is defined }} {{ messages[0].content }}"
    path = tiny_gguf(tmp_path, "says", shows)
    client.create("says", {"files": {"m.gguf": client.upload(path)}})
    try:
        said = {
            think: client.rendered("says", QUESTION, **({} if think is None else {"think": think})) for think in THINKS
        }
    finally:
        client.delete("says")
    words = {None: "True False", True: "True False", False: "False False", "high": "True True"}
    assert said == {think: f"{word} {QUESTION[0]['content']}" for think, word in words.items()}


@pytest.mark.ollama
def test_an_unmended_default_is_blamed(ollama_server: Server, tmp_path: Path) -> None:
    client, template, fields = ollama_server.client, template_text("Qwen-Qwen3-0.6B"), {"enable_thinking": False}
    bos, eos, _ = special_texts()
    path = tiny_gguf(tmp_path, "plain", template)
    client.create("plain", {"files": {"m.gguf": client.upload(path)}, "parameters": {"num_ctx": 2048}})
    try:
        ways = ways_of("golden question 1", QUESTION, template, fields, False, bos, eos, [])
        marks = marks_of(template, fields)
        assert marks is not None
        assert ways[0].prompt == render_trained(template, QUESTION, bos, eos, **told_by(None, fields, False))
        with pytest.raises(ParityError, match=r"golden question 1, think unset, at /api/chat: from character \d+"):
            check_ways(client, "plain", ways, marks, "", GREEDY, 4)
        assert (
            check_ways(client, "plain", [ways[2]], marks, "", GREEDY, 4).answers == 3
        )  # asked for none, it is as trained
    finally:
        client.delete("plain")
