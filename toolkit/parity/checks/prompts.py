"""Is the prompt that the export would be given, byte for byte, the one that the model was trained on?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.models.chat_template import NOTHING_TOLD, REFUSALS, on_day
from toolkit.models.tools import Tools
from toolkit.parity.certificate import Check, lower_is_better

Messages = list[dict[str, Any]]


def conversations(system: str) -> list[tuple[str, Messages]]:
    """Conversations besides the goldens that a template may treat differently: (name, messages)."""

    def user(text: str) -> dict[str, str]:
        return {"role": "user", "content": text}

    def assistant(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    said = {"role": "system", "content": system or "You are a careful doctor. Answer in one sentence."}
    return [
        ("no system text", [user("What helps against a cold?")]),
        ("system text", [said, user("What helps against a cold?")]),
        ("several turns", [said, user("Hello"), assistant("Hello, how can I help?"), user("I slept badly.")]),
        ("several turns, no system text", [user("Hello"), assistant("Hello."), user("And now?")]),
        ("Chinese", [said, user("高血压患者能吃党参吗？"), assistant("可以。"), user("谢谢，还有呢？")]),
        ("emoji", [user("I feel 🤒🤧, what now? 👩‍⚕️👍🏽")]),
        ("leading and trailing spaces", [user("  two before, two after  ")]),
        ("line breaks", [user("\nfirst\n\n\tsecond \r\n third\n")]),
        ("empty turn", [user("")]),
        ("empty system text", [{"role": "system", "content": ""}, user("Hello")]),
        ("code fence", [user("```python\nprint('{{ hello }}', \"{% raw %}\")\n```")]),
        ("markup", [user("<b>1 < 2 & 3 > 2</b> &amp; \\n \\u4e2d 'quoted' \"twice\"")]),
        ("ends with the assistant", [user("Hello"), assistant("Hello.")]),
    ]


def render(
    tokenizer: Any,
    messages: Messages,
    day: str,
    fields: Mapping[str, Any] = NOTHING_TOLD,
    tools: Tools | None = None,
) -> str | None:
    """The prompt as the tokenizer's own chat template renders it on a day, up to where the answer begins; None: it refuses.

    Args:
        fields: what the template is told; see `Train.chat_template_kwargs`.
        tools: as `toolkit.models.tools.as_sent` gives them.
    """
    # Named, since a tokenizer with several would take another one where there are tools; a GGUF holds this one.
    told = {**fields, **on_day(day), "tools": tools, "chat_template": tokenizer.get_chat_template()}
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **told))
    except REFUSALS:
        return None


def prompts_check(expected: list[tuple[str, str | None]], found: list[str | None]) -> Check:
    """Compare rendered prompts byte for byte.

    Args:
        expected: (name of the conversation, text of the training template; None when it refuses such a conversation).
        found: what the link renders for each.
    """
    different = [
        {"conversation": name, "wanted": wanted, "found": text, "first_difference": _first_difference(wanted, text)}
        for (name, wanted), text in zip(expected, found, strict=True)
        if wanted != text
    ]
    measure = lower_is_better("prompts that differ", len(different), 0, 0)
    if not different:
        return Check.of("prompts", [measure], f"{len(expected)} of {len(expected)} prompts are equal, byte for byte")
    first = different[0]
    message = f"{len(different)} of {len(expected)} prompts differ; first {first['conversation']!r}, {first['first_difference']}"
    return Check.of("prompts", [measure], message, {"different": different[:5]})


def _first_difference(wanted: str | None, found: str | None) -> str:
    if wanted is None or found is None:
        return f"the {'training template' if wanted is None else 'export'} refuses this conversation"
    at = next((i for i, (a, b) in enumerate(zip(wanted, found)) if a != b), min(len(wanted), len(found)))
    return f"at character {at}: wanted {wanted[at : at + 24]!r}, found {found[at : at + 24]!r}"
