"""What an answer earns in training by rewards (GRPO, RLOO): plain functions, those of this file and a user's own.

A reward is given the answers and the reference answer of each, as texts, and gives back a number for each answer. The five
here are those in use for GRPO (Shao et al. 2024, arXiv:2402.03300) on GSM8K; together they give at most 4.0.

- `answer_correct` 2.0: what stands in the last `<answer>…</answer>` is the reference's result (`toolkit.data.tagged`).
- `answer_integer` 0.5: it is a whole number, written without decimals.
- `strict_format` 0.5: the answer is a reasoning and an answer in tags, in this order, and nothing else.
- `soft_format` 0.5: both pairs of tags are there in this order, whatever stands around them.
- `tag_counts` up to 0.5: 0.125 for each of the four tags that occurs exactly once, less 0.001 for each character after
  `</answer>`, as far as that tag's own 0.125.

Tags that hold nothing but white space earn no format: a model would learn to write them empty. Capital letters in tags do
not count as the tags; white space around an answer does not count, since servers cut it off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from toolkit.data.tagged import ANSWER_END, TAGS, in_order, inside_answer, nothing_else, result_of
from toolkit.errors import UsageError
from toolkit.recipe.section import nearest
from toolkit.train.own_rewards import Reward, guarded, load_own

_NUMBER = re.compile(
    r"(?P<sign>[-+]?)(?P<currency>[$€£¥₹]?) ?(?P<inner>[-+]?)"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?P<decimals>\.[0-9]*)?(?P<after> ?[$€£¥₹]?)"
)
_PLAIN = {0xFF01 + offset: 0x21 + offset for offset in range(94)} | {0x2212: "-", 0xFFE5: "¥", 0xFFE1: "£"}
"""Full-width characters and the sign for minus; not all of NFKC, which makes 52 of 5²."""
_PER_TAG = 0.125
_PER_CHARACTER_AFTER = 0.001


def answer_correct(completions: list[str], references: list[str]) -> list[float]:
    """2.0 where the last answer in tags is the reference's result; see `same_result`."""
    return [
        2.0 if (inside := inside_answer(answer)) is not None and same_result(inside, result_of(reference)) else 0.0
        for answer, reference in zip(completions, references, strict=True)
    ]


def answer_integer(completions: list[str], references: list[str]) -> list[float]:
    """0.5 where the last answer in tags is a whole number without decimals: `12`, `-5`, `$1,000`, not `12.0` or `12 cm`."""
    inside = [inside_answer(answer) or "" for answer in completions]
    return [0.5 if number(text) is not None and "." not in _plain(text) else 0.0 for text in inside]


def strict_format(completions: list[str], references: list[str]) -> list[float]:
    """0.5 where the answer is a reasoning and an answer in tags and nothing else."""
    return [0.5 if nothing_else(answer) else 0.0 for answer in completions]


def soft_format(completions: list[str], references: list[str]) -> list[float]:
    """0.5 where both pairs of tags are there in their order."""
    return [0.5 if in_order(answer) else 0.0 for answer in completions]


def tag_counts(completions: list[str], references: list[str]) -> list[float]:
    """0.125 for each tag that occurs exactly once, less a little for text after the last."""
    return [sum(_tag_worth(answer, tag) for tag in TAGS) for answer in completions]


REWARDS: dict[str, Reward] = {
    reward.__name__: reward for reward in (answer_correct, answer_integer, strict_format, soft_format, tag_counts)
}
"""By the names that a recipe's `train.rewards` lists."""


def named(names: Sequence[str], own: Path | None = None) -> dict[str, Reward]:
    """The rewards of these names, each guarded (`own_rewards.guarded`).

    Args:
        names: of this file's, and of the user's own.
        own: the user's file, as named on the command line.

    Raises:
        UsageError: a name that is in neither, in both, or twice in the list.
        DataError: the user's file does not import.
    """
    owned = load_own(own) if own else {}
    known = REWARDS | owned
    for name in names:
        if name not in known:
            hint = f"The names are {', '.join(known)}; those of a file of your own only where it is named."
            raise UsageError(f"no reward '{name}'{nearest(name, list(known))}", hint)
        if list(names).count(name) > 1:
            raise UsageError(f"the reward '{name}' is listed twice", "Name it once in train.rewards.")
        if name in REWARDS and name in owned:
            raise UsageError(f"{own} has a reward '{name}', and so has this tool", f"Call yours otherwise in {own}.")
    return {name: guarded(name, known[name]) for name in names}


def same_result(left: str, right: str) -> bool:
    """Whether two results are the same: as numbers where both are, or else as texts.

    `1,000`, `1000.0`, `$1000` and full-width digits are one number. Texts are compared without regard to capital letters,
    white space and a full stop at the end; a unit is part of a text, so `12 cm` is not `12`.
    """
    numbers = number(left), number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _plain(left).casefold() == _plain(right).casefold() != ""


def number(text: str) -> Decimal | None:
    """The decimal number that a text is, exactly; None where it is none or has anything but a currency sign beside it."""
    found = _NUMBER.fullmatch(_plain(text))
    if not found:
        return None
    digits, decimals = found["digits"] or "", found["decimals"] or ""
    signs, currencies = found["sign"] + found["inner"], found["currency"] + found["after"].strip()
    if not (digits or decimals.strip(".")) or len(signs) > 1 or len(currencies) > 1:
        return None
    return Decimal(signs + digits.replace(",", "") + decimals)


def _plain(text: str) -> str:
    """With plain digits, signs and spaces, and without a full stop at the end."""
    return " ".join(text.translate(_PLAIN).split()).removesuffix("。").removesuffix(".")


def _tag_worth(answer: str, tag: str) -> float:
    if answer.count(tag) != 1:
        return 0.0
    if tag != ANSWER_END:
        return _PER_TAG
    return max(_PER_TAG - _PER_CHARACTER_AFTER * len(answer.rpartition(tag)[2].strip()), 0.0)
