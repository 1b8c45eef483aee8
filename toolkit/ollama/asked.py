"""A conversation in the three forms that apps send it: `/api/chat`, `/api/generate`, `/v1/chat/completions`."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import DataError
from toolkit.ollama.client import Client
from toolkit.ollama.predict import COUNTS_WHAT_IT_KEPT, numbers

Messages = list[dict[str, Any]]
Endpoint = Literal["/api/chat", "/api/generate", "/v1/chat/completions"]
ENDPOINTS: tuple[Endpoint, ...] = ("/api/chat", "/api/generate", "/v1/chat/completions")

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look a word up.",
            # The order of these keys is the one that Ollama sends them in; another order is another prompt.
            "parameters": {
                "type": "object",
                "required": ["word"],
                "properties": {"word": {"type": "string", "description": "What to look up"}},
            },
        },
    }
]


@dataclass(frozen=True)
class Conversation:
    """What a user or an app may send."""

    name: str
    messages: Messages
    """As transformers' templates take them: content is text, or a list of parts when there is a picture, whose file is its
    `image`; without one it is `PICTURE`."""
    tools: list[dict[str, Any]] | None = None
    think: bool | str | None = None
    """None: not said. A text is a level ("high")."""


def request_fields(one: Conversation, endpoint: Endpoint) -> dict[str, Any] | str:
    """The fields of a request, or why it cannot be made."""
    if endpoint == "/api/generate":
        return _generate(one)
    fields: dict[str, Any] = {"tools": one.tools} if one.tools else {}
    if endpoint == "/api/chat":
        if one.think is not None:
            fields["think"] = one.think
        return {**fields, "messages": [_ollama(message) for message in one.messages]}
    if one.think is not None:
        if one.think is True:
            return "/v1 has no plain `think`, only levels"
        fields["reasoning_effort"] = one.think or "none"
    return {**fields, "messages": [_openai(message) for message in one.messages]}


def _generate(one: Conversation) -> dict[str, Any] | str:
    *before, asked = one.messages
    if one.tools or len(before) > 1 or (before and before[0]["role"] != "system"):
        return "/api/generate takes one question, no turns and no tools"
    if not words_of(asked["content"]) or (before and not before[0]["content"]):
        return "/api/generate takes an empty text for none"
    fields = _question(asked)
    fields |= {"system": before[0]["content"]} if before else {}
    return fields | ({} if one.think is None else {"think": one.think})


def _question(asked: dict[str, Any]) -> dict[str, Any]:
    turn = _ollama(asked)
    return {"prompt": turn["content"], **({"images": turn["images"]} if "images" in turn else {})}


def count_whole_prompts(client: Client, model: str) -> None:
    """Have the next answer count all tokens of its prompt: an old server has to read them anew for that."""
    if numbers(client.version()) < COUNTS_WHAT_IT_KEPT:
        client.unload(model)


def answer(
    client: Client, endpoint: Endpoint, model: str, messages: Messages, options: dict[str, Any], limit: int
) -> dict[str, Any]:
    """Ask for an answer with its log-probabilities; in the form of `/api/chat`, whichever address gave it.

    Args:
        messages: for `/api/generate`, one question.
        options: sampling, as Ollama names it; `/v1` takes the part that it knows.
    """
    count_whole_prompts(client, model)
    if endpoint == "/api/chat":
        fields = {"options": {**options, "num_predict": limit}, "logprobs": True, "top_logprobs": 20}
        return client.chat(model, [_ollama(m) if _sees(m) else m for m in messages], **fields)
    if endpoint == "/api/generate":
        fields = {"options": {**options, "num_predict": limit}, "logprobs": True, "top_logprobs": 20}
        question = _question(messages[-1])
        return client.generate(model, question.pop("prompt"), **question, **fields)
    sent = [_openai(m) if _sees(m) else m for m in messages]
    found = client.openai(model, sent, **known_to_openai(options), max_tokens=limit, logprobs=True, top_logprobs=20)
    (choice,) = found["choices"]
    return {
        "prompt_eval_count": found["usage"]["prompt_tokens"],
        "eval_count": found["usage"]["completion_tokens"],
        "logprobs": (choice.get("logprobs") or {}).get("content"),
        "done_reason": choice["finish_reason"],
    }


def known_to_openai(options: dict[str, Any]) -> dict[str, Any]:
    """The part of Ollama's options that `/v1` takes."""
    return {key: options[key] for key in ("temperature", "seed", "top_p", "frequency_penalty", "presence_penalty")}


def raw_answer(
    client: Client, model: str, prompt: str, options: dict[str, Any], limit: int, **pictures: Any
) -> dict[str, Any]:
    """The model's own text after a prompt, every token with its log-probability: no part of it is taken for a thought.

    Args:
        pictures: of the prompt, as `toolkit.ollama.pictures.Pictures.sent` gives them.
    """
    count_whole_prompts(client, model)
    fields = {"options": {**options, "num_predict": limit}, "logprobs": True, "top_logprobs": 20, **pictures}
    return client.generate(model, prompt, raw=True, **fields)


def has_picture(one: Conversation) -> bool:
    """Whether one of its turns holds a picture."""
    return any(map(_sees, one.messages))


def words_of(content: str | list[dict[str, Any]] | None) -> str:
    """What a turn says, without its pictures."""
    return "".join(part.get("text", "") for part in content) if isinstance(content, list) else content or ""


def _sees(message: dict[str, Any]) -> bool:
    return isinstance(message.get("content"), list)


def encoded(files: Sequence[Path]) -> list[str]:
    """Pictures as a request carries them; DataError where one is missing."""
    return [base64.b64encode(read_picture(file)).decode() for file in files]


def read_picture(file: Path) -> bytes:
    """The file as it is."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"the picture {file} cannot be read: {error.strerror}", "Run the golden stage again."
        ) from error


def _data(part: dict[str, Any]) -> str:
    return encoded([Path(part["image"])])[0] if "image" in part else PICTURE


def _ollama(message: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {key: message[key] for key in ("role", "content", "tool_call_id") if key in message}
    if isinstance(message["content"], list):
        made["content"] = words_of(message["content"])
        made["images"] = [_data(part) for part in message["content"] if part["type"] == "image"]
    if "tool_calls" in message:
        made["tool_calls"] = [
            {**({"id": call["id"]} if "id" in call else {}), "function": call["function"]}
            for call in message["tool_calls"]
        ]
    return made | ({"tool_name": message["name"]} if "name" in message else {})


def _openai(message: dict[str, Any]) -> dict[str, Any]:
    made = dict(message)
    if isinstance(message["content"], list):
        made["content"] = [_openai_part(part) for part in message["content"]]
    if "tool_calls" in message:
        made["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message["tool_calls"]
        ]
    return made


def _openai_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_data(part)}"}}


def _picture(side: int = 56) -> str:
    """A small PNG, base64: stripes, gray, 8 bits."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + bytes((x * 9) % 256 for x in range(side)) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode()


PICTURE = _picture()
