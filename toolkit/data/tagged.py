"""Answers with a reasoning and a result: GSM8K's `steps`, `#### 12`, and the tags that GRPO trains a model to write.

GSM8K: Cobbe et al. 2021, arXiv:2110.14168. Everything here finds and cuts; no regular expression looks for a tag, so that
a text of nothing but tags is read in one pass.
"""

from __future__ import annotations

import re

REASONING, REASONING_END, ANSWER, ANSWER_END = "<reasoning>", "</reasoning>", "<answer>", "</answer>"
TAGS = (REASONING, REASONING_END, ANSWER, ANSWER_END)
"""In the order in which an answer holds them; capital letters do not count as these."""

MARK = "####"
"""Stands before the result, in GSM8K's answers."""

_CALCULATED = re.compile("<<[^<>\n]*>>")
"""GSM8K's marks for a calculator, as in `48/2 = <<48/2=24>>24`."""


def tagged(answer: str) -> str | None:
    """GSM8K's answer in the tags; an answer that holds the tags already, as it is.

    Args:
        answer: steps, and the result after the last `####`.

    Returns:
        `<reasoning>`, steps, `</reasoning>`, `<answer>`, result, `</answer>`, each on a line of its own; None where no
        result follows a `####`, or no step stands before it.
    """
    if in_order(answer):
        return answer
    steps, result = _CALCULATED.sub("", answer).rpartition(MARK)[0].strip(), after_mark(answer)
    if not steps or result is None:
        return None
    return "\n".join([REASONING, steps, REASONING_END, ANSWER, result, ANSWER_END])


def after_mark(answer: str) -> str | None:
    """The line after the last `####`; None where there is none, more follows it, or the marks are those of a heading."""
    before, mark, after = _CALCULATED.sub("", answer).rpartition(MARK)
    result = after.strip()
    if not mark or before.endswith("#") or not result or "\n" in result or any(tag in result for tag in TAGS):
        return None
    return result


def inside_answer(answer: str) -> str | None:
    """What stands in the last `<answer>…</answer>`, without white space around it; None where there is none."""
    before, end, _ = answer.rpartition(ANSWER_END)
    _, start, inside = before.rpartition(ANSWER)
    return inside.strip() if start and end else None


def result_of(reference: str) -> str:
    """A reference's result: what follows its `####`, or else stands in its answer tags, or else the whole of it."""
    inside = inside_answer(reference)
    return after_mark(reference) or after_mark(inside or "") or inside or reference.strip()


def in_order(answer: str) -> bool:
    """Whether an answer holds both pairs of tags, a reasoning before an answer and neither of them blank.

    Anything may stand around them, and the tags may occur again.
    """
    _, start, rest = answer.partition(REASONING)
    reasoning, end, rest = rest.partition(REASONING_END)
    _, answer_start, rest = rest.partition(ANSWER)
    result, answer_end, _ = rest.partition(ANSWER_END)
    return all([start, end, answer_start, answer_end, reasoning.strip(), result.strip()])


def nothing_else(answer: str) -> bool:
    """Whether an answer is a reasoning and an answer in tags and nothing else: each tag once, at most a line end between
    the two. White space around the whole does not count: servers cut it off."""
    text = answer.strip()
    between = text.partition(REASONING_END)[2].partition(ANSWER)[0]
    once = all(text.count(tag) == 1 for tag in TAGS)
    whole = text.startswith(REASONING) and text.endswith(ANSWER_END) and between in {"", "\n"}
    return once and whole and in_order(text)
