"""Labels of answers: which words say good and which bad."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LABELS = ("label", "labels", "kto_tag")
"""Columns that say of each answer whether it is good, where they hold words that can."""
_MAY_JUDGE = (*LABELS, "rating", "score", "feedback", "quality", "标签", "標籤", "评价", "評價", "评分", "評分", "好坏")
_GOOD = ("true", "1", "yes", "y", "good", "chosen", "desirable", "好", "是", "对", "對", "👍")
_BAD = ("false", "0", "-1", "no", "n", "bad", "rejected", "undesirable", "坏", "壞", "差", "否", "错", "錯", "👎")
_KNOWN = dict.fromkeys(_GOOD, True) | dict.fromkeys(_BAD, False)
_YAML = {"true": ("true", "yes", "on"), "false": ("false", "no", "off")}
A_HANDFUL = 6
"""So many words of a column are shown."""
_LONGEST_SHOWN = 20


def word_of(value: Any) -> str:
    """A label as a word: true, 1, -1, good; empty where a cell is."""
    if value is None:
        return ""
    word = str(value).strip().casefold()
    return re.sub(r"^\+|\.0+$", "", word) if re.fullmatch(r"[+-]?\d+(\.0+)?", word) else word


def words_said(labels: Mapping[str, bool]) -> dict[str, bool]:
    """What a recipe's `data.labels` says. YAML reads a bare yes as true, so each of its words for it is meant."""
    return {word: good for key, good in labels.items() for word in _YAML.get(word_of(key), (word_of(key),))}


def known_words(values: Iterable[Any], said: Mapping[str, bool]) -> dict[str, bool]:
    """Word → whether it says good.

    Args:
        values: of the column. Beside 1 and -1, 0 is neither.
        said: `Reading.labels`; where it says something, nothing else is known.
    """
    if said:
        return words_said(said)
    neither = {"0"} if "-1" in map(word_of, values) else set()
    return {word: good for word, good in _KNOWN.items() if word not in neither}


def are_labels(values: Sequence[Any], words: Mapping[str, bool]) -> bool:
    """Whether most of these say good or bad."""
    return 2 * sum(word_of(value) in words for value in values) > len(values)


def may_judge(columns: Iterable[str]) -> str | None:
    """The first column whose name may mean that it judges answers."""
    return next((column for column in columns if column.strip().casefold() in _MAY_JUDGE), None)


def listed(values: Iterable[Any]) -> str:
    """A few of a column's words, as they are written."""
    words = _words(values)
    shown = [word if len(word) <= _LONGEST_SHOWN else word[:_LONGEST_SHOWN] + "…" for word in words[:A_HANDFUL]]
    return ", ".join(shown) + (f" and {len(words) - A_HANDFUL} more" if len(words) > A_HANDFUL else "")


def setting(values: Iterable[Any], known: Mapping[str, bool]) -> str:
    """The setting that says which of a column's words mean a good answer; … where nobody has said it yet."""
    said = {word: str(known[word_of(word)]).lower() if word_of(word) in known else "…" for word in _words(values)}
    pairs = [f"{_key(word)}: {good}" for word, good in said.items()][:A_HANDFUL]
    return f"--set {shlex.quote('data.labels={' + ', '.join(pairs) + '}')}"


def unlike(values: Iterable[Any]) -> int:
    """How many different words there are."""
    return len(_words(values))


def _words(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(v).lower() if isinstance(v, bool) else " ".join(str(v).split()) for v in values))


def _key(word: str) -> str:
    return word if re.fullmatch(r"[^\W\d][\w ]*", word) else json.dumps(word, ensure_ascii=False)
