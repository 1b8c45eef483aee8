"""Train, validation and test: deterministic, no near duplicate on two sides, and rows stay where they are.

The rule, row by row in reading order: a row goes to the side of the earlier rows that are near duplicates of it; without
any, the side is a function of its own text. A row that is near earlier rows of two different sides would leak between
them: it is left out. So

- no two near duplicates are ever on different sides;
- rows appended after the present ones (at the end of a file, or in a file that sorts last) move none of them;
- rows put elsewhere can move only their own near duplicates.

No rule does better without remembering earlier runs: where A and B are alone, only their own texts can decide, and a row
that is near both, put first, must differ from one of them.

Near (`toolkit.data.near`): of the prompts, or of prompt and answer together.

Templates: twenty rows or more that are near each other, directly or through others, and that consist for the most part of what
more than half of them hold, were made from a template ("How do I reset device 12?"). As near duplicates they would all be on one
side, and nothing could be tested. Among themselves they are compared without what most of them hold: by what differs. Appended
rows then move others only where they are a template's twentieth, or change which trigrams most rows hold.

Pictures: rows that show pictures are near each other where they show the same one, whatever they ask; the same question of
different pictures is no near duplicate, and neither is it of a row without.

Small files: where the sides that follow from the rows' own texts leave one without rows, whole prompts are dealt out by the
order of their hashes (`deal`). Both ways may part rows that resemble each other: `resembling` counts them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal, NamedTuple

from toolkit.data.formats import Example
from toolkit.data.near import MOST_KEPT, earlier_near, normalize, shingles, signature
from toolkit.recipe.rows import Data

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")

TEMPLATE = 20
"""So many rows near each other may have been made from a template."""


def content_hash(text: str) -> int:
    """64 bits of SHA-256 over a text's normal form; texts of signs alone are hashed as they are."""
    return int.from_bytes(hashlib.sha256((normalize(text) or text).encode()).digest()[:8], "big")


def own_side(prompt: str, data: Data) -> Side:
    """The side of a row without near duplicates. Changing one share leaves the other side's rows where they are."""
    place = content_hash(prompt) / 2**64
    if place < data.test:
        return "test"
    return "validation" if place >= 1 - data.validation else "train"


def split(examples: Sequence[Example], data: Data, golden: Sequence[str] = ()) -> Split:
    """Choose a side for each example.

    Args:
        examples: cleaned, in reading order.
        golden: prompts that stand before all rows on the test side, so that what resembles them is not trained on.

    Raises:
        UsageError: datasketch is not installed.
    """
    rows = [_Compared(prompt, prompt, "test") for prompt in golden]
    rows += [_compared(example) for example in examples]
    groups, near = _groups(rows)
    near_others = sum(bool(near[i]) for i in range(len(golden), len(rows)))
    templated = 0
    for members in groups:
        found = [rows[i] for i in members]
        of_texts = len(members) >= TEMPLATE and not found[0].pictures
        shared = _shared([row.topic for row in found]) if of_texts else frozenset()
        if shared and median(_share(row.topic, shared) for row in found) > 0.5:
            by_difference = _near(found, shared, _shared([row.pair for row in found]))
            near.update({members[i]: [members[j] for j in earlier] for i, earlier in by_difference.items()})
            templated += len(members)
    sides: list[Side | None] = []
    for i, row in enumerate(rows):
        beside = {side for j in near[i] if (side := sides[j]) is not None}
        if row.side is not None:
            sides.append(row.side)
        else:
            sides.append(None if len(beside) > 1 else beside.pop() if beside else own_side(row.topic, data))
    return Split(sides[len(golden) :], templated, near_others)


class Split(NamedTuple):
    """Where the rows go."""

    sides: list[Side | None]
    """None: it is near rows of two sides."""
    templated: int
    """Rows that were made from templates, golden prompts among them."""
    near: int
    """Rows that are near an earlier one."""


class _Compared(NamedTuple):
    topic: str
    pair: str
    side: Side | None = None
    """Where it stands whatever is near it."""
    pictures: tuple[str, ...] = ()
    """Their names; what shows some is compared by these alone."""


def _groups(rows: Sequence[_Compared]) -> tuple[list[list[int]], dict[int, list[int]]]:
    """Rows that are near each other, directly or through others; and for each row the earlier ones that are near it."""
    near = _near(rows)
    members: dict[int, list[int]] = {}
    for i, leader in enumerate(_leaders(len(rows), near)):
        members.setdefault(leader, []).append(i)
    return list(members.values()), near


