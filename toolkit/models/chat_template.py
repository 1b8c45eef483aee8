"""A chat template, rendered as training renders it; and names in it that llama.cpp fills and training does not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, meta
from jinja2.exceptions import TemplateError

from toolkit.errors import DataError, UsageError

Messages = list[dict[str, Any]]
NOTHING_TOLD: Mapping[str, Any] = MappingProxyType({})
"""What a template is told where the recipe says nothing."""
DATES = ("date_string", "datetime")
"""llama.cpp's common/chat.cpp, common_chat_extra_context: today's date, where transformers leaves both undefined."""
THINKING = "enable_thinking"
"""Set to true by llama.cpp's server and by Ollama when nobody says anything; undefined in training, unless the recipe says it."""
KEEPING_THOUGHTS = {
    "preserve_thinking": True, "clear_thinking": False, "truncate_history_thinking": False, "drop_thinking": False,
}  # fmt: skip
"""What llama.cpp's server sets in every request (common/jinja/caps.cpp, caps_apply_preserve_reasoning)."""
EFFORT = "reasoning_effort"
"""Set by Ollama where an app asks for thoughts by a level (`think: "high"`; `reasoning_effort` at /v1), and nowhere else: so it
tells an app that asks for them from one that says nothing, which `think: true` does not (llm/llama_server.go,
llamaServerChatTemplateKwargs; server/routes.go, ChatHandler)."""
AS_TRAINED = "_as_trained"
REFUSALS = (TemplateError, ValueError, TypeError, KeyError, RecursionError)
"""What a template raises that cannot write a conversation; Hermes 3 never ends in a schema of `anyOf`."""
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""A mark of transformers' own, which says where the loss is; it writes nothing."""
_TAG = re.compile(r"\{[{%].*?[%}]\}", re.S)
_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 (no HTML)


def as_trained(template: str, fields: Mapping[str, Any] = NOTHING_TOLD) -> str:
    """The template that writes, where nobody says anything, what training wrote.

    - Dates: Llama 3.1 writes "Today Date: 26 Jul 2024" where transformers renders it, and today's date where llama.cpp does.
    - `enable_thinking`: llama.cpp says yes unless told otherwise. A template that was trained without thoughts, because the
      recipe said so or because to it nothing means no (QwQ, DeepSeek-V3.1), would open one. Renamed, it keeps to training's
      prompt, and `think: true` no longer changes it; a level (`think: "high"`) does, since a server tells that apart.
    - What else the recipe told the template is set at its head, unless a request says otherwise.

    A template for which all this makes no difference, or one that cannot be parsed, comes back as it is.

    Args:
        fields: that it was rendered with in training; see `Train.chat_template_kwargs`.
    """
    made, head = renamed(template, DATES), ""
    if any(_differs(made, said, KEEPING_THOUGHTS) for said in (fields, {**fields, THINKING: True})):
        made = renamed(made, tuple(KEEPING_THOUGHTS))
    if _differs(made, fields, {THINKING: True}) and (kept := renamed(made, (THINKING,))) != made:
        made = kept
        if THINKING in fields:
            head += _set(THINKING + AS_TRAINED, fields[THINKING])
        head += f"{{% if {EFFORT} is defined %}}{{% set {THINKING}{AS_TRAINED} = {THINKING} %}}{{% endif %}}"
    for name in sorted(set(fields) - {THINKING}):
        known = _variables(made)
        if name + AS_TRAINED in known:
            head += _set(name + AS_TRAINED, fields[name])
        elif name in known:
            head += f"{{% if {name} is not defined %}}{_set(name, fields[name])}{{% endif %}}"
    # A block at a line's head takes the white space after it along; see `toolkit.export.convert.protect_template`.
    return head + ("\n" if head and made[:1].isspace() else "") + made


def _set(name: str, value: Any) -> str:
    return f"{{% set {name} = {_literal(value)} %}}"


def _literal(value: Any) -> str:
    """A value as Jinja writes it: JSON, but for the three words that it spells otherwise."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return json.dumps(value, ensure_ascii=False)


def _variables(template: str) -> set[str]:
    try:
        return set(meta.find_undeclared_variables(_ENVIRONMENT.parse(_GENERATION.sub("", template))))
    except TemplateError:
        return set()


def _differs(template: str, fields: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether it makes a difference to a prompt what a server says besides."""
    probes: list[Messages] = [[{"role": "user", "content": "a"}]]
    probes.append([{"role": "system", "content": "b"}, *probes[0]])
    probes.append([*probes[0], {"role": "assistant", "content": "c"}, *probes[0]])
    return any(
        render_trained(template, probe, "", "", **fields)
        != render_trained(template, probe, "", "", **{**fields, **said})
        for probe in probes
    )


def renamed(template: str, names: tuple[str, ...]) -> str:
    """The template with `_as_trained` after each of these variables; as it was when that cannot be done everywhere."""
    # Quoted text and keys after a dot are left alone.
    name = re.compile(rf"'[^']*'|\"[^\"]*\"|(?<![\w.])({'|'.join(names)})(?!\w)")
    made = _TAG.sub(lambda tag: name.sub(lambda found: found[0] + (AS_TRAINED if found[1] else ""), tag[0]), template)
    left = _variables(made)
    return made if left and not left & set(names) else template


def template_file(path: str) -> str:
    """The text of a recipe's own template, `train.chat_template`.

    Raises:
        UsageError: there is no such file.
        DataError: it is no Jinja template, or writes no message.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"train.chat_template: there is no file {path}", "Name a Jinja file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"train.chat_template: {path} cannot be read: {error}", "Name a Jinja file in UTF-8."
        ) from error
    try:
        _ENVIRONMENT.parse(_GENERATION.sub("", text))
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise DataError(f"{path}{f':{line}' if line else ''}: {error}", "Mend the template.") from error
    if (render_trained(text, [{"role": "user", "content": "Qzword"}], "", "") or "").count("Qzword") != 1:
        raise DataError(f"{path} does not write a user's message once", "Mend the template.")
    return text


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
    return render_whole(template, messages, bos, eos, tools, True, **fields)


def render_whole(
    template: str, messages: Messages, bos: str, eos: str, tools: list[dict[str, Any]] | None = None,
    opens_answer: bool = False, **fields: Any,
) -> str | None:  # fmt: skip
    """A conversation as transformers renders it; None: the template refuses.

    Args:
        opens_answer: whether the opening of the next answer is written too.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=template, add_generation_prompt=opens_answer, bos_token=bos,
            eos_token=eos, **fields,
        )  # fmt: skip
    except REFUSALS:
        return None
    return str(rendered[0])


def generated_texts(
    template: str, messages: Messages, tools: list[dict[str, Any]] | None = None, **fields: Any
) -> list[str]:
    """What a template itself calls generated (`{% generation %}`, a mark of transformers'); nothing where it says nothing."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if not _GENERATION.search(template):
        return []
    try:
        (rendered,), (places,) = render_jinja_template(
            conversations=[messages], tools=tools, chat_template=template, return_assistant_tokens_mask=True, **fields
        )
    except REFUSALS:
        return []
    return [rendered[begin:end] for begin, end in places]
