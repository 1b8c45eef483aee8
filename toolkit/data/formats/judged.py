"""Rows with answers that were judged: chosen and rejected, or labelled good and bad. Methods for them learn from both."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from toolkit.data.formats.cells import are_turns, parsed
from toolkit.data.formats.labels import word_of
from toolkit.data.formats.messages import Conversation, asked_in, conversation
from toolkit.data.formats.pairs import paired
from toolkit.data.formats.shape import Shape
from toolkit.data.formats.turns import Example

SAME = "chosen and rejected are equal"
NO_LABEL = "the label is neither true nor false"
_LAST = "last"  # of several answers, the one that was judged
_SPOKEN = re.compile(r"\n\n(Human|Assistant): ?")
"""As Anthropic's helpful-harmless rows part their turns."""


def preference(file: str, line: int, values: dict[str, Any], shape: Shape) -> Example | str:
    """A pair, with its prompt in a column of its own or in both answers; or why it is none."""
    sides = []
    for role in ("chosen", "rejected"):
        answer = values.get(shape.roles[role])
        if "prompt" in shape.roles and not _whole(answer):
            made = paired({**values, "": answer}, _answered(shape), _LAST)
            found = made if isinstance(made, str) else made[0]
        else:
            found = conversation(_spoken(answer) if isinstance(answer, str) else answer, _LAST)
        if isinstance(found, str):
            return f"{role}: {found}"
        sides.append(found)
    chosen, rejected = sides
    if chosen.completion == rejected.completion:
        return SAME
    if chosen.prompt != rejected.prompt:
        return "chosen and rejected answer different prompts"
    return replace(_example(file, line, chosen), rejected=rejected.completion)


def unpaired(file: str, line: int, values: dict[str, Any], shape: Shape) -> Example | str:
    """An answer and its label, or why it is none."""
    good = shape.labels.get(word_of(values.get(shape.roles["label"])))
    if good is None:
        return NO_LABEL
    found: Conversation | str
    if "messages" in shape.roles:
        found = conversation(values.get(shape.roles["messages"]), _LAST)
    else:
        made = paired(values, shape, _LAST)
        found = made if isinstance(made, str) else made[0]
    if isinstance(found, str):
        return found
    return replace(_example(file, line, found), good=good)


def _example(file: str, line: int, found: Conversation) -> Example:
    topic = asked_in(found.prompt + found.completion)
    return Example(file, line, found.prompt, found.completion, topic, found.system, notes=found.notes)


def _answered(shape: Shape) -> Shape:
    return Shape("columns", "", {**shape.roles, "completion": ""})


def _whole(answer: Any) -> bool:
    """Whether an answer brings its prompt: turns of which one is the user's."""
    answer = parsed(answer)
    said = [str(turn.get("role", turn.get("from"))) for turn in answer] if are_turns(answer) else []
    return any(role in ("user", "human") for role in said)


def _spoken(text: str) -> Any:
    found = parsed(text)
    if not isinstance(found, str):
        return found
    pieces = _SPOKEN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": what} for who, what in zip(pieces[::2], pieces[1::2])] or text
