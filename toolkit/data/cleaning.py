"""What is repaired and what is dropped; every change is counted, every dropped row is listed with its reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from toolkit.data.formats import Example, Shape, Turn, read_row
from toolkit.data.formats.judged import SAME
from toolkit.data.images import Album, InWorkbook, Picture, Refused, Shelf, place_of
from toolkit.data.readers import Dropped, Row
from toolkit.data.tagged import tagged
from toolkit.models.thinking import in_text, never_ends
from toolkit.recipe.rows import Data

# Controls but tab and newline, a byte-order mark inside the text, noncharacters, and halves of surrogate pairs (JSON can
# hold them, UTF-8 cannot).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff\ud800-\udfff]")

SPECIAL_TOKEN = re.compile(
    r"<[|｜][^\s<>|｜]{1,60}[|｜]>"  # <|im_start|>, <|eot_id|>, <｜end▁of▁sentence｜>
    r"|</?s>|<(?:pad|unk|bos|eos|mask)>"
    r"|\[/?INST\]|<</?SYS>>|\[g?MASK\]|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]"
    r"|<(?:start|end)_of_(?:turn|image)>"
)
"""Texts that tokenizers read as markers, not letters: with them a row could end a turn or open another role's."""

CONTROL_CHARACTERS = "control characters removed"
OWN_SYSTEM = "a row's own system text replaced by the recipe's (data.system: row keeps it)"
EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"
ONLY_THOUGHT = "an answer that is only a thought"
ENDLESS_THOUGHT = "a thought that does not end"
TWO_THOUGHTS = "two different thoughts: one in the answer, one beside it"
SAME_THOUGHT = "a thought given twice taken once"
DAMAGED = "damaged characters (U+FFFD)"
SPECIAL = "special token in the text"
TOO_LONG = "longer than max_characters"
LONGEST = 1_000_000
"""Characters of a row: no model here holds as many, and a line that long is a file that lost its line ends."""
ENDLESS = f"longer than {LONGEST:,} characters"
EMPTY_TEXT = "empty text"
NO_RESULT = "an answer without #### and a result (data.tags)"
DUPLICATE = "exact duplicate"


