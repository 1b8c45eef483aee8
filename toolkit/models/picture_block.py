"""A picture's place in a prompt: what a training template writes there, and what the servers show there.

The servers show a marker where the picture's tokens go: llama-server one with a random part, its own (tools/server/
server-common.cpp, get_media_marker) or Ollama's (llm/llama_server.go), and Ollama's own rendering `[img-0]` (server/prompt.go,
imageTaggedMessages). llama.cpp then writes what stands around the tokens itself (`<|vision_start|>` … of Qwen2.5-VL), so the
whole block of the template is what a marker stands for.
"""

from __future__ import annotations

import re
from typing import Any

from toolkit.models.chat_template import render_trained

_MARKER = re.compile(r"<__(?:ollama_)?media(?:_\w+)?__>|\[img-\d+\]")
_STAND_IN = "\u2603"  # a text that no template writes by itself


def picture_block(template: str, bos: str, eos: str) -> str | None:
    """What a training template writes for one picture; None: it writes none."""

    def rendered(part: dict[str, Any]) -> str | None:
        return render_trained(template, [{"role": "user", "content": [part]}], bos, eos)

    text, picture = rendered({"type": "text", "text": _STAND_IN}), rendered({"type": "image"})
    before, found, after = (text or "").partition(_STAND_IN)
    if picture is None or not found or not (picture.startswith(before) and picture.endswith(after)):
        return None
    return picture[len(before) : len(picture) - len(after)] or None


def block_of(tokenizer: Any) -> str | None:
    """The same, of the template that a tokenizer brings."""
    return picture_block(str(tokenizer.get_chat_template()), tokenizer.bos_token or "", tokenizer.eos_token or "")


def with_pictures(rendered: str, block: str) -> str:
    """A rendered prompt with the template's block in the place of each marker."""
    return _MARKER.sub(lambda _: block, rendered)
