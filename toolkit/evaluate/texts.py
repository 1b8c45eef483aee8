"""How near an answer comes to a reference: ROUGE-L, chrF, and whether it has the same result.

ROUGE-L: Lin 2004, "ROUGE: a package for automatic evaluation of summaries", with recall and precision weighed equally. chrF:
Popović 2015, by sacrebleu. Both over characters where there are no spaces between words, as in Chinese.
"""

from __future__ import annotations

import re

from toolkit.data.tagged import after_mark, inside_answer, result_of
from toolkit.train.rewards import same_result

_PIECE = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\u3040-\u30ff]|[^\W_]+", re.UNICODE)
SHORT = 40
"""Characters: a reference of at most so many is an answer that can be right or wrong as a whole."""


def pieces(text: str) -> list[str]:
    """Words in small letters; of scripts without spaces, characters."""
    return _PIECE.findall(text.casefold())


def rouge_l(answer: str, reference: str) -> float:
    """The F-measure of the longest common subsequence, 0 to 1; 1 where both are empty."""
    found, wanted = pieces(answer), pieces(reference)
    if not found or not wanted:
        return float(found == wanted)
    common = _longest_common(found, wanted)
    return 2 * common / (len(found) + len(wanted))


def _longest_common(one: list[str], other: list[str]) -> int:
    row = [0] * (len(other) + 1)
    for piece in one:
        before = 0
        for i, there in enumerate(other, 1):
            before, row[i] = row[i], before + 1 if piece == there else max(row[i], row[i - 1])
    return row[-1]


def chrf(answer: str, reference: str) -> float:
    """chrF, 0 to 1."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [reference]).score) / 100


def has_result(reference: str) -> bool:
    """Whether a reference tells a result that an answer can have or miss: after `####`, in answer tags, or a few words in all."""
    return after_mark(reference) is not None or inside_answer(reference) is not None or len(reference.strip()) <= SHORT


def right(answer: str, reference: str) -> float:
    """1 where the answer has the reference's result, else 0. An answer without a result of its own is compared as a whole."""
    wanted, found = result_of(reference), result_of(answer)
    return float(same_result(found, wanted) or pieces(found) == pieces(wanted))
