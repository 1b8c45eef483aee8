"""Where the pictures of a row stand among its words: at marks in the text, in typed parts, or before or after a question."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from toolkit.data.formats.cells import parsed
from toolkit.data.formats.messages import NOT_THE_USERS
from toolkit.data.formats.shape import Shape
from toolkit.data.formats.turns import Example, Turn
from toolkit.data.images.sources import MARK, Picture, reference_of

NO_PICTURE = "no picture on the row"
NO_QUESTION = "a picture beside plain text, which asks nothing"
TWICE = "pictures in the turns, and others beside them"
_WRITTEN = "<image>"
"""As LLaVA and ShareGPT mark a picture's place in a text."""
_AT_AN_END = re.compile(rf"\s*{_WRITTEN}|.*{_WRITTEN}\s*\Z", re.S)
_MARKS = re.compile(f"({MARK}|{_WRITTEN})")


def shows_pictures(example: Example, shape: Shape) -> bool:
    """Whether a row is to have pictures: its file has columns of them, or its turns hold or mark some."""
    if shape.pictures or any(turn.pictures for turn in example.turns):
        return True
    return any(turn.role == "user" and _AT_AN_END.match(turn.content) for turn in example.turns)


def illustrated(example: Example, values: dict[str, Any], shape: Shape) -> Example | str:
    """The example with the pictures of its row in their places; or why that cannot be.

    A picture stands where a typed part or `<image>` marks it; where nothing does, all stand in one question: in a conversation
    the first, else the last; before its words where the column of pictures stands before the one with the words.
    """
    given = _given(values, shape)
    turns = [_marked(turn) if turn.role == "user" else turn for turn in example.prompt + example.completion]
    others = [turn for turn in (*turns, *example.rejected) if turn.role != "user"]
    if given and any(_WRITTEN in turn.content for turn in others):
        return NOT_THE_USERS
    pictures = [picture for turn in turns for picture in turn.pictures]
    if given is None and not pictures and shape.kind != "messages":
        return NO_PICTURE
    bare = sum(picture.source is None for picture in pictures)
    if bare < len(pictures) and given:
        if bare or [picture.source for picture in pictures] != given:
            return TWICE
    elif given and not pictures:
        turns = _beside(turns, len(given), shape)
    elif bare != len(given or ()):
        return f"{bare} marks of pictures in the text and {len(given or ())} pictures beside it"
    left = iter(given or ())
    turns = [
        replace(turn, pictures=tuple(Picture(next(left)) if one.source is None else one for one in turn.pictures))
        for turn in turns
    ]
    parted, topic = len(example.prompt), _MARKS.sub("", example.topic).strip()
    return replace(example, prompt=tuple(turns[:parted]), completion=tuple(turns[parted:]), topic=topic)


def _given(values: dict[str, Any], shape: Shape) -> list[Any] | None:
    """What the row's own columns say of pictures, in order; None: they are empty. An empty list says that there are none."""
    held = [value for column in shape.pictures if (value := values.get(column)) not in (None, "")]
    return list(_listed(held)) if held else None


def _listed(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(inside := parsed(value), list | tuple):
            yield from _listed(inside)
        else:
            yield reference_of(inside)


def _marked(turn: Turn) -> Turn:
    """With the marks that are written in its text taken as pictures of the row's column."""
    content = turn.content if turn.pictures else turn.content.replace(MARK, "")
    pieces = _MARKS.split(content)
    typed = iter(turn.pictures)
    pictures = tuple(next(typed) if piece == MARK else Picture() for piece in pieces[1::2])
    return replace(turn, content=MARK.join(pieces[::2]), pictures=pictures)


def _beside(turns: list[Turn], count: int, shape: Shape) -> list[Turn]:
    questions = [place for place, turn in enumerate(turns) if turn.role == "user"]
    at = questions[0 if shape.kind == "messages" else -1]
    marks, content = MARK * count, turns[at].content
    whole = f"{marks}{content}" if shape.pictures_first else f"{content}{marks}"
    return [*turns[:at], replace(turns[at], content=whole, pictures=(Picture(),) * count), *turns[at + 1 :]]