def _leaders(count: int, near: Mapping[int, Sequence[int]]) -> list[int]:
    """For each row one of those that it is near to, directly or through others: the same one for all of these."""
    leader = list(range(count))

    def lead(i: int) -> int:
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    for i, earlier in near.items():
        for j in earlier:
            leader[lead(j)] = lead(i)
    return [lead(i) for i in range(count)]


def _near(
    rows: Sequence[_Compared], of_topics: frozenset[int] = frozenset(), of_pairs: frozenset[int] = frozenset()
) -> dict[int, list[int]]:
    """For each row the earlier ones that are near it, without what does not count."""
    texts = [i for i, row in enumerate(rows) if not row.pictures]
    topics = earlier_near([signature(rows[i].topic, of_topics) for i in texts])
    pairs = earlier_near([signature(rows[i].pair, of_pairs) for i in texts])
    near = {i: sorted(texts[j] for j in {*one, *other}) for i, one, other in zip(texts, topics, pairs)}
    return near | _showing_the_same([row.pictures for row in rows])


def _showing_the_same(pictures: Sequence[Sequence[str]]) -> dict[int, list[int]]:
    """For each row that shows pictures the earlier ones that show one of them, the first 200 of each picture."""
    showing: dict[str, list[int]] = {}
    near: dict[int, list[int]] = {}
    for i, names in enumerate(pictures):
        if names:
            near[i] = sorted({j for name in names for j in showing.get(name, ())})
        for name in {*names}:
            if len(rows := showing.setdefault(name, [])) < MOST_KEPT:
                rows.append(i)
    return near


def _shared(texts: Sequence[str]) -> frozenset[int]:
    """Trigrams that more than half of the texts hold."""
    counts = Counter(trigram for text in texts for trigram in shingles(text))
    return frozenset(trigram for trigram, count in counts.items() if 2 * count > len(texts))


def _share(text: str, shared: frozenset[int]) -> float:
    found = shingles(text)
    return len(found & shared) / len(found)


def deal(examples: Sequence[Example], data: Data, wanted: Mapping[Side, int], golden: Sequence[str] = ()) -> list[Side]:
    """Sides by the order of the prompts' hashes, the same prompt on one side: none is empty, as far as there are prompts.

    Args:
        wanted: rows that a side needs at least; more where its share gives more.
        golden: prompts that are on the test side, whatever their place.
    """
    rows: dict[int, list[int]] = {}
    near = _showing_the_same([_names(example) for example in examples])
    for i, leader in enumerate(_leaders(len(examples), near)):
        rows.setdefault(content_hash(_compared(examples[leader]).topic), []).append(i)
    left = sorted(rows)
    sides: list[Side] = ["train"] * len(examples)

    def take(side: Side, prompt: int) -> None:
        left.remove(prompt)
        for i in rows[prompt]:
            sides[i] = side

    for prompt in {content_hash(text) for text in golden} & rows.keys():
        take("test", prompt)
    shares: tuple[tuple[Side, float, int], ...] = (("test", data.test, 0), ("validation", data.validation, -1))
    for side, share, end in shares:
        target = max(wanted[side], round(share * len(examples)))
        while len(left) > 1 and sides.count(side) < target:
            take(side, left[end])
    return sides


def resembling(train: Sequence[Example], held_out: Sequence[Example]) -> int:
    """How many held-out rows are near a row that is trained on."""
    near = _near([_compared(example) for example in (*train, *held_out)])
    return sum(any(j < len(train) for j in near[len(train) + i]) for i in range(len(held_out)))


def _compared(example: Example) -> _Compared:
    if pictures := _names(example):
        return _Compared(" ".join(pictures), "", pictures=pictures)
    return _Compared(example.topic, f"{example.topic}\n{example.answer}")


def _names(example: Example) -> tuple[str, ...]:
    return tuple(picture.name for picture in example.pictures)


def choose(examples: Sequence[Example], at_most: int | None) -> set[int]:
    """Indices of the examples with the `at_most` smallest content hashes: the same whatever the order of rows."""
    order = sorted(range(len(examples)), key=lambda i: _whole_hash(examples[i]))
    return set(order if at_most is None else order[:at_most])


def _whole_hash(example: Example) -> bytes:
    shown = "".join(f"\0{name}" for name in _names(example))
    return hashlib.sha256(f"{example.prompt_text}\0{example.answer}{shown}".encode()).digest()
