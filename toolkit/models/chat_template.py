"""Names in a chat template that llama.cpp fills and training does not."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

from jinja2 import Environment, meta
from jinja2.exceptions import TemplateError

Messages = list[dict[str, Any]]
DATES = ("date_string", "datetime")
"""llama.cpp's common/chat.cpp, common_chat_extra_context: today's date, where transformers leaves both undefined."""
THINKING = "enable_thinking"
"""Set to true by llama.cpp's server and by Ollama when nobody says anything; undefined in training."""
AS_TRAINED = "_as_trained"
_TAG = re.compile(r"\{[{%].*?[%}]\}", re.S)
_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 (no HTML)


def as_trained(template: str) -> str:
    """The template with other names for what llama.cpp sets and training did not, where that makes a difference.

    - Dates: Llama 3.1 writes "Today Date: 26 Jul 2024" where transformers renders it, and today's date where llama.cpp does.
    - `enable_thinking`: llama.cpp says yes unless told otherwise. A template for which nothing means no (QwQ, DeepSeek-V3.1)
      would open a thought that training closed. Renamed, it keeps to training's prompt, and `think` no longer changes it.

    A template without these names, or one that cannot be parsed, comes back as it is.
    """
    dated = renamed(template, DATES)
    return renamed(dated, (THINKING,)) if _says_yes_otherwise(dated) else dated


def _says_yes_otherwise(template: str) -> bool:
    probes: list[Messages] = [[{"role": "user", "content": "a"}]]
    probes.append([{"role": "system", "content": "b"}, *probes[0]])
    return any(
        render_trained(template, probe, "", "") != render_trained(template, probe, "", "", enable_thinking=True)
        for probe in probes
    )


def renamed(template: str, names: tuple[str, ...]) -> str:
    """The template with `_as_trained` after each of these variables; as it was when that cannot be done everywhere."""
    # Quoted text and keys after a dot are left alone.
    name = re.compile(rf"'[^']*'|\"[^\"]*\"|(?<![\w.])({'|'.join(names)})(?!\w)")
    made = _TAG.sub(lambda tag: name.sub(lambda found: found[0] + (AS_TRAINED if found[1] else ""), tag[0]), template)
    try:
        left = meta.find_undeclared_variables(_ENVIRONMENT.parse(made))
    except TemplateError:
        return template
    return template if left & set(names) else made


def asks_for_the_day(template: str) -> bool:
    """Whether a template may write today's date (`strftime_now`, which transformers and llama.cpp both have)."""
    return "strftime_now" in template


def on_day(day: str) -> dict[str, Any]:
    """Field for rendering that puts another day in today's place.

    Args:
        day: as ISO 8601 writes it; empty: today.
    """
    return {"strftime_now": date.fromisoformat(day).strftime} if day else {}


def render_trained(
    template: str, messages: Messages, bos: str, eos: str, tools: list[dict[str, Any]] | None = None, **fields: Any
) -> str | None:
    """A prompt as transformers renders it, up to where the answer begins; None: the template refuses."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=template, add_generation_prompt=True, bos_token=bos,
            eos_token=eos, **fields,
        )  # fmt: skip
    except (TemplateError, ValueError, TypeError, KeyError):
        return None
    return str(rendered[0])
