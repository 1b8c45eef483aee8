"""Pictures on a real server: where it puts them in the prompt, at each address, against the training template."""

from __future__ import annotations

import pytest

from tests.conftest import Server
from tests.ollama.seeing import TEMPLATE, seeing_ggufs
from tests.ollama.served_templates import SYSTEM
from tests.ollama.tiny import template_text
from toolkit.models.picture_block import picture_block, with_pictures
from toolkit.ollama.asked import ENDPOINTS
from toolkit.ollama.conversations import (
    check_conversations,
    differing,
    expected_texts,
    further_conversations,
)

BLOCK = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.mark.ollama
def test_a_picture_stands_where_it_stood_in_training(ollama_server: Server) -> None:
    client = ollama_server.client
    model, projector = (client.upload(path) for path in seeing_ggufs())
    client.create("sees", {"files": {"model.gguf": model, "mmproj.gguf": projector}, "parameters": {"num_ctx": 2048}})
    try:
        assert "vision" in client.show("sees")["capabilities"]
        expected = expected_texts(further_conversations(SYSTEM, ["<|im_end|>"]), TEMPLATE, "", "<|im_end|>", sees=True)
        picture = next(one for one in expected if one.conversation.name == "image")
        assert picture.text == f"<|im_start|>user\nWhat is this?{BLOCK}<|im_end|>\n<|im_start|>assistant\n"
        outcomes = check_conversations(client, "sees", expected)
    finally:
        client.delete("sees")
    assert differing(outcomes) == []
    assert sum(outcome.result == "equal" for outcome in outcomes) >= 20
    found = {o.endpoint: o for o in outcomes if o.conversation == "image"}
    assert [found[endpoint].result for endpoint in ENDPOINTS] == ["equal", "equal", "differs for every model"]
    assert "makes each part of a turn a turn of its own" in found["/v1/chat/completions"].detail
    # Text conversations are as they are without a projector.
    assert sum(o.result == "equal" for o in outcomes if o.conversation == "several turns") == 2


@pytest.mark.ollama
def test_another_order_of_the_parts_is_seen(ollama_server: Server) -> None:
    client = ollama_server.client
    model, projector = (client.upload(path) for path in seeing_ggufs())
    client.create("sees", {"files": {"model.gguf": model, "mmproj.gguf": projector}})
    # Trained with every picture before the text of its turn, as a template may have it.
    first = TEMPLATE.replace("in message.content %}", "in message.content|sort(attribute='type') %}")
    try:
        expected = [
            one for one in expected_texts(further_conversations(SYSTEM, []), first, "", "<|im_end|>", sees=True)
            if one.conversation.name == "image"
        ]  # fmt: skip
        outcomes = check_conversations(client, "sees", expected)
    finally:
        client.delete("sees")
    assert [o.result for o in outcomes] == ["differs", "equal", "differs for every model"]
    assert "trained '<|vision_start|>" in outcomes[0].detail


def test_the_block_of_a_picture() -> None:
    assert picture_block(TEMPLATE, "", "") == BLOCK
    assert picture_block(template_text("google-gemma-2-2b-it"), "", "") is None
    assert picture_block("{{ messages[0].content }}", "", "") is None
    assert with_pictures("a<__media__>b<__media_x7Yz__><__ollama_media_e5fa__>c[img-0]", "*") == "a*b**c*"


def test_a_template_that_writes_no_picture_says_so() -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    found = {e.conversation.name: e for e in expected_texts(further_conversations("s", []), plain, "", "", sees=True)}
    assert found["image"].text is None
    assert found["image"].reason == "the training template writes no picture"
