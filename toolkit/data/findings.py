"""What people should know of rows that are kept: boilerplate, cut answers, left-over HTML, personal data; reported only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from toolkit.data.formats import Example
from toolkit.recipe.rows import FOUND

_BOILERPLATE = re.compile(
    r"\bas an? (?:AI|artificial intelligence|large language model)\b|\bI(?:'|’)?m (?:just )?an AI\b|\bI am (?:just )?an AI\b"
    r"|作为(?:一个|一名|一款)?(?:AI|人工智能|大?语言模型)|我(?:只)?是(?:一个|一名|一款)?(?:AI|人工智能|大?语言模型)",
    re.IGNORECASE,
)
_HTML = re.compile(
    r"</?(?:a|b|i|p|br|hr|div|span|font|img|li|ul|ol|td|tr|th|table|tbody|strong|em|h[1-6])(?:\s[^<>]*)?/?>"
    r"|&(?:nbsp|amp|lt|gt|quot|#\d{2,5});",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.S)
_DIGIT = re.compile(r"\d")
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b", re.ASCII)
_TELEPHONE = re.compile(
    r"(?<![\w.+-])(?:1[3-9]\d{9}|0\d{2,3}-\d{7,8}|\(?\d{3}\)?[ -]\d{3}-\d{4}"
    r"|\+\d{1,3}[ -]?(?:\(?\d{1,4}\)?[ -]?){2,4}\d{2,4})(?![\w-])"
)
_CHINESE_ID = re.compile(r"(?<!\d)\d{17}[\dXx](?!\d)")
_CARD = re.compile(r"(?<![\d-])(?:\d{4}[ -]?){3}\d{4}(?![\d-])")
_SOCIAL_SECURITY = re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])")
_OPENS = set(",;:，、；：(（[{-")
"""Signs that something follows."""
_LONG = 200
_MOST_END_WELL = 0.8


class Finding(NamedTuple):
    """Something in a row."""

    kind: FOUND
    file: str
    line: int
    what: str
    """In words, and without the data itself."""


def find(examples: Sequence[Example]) -> list[list[Finding]]:
    """What is found in each of the rows; each thing once a row."""
    long = [text for example in examples if len(text := example.completion[-1].content) > _LONG]
    most_end_well = sum(map(_ends_well, long)) >= _MOST_END_WELL * max(len(long), 1)
    found = []
    for example in examples:
        looked: tuple[tuple[FOUND, Iterator[str]], ...] = (
            ("boilerplate", _boilerplate(example)), ("cut", _cut(example, most_end_well)), ("html", _html(example)),
            ("personal", _personal(example)),
        )  # fmt: skip
        found.append(
            [
                Finding(kind, example.file, example.line, what)
                for kind, things in looked
                for what in dict.fromkeys(things)
            ]
        )
    return found


def _ends_well(text: str) -> bool:
    return not text[-1:].isalnum() and text[-1:] not in _OPENS


def _boilerplate(example: Example) -> Iterator[str]:
    if _BOILERPLATE.search(example.answer):
        yield "an answer that speaks as an AI model"


def _cut(example: Example, most_end_well: bool) -> Iterator[str]:
    last = example.completion[-1].content
    open_ended = last[-1:] in _OPENS or last.count("```") % 2
    if last and (open_ended or (most_end_well and len(last) > _LONG and not _ends_well(last))):
        yield "an answer that seems to be cut in the middle"


def _html(example: Example) -> Iterator[str]:
    # With code first: few rows have any, and to take it out of each costs more than to look twice.
    with_code = [turn.content for turn in example.turns if _HTML.search(turn.content)]
    if any(_HTML.search(_CODE.sub("", content)) for content in with_code):
        yield "HTML left over"


def _personal(example: Example) -> Iterator[str]:
    text = "\n".join(turn.text for turn in example.turns)
    if "@" in text and _EMAIL.search(text):
        yield "an e-mail address"
    if _DIGIT.search(text):
        yield from _numbers(text)


def _numbers(text: str) -> Iterator[str]:
    if _TELEPHONE.search(text):
        yield "a telephone number"
    if any(_is_chinese_id(number) for number in _CHINESE_ID.findall(text)):
        yield "a Chinese ID number"
    if any(_is_card(number) for number in _CARD.findall(text)):
        yield "a number of a payment card"
    if _SOCIAL_SECURITY.search(text):
        yield "a social security number"


def _is_chinese_id(number: str) -> bool:
    """By its check digit (GB 11643-1999: weights 2^(17-i) modulo 11)."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _is_card(number: str) -> bool:
    """By its check digit (ISO/IEC 7812-1, Luhn)."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[1::2]]
    total = sum(digits[::2]) + sum(doubled)
    return total > 0 and total % 10 == 0
