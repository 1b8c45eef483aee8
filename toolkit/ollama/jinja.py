"""Names in a chat template that llama.cpp fills and training does not."""

from __future__ import annotations

import re

from jinja2 import Environment, meta
from jinja2.exceptions import TemplateError

_SET_BY_LLAMA_CPP = ("date_string", "datetime")
"""llama.cpp's common/chat.cpp, common_chat_extra_context: today's date, where transformers leaves both undefined."""
_AS_TRAINED = "_as_trained"
_TAG = re.compile(r"\{[{%].*?[%}]\}", re.S)
# Quoted text and keys after a dot are left alone.
_NAME = re.compile(rf"'[^']*'|\"[^\"]*\"|(?<![\w.])({'|'.join(_SET_BY_LLAMA_CPP)})(?!\w)")
_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 (no HTML)


def undated(template: str) -> str:
    """The template with other names for what only llama.cpp sets, so that its own defaults count, as they did in training.

    Llama 3.1, for one, writes "Today Date: 26 Jul 2024" where transformers renders it, and today's date where llama.cpp does.
    A template without these names, or one that cannot be parsed, comes back as it is.
    """
    renamed = _TAG.sub(
        lambda tag: _NAME.sub(lambda name: name[0] + _AS_TRAINED if name[1] else name[0], tag[0]), template
    )
    try:
        left = meta.find_undeclared_variables(_ENVIRONMENT.parse(renamed))
    except TemplateError:
        return template
    return template if left & set(_SET_BY_LLAMA_CPP) else renamed
