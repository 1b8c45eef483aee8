"""What is repaired and what is dropped; every change is counted, every dropped row is listed with its reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from toolkit.data.formats import Example, Turn, to_example
from toolkit.data.readers import Dropped, Row
from toolkit.models.thinking import in_text, never_ends
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
ONLY_THOUGHT = "an answer that is only a thought"
ENDLESS_THOUGHT = "a thought that does not end"
TWO_THOUGHTS = "two different thoughts: one in the answer, one beside it"
SAME_THOUGHT = "a thought given twice taken once"
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
    seen: set[tuple[tuple[Turn, ...], str, str]] = set()
    for row in rows:
        found = to_example(row, data)
        if isinstance(found, str):
            dropped.append(Dropped(row.file, row.line, found, _shown(row)))
            continue
        example, had_controls = _clean_example(found)
        example, twice = _thought_once(example)
        content = (example.prompt, example.completion, example.thinking)
        reason = _reason(example, data) or (DUPLICATE if content in seen else None)
        if reason is not None:
            dropped.append(Dropped(row.file, row.line, reason, example.prompt_text or _shown(row)))
            continue
        seen.add(content)
        kept.append(example)
        repaired[CONTROL_CHARACTERS] += had_controls
        repaired[OWN_SYSTEM] += example.own_system
        repaired[SAME_THOUGHT] += twice
    return kept, dropped, +repaired


def _clean_example(example: Example) -> tuple[Example, bool]:
    changed = False

    def cleaned(text: str) -> str:
        nonlocal changed
        found, was_changed = clean_text(text)
        changed |= was_changed
        return found

    made = replace(
        example,
        prompt=tuple(Turn(turn.role, cleaned(turn.content), cleaned(turn.thinking)) for turn in example.prompt),
        completion=cleaned(example.completion),
        thinking=cleaned(example.thinking),
        topic=clean_text(example.topic)[0],
    )
    return made, changed


def _thought_once(example: Example) -> tuple[Example, bool]:
    """The answer with its thought in one place, where it brought the same one in two."""
    found = in_text(example.completion)
    if not example.thinking or found is None or found.thought not in {"", example.thinking}:
        return example, False
    return replace(example, completion=found.content), True


def _reason(example: Example, data: Data) -> str | None:
    texts = [*(turn.content for turn in example.prompt), example.completion]
    if not all(texts[:-1]) or not example.topic:
        return EMPTY_PROMPT
    if never_ends(example.completion):
        return ENDLESS_THOUGHT
    inside = in_text(example.completion)
    if inside and inside.thought and example.thinking:
        return TWO_THOUGHTS
    if not (inside.content if inside else example.completion):
        return ONLY_THOUGHT if example.thinking or (inside and inside.thought) else EMPTY_COMPLETION
    texts += [example.thinking, *(turn.thinking for turn in example.prompt)]
    if any("\ufffd" in text for text in texts):
        return DAMAGED
    if any(SPECIAL_TOKEN.search(text) for text in texts):
        return SPECIAL
    if data.max_characters is not None and example.characters > data.max_characters:
        return TOO_LONG
    return None


def _shown(row: Row) -> str:
    return " | ".join(str(value) for value in row.values.values())