def clean_text(text: str) -> tuple[str, bool]:
    """The text with line ends as \\n, without control characters and outer space; and whether a control was removed."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    cleaned = _CONTROL.sub("", text)
    return cleaned.strip(), cleaned != text


def clean(
    rows: Iterable[Row], shapes: Mapping[str, Shape], data: Data, system: str = "", album: Album | None = None
) -> tuple[list[Example], list[Dropped], Counter[str]]:
    """Turn rows into examples.

    Args:
        shapes: file → what its columns are.
        system: the recipe's system text; `Data.system` says where it goes.
        album: where pictures go; None: they are checked only.

    Returns:
        The examples that are kept, in order; the dropped rows with their reasons; repair → rows repaired.
    """
    kept: list[Example] = []
    dropped: list[Dropped] = []
    repaired: Counter[str] = Counter()
    seen: set[tuple[Any, ...]] = set()
    album = album or Album()
    for row in rows:
        found = read_row(row, shapes[row.file], data.learn)
        if isinstance(found, str):
            dropped.append(Dropped(row.file, row.line, found, _shown(row)))
            continue
        example, had_controls = _clean_example(found)
        example, twice = _thoughts_once(example)
        replaced = data.system == "recipe" and example.system not in ("", system)
        example = example.under(system, data.system)
        if data.tags:
            if (answer := tagged(example.completion[-1].content)) is None:
                dropped.append(Dropped(row.file, row.line, NO_RESULT, example.prompt_text))
                continue
            example = replace(
                example, completion=(*example.completion[:-1], replace(example.completion[-1], content=answer))
            )
        reason, repairs = _reason(example, data), set[str]()
        if reason is None and example.pictures:
            try:
                example, repairs = _in_album(example, shapes[row.file].shelf, album)
            except Refused as error:
                dropped.append(Dropped(row.file, row.line, error.reason, error.detail))
                continue
        content = (example.turns, len(example.prompt), example.system, example.tools, example.good)
        reason = reason or (DUPLICATE if content in seen else None)
        if reason is not None:
            dropped.append(Dropped(row.file, row.line, reason, example.prompt_text or _shown(row)))
            continue
        seen.add(content)
        kept.append(example)
        repaired.update([*example.notes, *repairs])
        repaired[CONTROL_CHARACTERS] += had_controls
        repaired[OWN_SYSTEM] += replaced
        repaired[SAME_THOUGHT] += twice
    return kept, dropped, +repaired


def _in_album(example: Example, shelf: Shelf, album: Album) -> tuple[Example, set[str]]:
    """The row with its pictures checked and named, and what was done to them. Raises Refused."""
    repairs: set[str] = set()

    def named(picture: Picture) -> Picture:
        source = shelf.find(picture.source)
        kept = album.add(source)
        repairs.update(kept.repairs)
        return Picture(source, kept.name)

    prompt, completion = (
        tuple(replace(turn, pictures=tuple(map(named, turn.pictures))) for turn in turns)
        for turns in (example.prompt, example.completion)
    )
    return replace(example, prompt=prompt, completion=completion), repairs


def _clean_example(example: Example) -> tuple[Example, bool]:
    changed = False

    def cleaned(text: str) -> str:
        nonlocal changed
        found, was_changed = clean_text(text)
        changed |= was_changed
        return found

    def turns(given: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return tuple(replace(turn, content=cleaned(turn.content), thinking=cleaned(turn.thinking)) for turn in given)

    made = replace(
        example, prompt=turns(example.prompt), completion=turns(example.completion), rejected=turns(example.rejected),
        system=cleaned(example.system), topic=clean_text(example.topic)[0],
    )  # fmt: skip
    return made, changed


def _thoughts_once(example: Example) -> tuple[Example, bool]:
    """The answers with their thoughts in one place, where one brought the same in two."""
    made, rejected = (
        tuple(_thought_once(turn) if turn.role == "assistant" else turn for turn in turns)
        for turns in (example.completion, example.rejected)
    )
    twice = (made, rejected) != (example.completion, example.rejected)
    return (replace(example, completion=made, rejected=rejected), True) if twice else (example, False)


def _thought_once(turn: Turn) -> Turn:
    found = in_text(turn.content)
    if not turn.thinking or found is None or found.thought not in {"", turn.thinking}:
        return turn
    return replace(turn, content=found.content)


def _reason(example: Example, data: Data) -> str | None:
    if example.is_text and not example.topic:
        return EMPTY_TEXT
    asked = [turn for turn in example.turns if turn.role == "user"]
    if not all(turn.content for turn in asked) or not example.topic:
        return EMPTY_PROMPT
    for turn in example.turns:
        if turn.role == "assistant" and (reason := _of_answer(turn)):
            return reason
    if example.rejected == example.completion:
        return SAME
    texts = [example.system, example.tools, *(turn.text for turn in example.turns)]
    if any("\ufffd" in text for text in texts):
        return DAMAGED
    if any(SPECIAL_TOKEN.search(text) for text in texts):
        return SPECIAL
    if example.characters > LONGEST:
        return ENDLESS
    if data.max_characters is not None and example.characters > data.max_characters:
        return TOO_LONG
    return None


def _of_answer(turn: Turn) -> str | None:
    if never_ends(turn.content):
        return ENDLESS_THOUGHT
    inside = in_text(turn.content)
    if inside and inside.thought and turn.thinking:
        return TWO_THOUGHTS
    if not (inside.content if inside else turn.content) and not turn.calls:
        return ONLY_THOUGHT if turn.thinking or (inside and inside.thought) else EMPTY_COMPLETION
    return None


def _shown(row: Row) -> str:
    return " | ".join(
        place_of(value) if isinstance(value, bytes | InWorkbook) else str(value) for value in row.values.values()
    )
