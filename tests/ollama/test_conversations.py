"""Conversations at the three addresses of a real server, byte for byte."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server
from tests.ollama.served_templates import SYSTEM
from tests.ollama.test_client import broken
from tests.ollama.tiny import special_texts, template_text, tiny_gguf
from tests.small_models import TREE
from toolkit.errors import ExternalToolError, UsageError
from toolkit.export.convert import protect_template
from toolkit.ollama.asked import ENDPOINTS, PICTURE, TOOLS, Conversation, answer, request_fields
from toolkit.ollama.conversations import (
    Outcome,
    check_conversations,
    differing,
    expected_texts,
    first_difference,
    further_conversations,
)
from toolkit.ollama.served import GREEDY
from toolkit.ollama.syntax import Message

QWEN3, QWEN25 = "Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct"
NEMO = "mistralai-Mistral-Nemo-Instruct-2407"
LOOPED = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


def named(outcomes: list[Outcome], name: str) -> dict[str, str]:
    """endpoint → result of one conversation."""
    return {o.endpoint: o.result for o in outcomes if o.conversation == name}


@pytest.mark.ollama
def test_every_conversation_is_equal_at_every_address_that_can_be_asked(ollama_server: Server, tmp_path: Path) -> None:
    client, template = ollama_server.client, template_text(QWEN3)
    gguf = tiny_gguf(tmp_path, "qwen3", template)
    bos, eos, by_itself = special_texts()
    expected = expected_texts(further_conversations(SYSTEM, [eos, "<|im_end|>"]), template, bos, eos)
    client.create("qwen3", {"files": {"m.gguf": client.upload(gguf)}})
    outcomes = check_conversations(client, "qwen3", expected, bos if by_itself else "")
    client.delete("qwen3")
    asked = {o.conversation for o in outcomes if o.result == "equal"}
    assert {
        "no system text", "system text", "several turns", "Chinese", "emoji", "joined emoji", "leading and trailing spaces",
        "empty turn", "code fence", "text that contains special tokens", "tools", "a tool's answer", "think", "no think",
    } <= asked  # fmt: skip
    assert len(asked) >= 12
    assert differing(outcomes) == []
    assert named(outcomes, "system text") == dict.fromkeys(ENDPOINTS, "equal")
    assert named(outcomes, "several turns")["/api/generate"] == "not applicable"
    # Nothing is left out: every conversation has an outcome at every address, and each that was not asked says why.
    assert len(outcomes) == len(expected) * len(ENDPOINTS)
    assert all(o.detail for o in outcomes if o.result != "equal")
    assert (
        next(o for o in outcomes if o.conversation == "image").detail
        == "the model has no projector: it sees no pictures"
    )


@pytest.mark.ollama
def test_what_a_template_ignores_is_asked_all_the_same(ollama_server: Server, tmp_path: Path) -> None:
    """Mistral's templates take nine letters and digits for a call's id, and know no thoughts; the loop knows no tools."""
    for template, vocabulary in ((template_text(NEMO), "llama-spm"), (LOOPED, "qwen2")):
        client, mended = ollama_server.client, protect_template(template)
        bos, eos, by_itself = special_texts(vocabulary)
        gguf = tiny_gguf(tmp_path, "ignores", mended, vocabulary)
        expected = expected_texts(further_conversations(SYSTEM, []), template, bos, eos)
        client.create("ignores", {"files": {"m.gguf": client.upload(gguf)}})
        outcomes = check_conversations(client, "ignores", expected, bos if by_itself else "")
        client.delete("ignores")
        assert differing(outcomes) == []
        assert named(outcomes, "no think") == dict.fromkeys(ENDPOINTS, "equal")
        assert named(outcomes, "a tool's answer") == {
            "/api/chat": "equal", "/api/generate": "not applicable", "/v1/chat/completions": "equal",
        }  # fmt: skip
        assert named(outcomes, "ends with the assistant") == {
            "/api/chat": "differs for every model", "/api/generate": "not applicable",
            "/v1/chat/completions": "differs for every model",
        }  # fmt: skip


@pytest.mark.ollama
def test_system_text_and_turns_of_the_model_come_where_each_address_puts_them(
    ollama_server: Server, tmp_path: Path
) -> None:
    client, turns = ollama_server.client, [Message("user", "Is it raining?"), Message("assistant", "Yes.")]
    gguf = tiny_gguf(tmp_path, "turns", protect_template(LOOPED))  # it is within 100 edits of a known one
    expected = expected_texts(further_conversations("Be kind.", []), LOOPED, "", "", "Be kind.", turns)
    stored = [{"role": turn.role, "content": turn.content} for turn in turns]
    client.create("turns", {"files": {"m.gguf": client.upload(gguf)}, "system": "Be kind.", "messages": stored})
    outcomes = check_conversations(client, "turns", expected)
    client.delete("turns")
    assert differing(outcomes) == []
    by_name = {one.conversation.name: one for one in expected}
    assert by_name["no system text"].text == (
        "[system]Be kind.[user]Is it raining?[assistant]Yes.[user]What helps against a cold?[assistant]"
    )
    assert by_name["system text"].text != by_name["system text"].elsewhere["/api/generate"]
    assert named(outcomes, "system text") == dict.fromkeys(ENDPOINTS, "equal")


@pytest.mark.ollama
def test_a_difference_is_named_with_its_place_and_refused(ollama_server: Server, tmp_path: Path) -> None:
    client, template = ollama_server.client, template_text(QWEN25)
    gguf = tiny_gguf(tmp_path, "other", template)
    changed = template.replace("You are Qwen", "You were Qwen")
    assert changed != template
    expected = expected_texts(further_conversations(SYSTEM, []), changed, "", "")
    client.create("other", {"files": {"m.gguf": client.upload(gguf)}})
    outcomes = check_conversations(client, "other", expected)
    client.delete("other")
    assert named(outcomes, "no system text") == dict.fromkeys(ENDPOINTS, "differs")
    assert named(outcomes, "system text") == dict.fromkeys(ENDPOINTS, "equal")
    assert all("trained 'were Qwen" in outcome.detail for outcome in differing(outcomes))


@pytest.mark.ollama
def test_the_three_addresses_answer_alike(ollama_server: Server, small_gguf: Path) -> None:
    client = ollama_server.client
    client.create("alike", {"files": {"m.gguf": client.upload(small_gguf)}, "parameters": {"repeat_penalty": 1.0}})
    question = [{"role": "user", "content": "Name two signs of a fever."}]
    found = {endpoint: answer(client, endpoint, "alike", question, GREEDY, 12) for endpoint in ENDPOINTS}
    client.delete("alike")
    first = found["/api/chat"]
    for endpoint, one in found.items():
        assert one["prompt_eval_count"] == first["prompt_eval_count"], endpoint
        assert one["done_reason"] == first["done_reason"]
        assert [e["token"] for e in one["logprobs"]] == [e["token"] for e in first["logprobs"]]
        assert all(len(e["top_logprobs"]) == 20 for e in one["logprobs"])
        assert [e["logprob"] for e in one["logprobs"]] == pytest.approx(
            [e["logprob"] for e in first["logprobs"]], abs=0.01
        )


def test_what_cannot_be_asked_says_why() -> None:
    template = LOOPED + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    found = {e.conversation.name: e for e in expected_texts(further_conversations("s", []), template, "", "")}
    assert found["no system text"].text is not None
    assert found["system text"].reason == "the training template refuses this conversation"
    assert found["tools, no system text"].reason == "the template ignores tools"
    assert found["think"].reason == "Ollama does not take it for a thinking model and refuses `think`"
    assert found["no think"].text == found["no system text"].text
    assert found["image"].reason == "the model has no projector: it sees no pictures"
    assert "goes on with a turn" in found["ends with the assistant"].always["/api/chat"]
    answered = found["a tool's answer"]
    assert (answered.conversation.tools, answered.text) == (
        None,
        "[user]What helps against a cold?[assistant][tool]an infection[assistant]",
    )
    silent = LOOPED + "{% if enable_thinking %}!{% endif %}"
    found = {e.conversation.name: e for e in expected_texts(further_conversations("s", []), silent, "", "")}
    assert found["think"].reason == "Ollama does not take it for a thinking model and refuses `think`"
    assert found["no think"].text is not None


def test_pictures_tools_and_thoughts_in_the_words_of_each_address() -> None:
    by_name = {one.name: one for one in further_conversations("s", ["<|im_end|>"])}
    picture = by_name["image"]
    chat, generate, openai = (request_fields(picture, endpoint) for endpoint in ENDPOINTS)
    assert isinstance(chat, dict) and isinstance(generate, dict) and isinstance(openai, dict)
    assert chat["messages"] == [{"role": "user", "content": "What is this?", "images": [PICTURE]}]
    assert generate == {"prompt": "What is this?", "images": [PICTURE]}
    assert openai["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert base64.b64decode(PICTURE).startswith(b"\x89PNG")
    tools = by_name["a tool's answer"]
    chat, openai = request_fields(tools, "/api/chat"), request_fields(tools, "/v1/chat/completions")
    assert isinstance(chat, dict) and isinstance(openai, dict)
    assert chat["tools"] == openai["tools"] == TOOLS
    assert chat["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"word": "cold"}
    assert json.loads(openai["messages"][1]["tool_calls"][0]["function"]["arguments"]) == {"word": "cold"}
    assert request_fields(tools, "/api/generate") == "/api/generate takes one question, no turns and no tools"
    assert request_fields(by_name["empty turn"], "/api/generate") == "/api/generate takes an empty text for none"
    assert request_fields(by_name["no think"], "/v1/chat/completions")["reasoning_effort"] == "none"  # type: ignore[call-overload,index]
    assert "only levels" in str(request_fields(by_name["think"], "/v1/chat/completions"))
    assert by_name["text that contains special tokens"].messages[0]["content"] == "Explain <|im_end|> please."


def test_first_difference_of_texts_of_which_one_ends_early() -> None:
    assert first_difference("abc", "ab") == "from character 3: trained 'c', served ''"


@pytest.mark.ollama
def test_a_model_that_is_not_there_is_said_with_those_that_are(ollama_server: Server, small_gguf: Path) -> None:
    client = ollama_server.client
    client.create("medicine", {"files": {"m.gguf": client.upload(small_gguf)}})
    for ask in (client.show, lambda name: client.rendered(name, [{"role": "user", "content": "x"}])):
        with pytest.raises(
            UsageError, match=r"Ollama does not know it while .* medicin: .*medicin.* not found"
        ) as caught:
            ask("medicin")
        assert "medicine:latest" in caught.value.hint and "did you mean medicine:latest?" in caught.value.hint
    client.delete("medicine")


def test_a_server_that_shows_no_prompts_is_told_with_its_version_and_what_to_do() -> None:
    answered: dict[str, Any] = {"message": {"content": "hi"}, "done": True}
    with (
        broken({"/api/chat": (200, answered)}) as (_, client),
        pytest.raises(ExternalToolError, match=r"the Ollama 0\.34\.1 at .* does not show the prompts .*: it answered with "
                      "done, message, where `_debug_info` was expected") as caught,
    ):  # fmt: skip
        check_conversation = Conversation("one", [{"role": "user", "content": "hi"}])
        client.rendered("m", check_conversation.messages)
    assert "Use 0.30.0 or newer" in caught.value.hint and "make ollama" in caught.value.hint


def test_where_ollama_writes_prompts_itself_functions_are_told_and_not_counted() -> None:
    template = (TREE / "models" / "templates" / "google-gemma-4-31B-it.jinja").read_text(encoding="utf-8")
    asked = further_conversations(SYSTEM, [])
    for architecture, told in (("gemma4", "Ollama writes the prompts of gemma4 itself"), ("llama", "")):
        expected = expected_texts(asked, template, "<bos>", "<eos>", architecture=architecture)
        of_tools = [one for one in expected if one.conversation.tools and one.text is not None]
        assert of_tools and all(one.always.get("/api/chat", "") == told for one in of_tools)
        assert not any(one.always for one in expected if one.conversation.name == "several turns")
