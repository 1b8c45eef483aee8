"""From a row to what can be learnt: one shape a file (pairs, messages, judged), told apart by `shape`.

Shapes: columns (a question and an answer), alpaca (instruction, input, output), messages (lists of turns, ShareGPT's too),
preference (chosen and rejected), unpaired (an answer and a label), text. Which objectives learn from which: `objectives_of`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from toolkit.data.formats.cells import NOT_TEXT, text_of
from toolkit.data.formats.doubts import doubt
from toolkit.data.formats.judged import preference, unpaired
from toolkit.data.formats.messages import asked_in, conversation
from toolkit.data.formats.pairs import paired
from toolkit.data.formats.pictures import NO_QUESTION, illustrated, shows_pictures
from toolkit.data.formats.shape import FIRST_ROWS, Kind, Shape, objectives_of, rows_for, shape_of, thought_columns
from toolkit.data.formats.tools import NO_TOOLS, tools_of
from toolkit.data.formats.turns import Call, Example, Turn
from toolkit.data.readers import Row

__all__ = [
    "FIRST_ROWS", "Call", "Example", "Kind", "Shape", "Turn", "doubt", "objectives_of", "read_row", "rows_for", "shape_of",
    "thought_columns",
]  # fmt: skip


def read_row(row: Row, shape: Shape, learn: str = "all") -> Example | str:
    """What a row is, or why it is nothing.

    Args:
        shape: of the row's file.
        learn: `Data.learn`.
    """
    if shape.kind == "text":
        if shape.pictures:
            return NO_QUESTION
        text = text_of(row.values.get(shape.roles["text"]))
        return NOT_TEXT if text is None else replace(Example.of_text(row.file, row.line, text), source=row.source)
    found = _judged(row, shape) if shape.kind in ("preference", "unpaired") else _example(row, shape, learn)
    if isinstance(found, str) or not shows_pictures(found, shape):
        return found
    return illustrated(found, row.values, shape)


def _judged(row: Row, shape: Shape) -> Example | str:
    read = preference if shape.kind == "preference" else unpaired
    found = read(row.file, row.line, row.values, shape)
    if isinstance(found, str):
        return found
    return replace(found, system=_system(row.values, shape) or found.system, source=row.source)


def _example(row: Row, shape: Shape, learn: str) -> Example | str:
    if shape.kind == "messages":
        made = conversation(row.values.get(shape.roles["messages"]), learn)
        if isinstance(made, str):
            return made
        topic = asked_in(made.prompt + made.completion)
    else:
        pair = paired(row.values, shape, learn)
        if isinstance(pair, str):
            return pair
        made, topic = pair
    tools = tools_of(row.values.get(shape.roles["tools"]) if "tools" in shape.roles else None)
    own = _system(row.values, shape)
    if tools is None or own is None:
        return NO_TOOLS if tools is None else NOT_TEXT
    system = "\n\n".join(filter(None, (own, made.system)))
    return Example(row.file, row.line, made.prompt, made.completion, topic, system, tools, row.source, made.notes)


def _system(values: dict[str, Any], shape: Shape) -> str | None:
    return text_of(values.get(shape.roles["system"]) if "system" in shape.roles else None)
