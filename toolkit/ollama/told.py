"""An answer as the model writes it, and as an app is given it: text, thought and calls apart, at each address."""

from __future__ import annotations

from typing import Any, NamedTuple

from toolkit.ollama.asked import Endpoint, known_to_openai
from toolkit.ollama.client import Client


class Raw(NamedTuple):
    """What the model writes after a prompt, its marks included."""

    text: str
    tokens: int
    """Of the prompt."""
    whole: bool
    """Whether it ended there by itself."""


class Told(NamedTuple):
    """What an address gives; where it gives an error, its words."""

    content: str
    thinking: str
    calls: list[dict[str, Any]]
    error: str = ""
    tokens: int = 0
    """Of the prompt."""


def raw_text(client: Client, model: str, prompt: str, bos: str, options: dict[str, Any], limit: int) -> Raw:
    """Have the model go on after a prompt as it is, past the server's template.

    Args:
        bos: text of the token that the tokenizer puts first by itself; empty: none.
        limit: tokens of the answer at most.
    """
    text = prompt.removeprefix(bos) if bos else prompt
    answer = client.generate(model, text, raw=True, options={**options, "num_predict": limit})
    whole = answer.get("done_reason") == "stop"
    return Raw(str(answer.get("response") or ""), int(answer.get("prompt_eval_count", 0)), whole)


def told_at(
    client: Client, model: str, endpoint: Endpoint, request: dict[str, Any], options: dict[str, Any], limit: int
) -> Told:
    """Ask as an app does.

    Args:
        request: of `request_fields`.
        limit: tokens of the answer at most.

    Raises:
        ExternalToolError: the server answers with an error.
    """
    fields = dict(request)
    if endpoint == "/v1/chat/completions":
        answer = client.openai(model, fields.pop("messages"), **known_to_openai(options), max_tokens=limit, **fields)
        message, tokens = answer["choices"][0]["message"], answer["usage"]["prompt_tokens"]
    else:
        fields["options"] = {**options, "num_predict": limit}
        if endpoint == "/api/chat":
            answer = client.chat(model, fields.pop("messages"), **fields)
            message = answer["message"]
        else:
            answer = client.generate(model, fields.pop("prompt"), **fields)
            message = {"content": answer.get("response"), "thinking": answer.get("thinking")}
        tokens = answer.get("prompt_eval_count", 0)
    thinking = message.get("thinking") or message.get("reasoning")
    calls = list(message.get("tool_calls") or [])
    return Told(str(message.get("content") or ""), str(thinking or ""), calls, tokens=int(tokens))
