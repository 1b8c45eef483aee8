"""How near an answer is to the row's own, and whether it is right.

ROUGE-L: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; the F measure over the longest common subsequence.
chrF: Popović 2015; BLEU: Papineni et al. 2002; both as sacrebleu computes them for one sentence, here from 0 to 1.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from toolkit.data.tagged import after_mark, inside_answer, result_of
from toolkit.models.tools import calls_in, names_and_arguments
from toolkit.train.rewards import number, same_result

_UNIT = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ가-힯\U00020000-\U0003ffff]|[^\W_]+", re.UNICODE)
"""A character where words are not parted by spaces (Chinese, Japanese; Korean too), else a word."""
_BY_CHARACTER = re.compile(r"[㐀-䶿一-鿿豈-﫿぀-ヿ\U00020000-\U0003ffff]")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
SHORT_WORDS = 5
"""A reference of so many words (or twice as many characters of Chinese) at most is one that can be met exactly."""


def units(text: str) -> list[str]:
    """Words in small letters, and single characters of Chinese, Japanese and Korean; punctuation is left out."""
    found: list[str] = []
    for word in _UNIT.findall(unicodedata.normalize("NFKC", text).casefold()):
        # A run of letters may hold characters of both kinds.
        found += re.findall(f"{_BY_CHARACTER.pattern}|[^{_BY_CHARACTER.pattern[1:-1]}]+", word)
    return found


def rouge_l(answer: str, reference: str) -> float:
    """From 0 to 1; 0 for an empty answer. A reference without any word (a sign, an emoji) is met by itself alone."""
    said, wanted = units(answer), units(reference)
    if not wanted:
        return float(answer.strip() == reference.strip())
    if not said:
        return 0.0
    common = _common(said, wanted)
    return 2 * common / (len(said) + len(wanted))


def _common(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for one in left:
        before = 0
        for place, other in enumerate(right, 1):
            before, row[place] = row[place], before + 1 if one == other else max(row[place], row[place - 1])
    return row[-1]


def chrf(answer: str, reference: str) -> float:
    """From 0 to 1."""
    return float(_chrf().sentence_score(answer, [reference]).score) / 100 if answer.strip() else 0.0


def bleu(answer: str, reference: str) -> float:
    """From 0 to 1, over as many orders of n-grams as the reference has; Chinese and Japanese by characters."""
    if not answer.strip():
        return 0.0
    by_character = len(_BY_CHARACTER.findall(reference)) > len(reference) / 4
    return min(float(_bleu("zh" if by_character else "13a").sentence_score(answer, [reference]).score) / 100, 1.0)


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


@functools.cache
def _bleu(tokenize: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenize, effective_order=True)


def can_be_right(reference: str) -> bool:
    """Whether a reference holds what another answer is right or wrong by: a call, a result that is marked, or few words."""
    if calls_in(reference) or after_mark(reference) is not None or inside_answer(reference) is not None:
        return True
    found = units(reference)
    characters = len(_BY_CHARACTER.findall(reference))
    return "\n" not in reference.strip() and 0 < len(found) - characters / 2 <= SHORT_WORDS


def is_right(answer: str, reference: str) -> bool:
    """Whether an answer gives the result that the reference gives; see `can_be_right`.

    Calls are compared by names and arguments. Of an answer to a marked result counts what it marks itself (`#### 12`,
    `<answer>12</answer>`), or else, where the result is a number, its last number. Others are compared as texts, without
    regard to capital letters, punctuation and white space.
    """
    if calls_in(reference):
        return same_calls(answer, reference)
    if after_mark(reference) is None and inside_answer(reference) is None:
        return same_result(answer, reference) or (units(answer) == units(reference) != [])
    result = result_of(reference)
    told = inside_answer(answer) or after_mark(answer)
    if told is not None:
        return same_result(told, result)
    numbers = _NUMBER.findall(answer)
    if number(result) is not None:
        return bool(numbers) and same_result(numbers[-1], result)
    return units(result) == units(answer)


def same_calls(answer: str, reference: str) -> bool:
    """Whether two texts call the same functions with the same arguments, or both call none."""
    return names_and_arguments(calls_in(answer)) == names_and_arguments(calls_in(reference))


def all_alike(answers: Sequence[str]) -> bool:
    """Whether several questions got one and the same answer: a model that has collapsed."""
    return len(answers) > 2 and len(set(answers)) == 1
