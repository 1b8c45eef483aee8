"""What is repaired and what is dropped; every change is counted, every dropped row is listed with its reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from toolkit.data.formats import Example, Turn, to_example
from toolkit.data.readers import Dropped, Row
from toolkit.recipe.schema import Data

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
OWN_SYSTEM = "a row's own system text replaced by the recipe's"
EMPTY_PROMPT = "empty prompt"
EMPTY_COMPLETION = "empty completion"
DAMAGED = "damaged characters (U+FFFD)"
SPECIAL = "special token in the text"
TOO_LONG = "longer than max_characters"
DUPLICATE = "exact duplicate"


def clean_text(text: str) -> tuple[str, bool]:
    """The text with line ends as \\n, without control characters and outer space; and whether a control was removed."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    cleaned = _CONTROL.sub("", text)
    return cleaned.strip(), cleaned != text


def clean(rows: Iterable[Row], data: Data) -> tuple[list[Example], list[Dropped], Counter[str]]:
    """Turn rows into examples.

    Returns:
        The examples that are kept, in order; the dropped rows with their reasons; repair → rows repaired.
    """
    kept: list[Example] = []
    dropped: list[Dropped] = []
    repaired: Counter[str] = Counter()
    seen: set[tuple[tuple[Turn, ...], str]] = set()
    for row in rows:
        found = to_example(row, data)
        if isinstance(found, str):
            dropped.append(Dropped(row.file, row.line, found, _shown(row)))
            continue
        example, had_controls = _clean_example(found)
        content = (example.prompt, example.completion)
        reason = _reason(example, data) or (DUPLICATE if content in seen else None)
        if reason is not None:
            dropped.append(Dropped(row.file, row.line, reason, example.prompt_text or _shown(row)))
            continue
        seen.add(content)
        kept.append(example)
        repaired[CONTROL_CHARACTERS] += had_controls
        repaired[OWN_SYSTEM] += example.own_system
    return kept, dropped, +repaired


def _clean_example(example: Example) -> tuple[Example, bool]:
    prompt = [(turn.role, *clean_text(turn.content)) for turn in example.prompt]
    completion, changed = clean_text(example.completion)
    cleaned = replace(
        example,
        prompt=tuple(Turn(role, text) for role, text, _ in prompt),
        completion=completion,
        topic=clean_text(example.topic)[0],
    )
    return cleaned, changed or any(was_changed for _, _, was_changed in prompt)


def _reason(example: Example, data: Data) -> str | None:
    texts = [*(turn.content for turn in example.prompt), example.completion]
    if not all(texts[:-1]) or not example.topic:
        return EMPTY_PROMPT
    if not example.completion:
        return EMPTY_COMPLETION
    if any("\ufffd" in text for text in texts):
        return DAMAGED
    if any(SPECIAL_TOKEN.search(text) for text in texts):
        return SPECIAL
    if data.max_characters is not None and example.characters > data.max_characters:
        return TOO_LONG
    return None


def _shown(row: Row) -> str:
    return " | ".join(str(value) for value in row.values.values())
