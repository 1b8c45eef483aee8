"""Train, validation and test: deterministic, no near duplicate on two sides, and rows stay where they are.

The rule, row by row in reading order: a row goes to the side of the earlier rows that are near duplicates of it; without
any, the side is a function of its own text. A row that is near earlier rows of two different sides would leak between
them: it is left out. So

- no two near duplicates are ever on different sides;
- rows appended after the present ones (at the end of a file, or in a file that sorts last) move none of them;
- rows put elsewhere can move only their own near duplicates.

No rule does better without remembering earlier runs: where A and B are alone, only their own texts can decide, and a row
that is near both, put first, must differ from one of them.

Near: at least 88 of 126 MinHash values agree (Broder 1997), of the prompts or of prompt and answer together: a Jaccard
index of about 0.7 over character trigrams, with a standard error of 0.04. Looked up in 42 bands of three values (Indyk and
Motwani 1998): 38 values that differ spoil 38 bands at most, so near texts share four, and nearness depends on the two texts
alone.

Templates: twenty rows or more that are near each other, directly or through others, were made from a template ("How do I reset
device 12?"). As near duplicates they would all be on one side, and nothing could be tested. Among themselves they are compared
without the trigrams that more than half of them hold: by what differs. Appended rows then move others only where they are a
template's twentieth, or change which trigrams most rows hold.

Small files: where the sides that follow from the rows' own texts leave one without rows, whole prompts are dealt out by the
order of their hashes (`deal`). Both ways may part rows that resemble each other: `resembling` counts them.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from toolkit.data.formats import Example
from toolkit.errors import UsageError
from toolkit.recipe.schema import Data

if TYPE_CHECKING:
    import numpy

    Signature = numpy.ndarray[Any, Any]

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")

NEAR = 88
"""Of `VALUES` MinHash values."""
VALUES = 126
_BAND = 3
_BANDS_SHARED = VALUES // _BAND - (VALUES - NEAR)
"""Bands that near texts have in common at least."""
TEMPLATE = 20
"""So many rows near each other were made from a template."""


def normalize(text: str) -> str:
    """What near duplicates are compared by: letters and digits alone, in one case and width."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


def content_hash(text: str) -> int:
    """64 bits of SHA-256 over a text's normal form; texts of signs alone are hashed as they are."""
    return int.from_bytes(hashlib.sha256((normalize(text) or text).encode()).digest()[:8], "big")


def own_side(prompt: str, data: Data) -> Side:
    """The side of a row without near duplicates. Changing one share leaves the other side's rows where they are."""
    place = content_hash(prompt) / 2**64
    if place < data.test:
        return "test"
    return "validation" if place >= 1 - data.validation else "train"


def split(
    examples: Sequence[Example], data: Data, golden: Sequence[str] = (), step: Callable[[], None] = lambda: None
) -> Split:
    """Choose a side for each example.

    Args:
        examples: cleaned, in reading order.
        golden: prompts that stand before all rows on the test side, so that what resembles them is not trained on.
        step: called after each example.

    Raises:
        UsageError: datasketch is not installed.
    """
    rows = [_Compared(prompt, prompt, "test") for prompt in golden]
    rows += [_Compared(example.topic, f"{example.topic}\n{example.answer}") for example in examples]
    groups, near = _groups(rows, step if examples else lambda: None, len(golden))
    templates = [members for members in groups if len(members) >= TEMPLATE]
    for members in templates:
        near.update(_near_by_difference([rows[i] for i in members], members))
    sides: list[Side | None] = []
    for i, row in enumerate(rows):
        found = {side for j in near[i] if (side := sides[j]) is not None}
        if row.side is not None:
            sides.append(row.side)
        else:
            sides.append(None if len(found) > 1 else found.pop() if found else own_side(row.topic, data))
    return Split(sides[len(golden) :], sum(map(len, templates)))


class Split(NamedTuple):
    """Where the rows go."""

    sides: list[Side | None]
    """None: it is near rows of two sides."""
    templated: int
    """Rows that were made from templates, golden prompts among them."""


class _Compared(NamedTuple):
    topic: str
    pair: str
    side: Side | None = None
    """Where it stands whatever is near it."""


def _groups(
    rows: Sequence[_Compared], step: Callable[[], None], before: int
) -> tuple[list[list[int]], dict[int, list[int]]]:
    """Rows that are near each other, directly or through others; and for each row the earlier ones that are near it."""
    topics, pairs = Signatures(), Signatures()
    leader = list(range(len(rows)))
    near: dict[int, list[int]] = {}

    def lead(i: int) -> int:
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    for i, row in enumerate(rows):
        topic, pair = signature(row.topic), signature(row.pair)
        near[i] = sorted(topics.near(topic) | pairs.near(pair))
        topics.add(topic)
        pairs.add(pair)
        for j in near[i]:
            leader[lead(j)] = lead(i)
        if len(near[i]) >= TEMPLATE:  # it will be compared again, by what differs
            near[i] = near[i][:1]
        if i >= before:
            step()
    members: dict[int, list[int]] = {}
    for i in range(len(rows)):
        members.setdefault(lead(i), []).append(i)
    return list(members.values()), near


def _near_by_difference(rows: Sequence[_Compared], numbers: Sequence[int]) -> dict[int, list[int]]:
    """For each row of a template the earlier ones that are near it without what most of them hold."""
    topics, pairs = Signatures(), Signatures()
    of_topics, of_pairs = _shared([row.topic for row in rows]), _shared([row.pair for row in rows])
    near = {}
    for number, row in zip(numbers, rows):
        topic, pair = signature(row.topic, of_topics), signature(row.pair, of_pairs)
        near[number] = [numbers[j] for j in sorted(topics.near(topic) | pairs.near(pair))]
        topics.add(topic)
        pairs.add(pair)
    return near


def _shared(texts: Sequence[str]) -> frozenset[int]:
    """Trigrams that more than half of the texts hold."""
    counts = Counter(trigram for text in texts for trigram in shingles(text))
    return frozenset(trigram for trigram, count in counts.items() if 2 * count > len(texts))


def deal(
    examples: Sequence[Example], data: Data, wanted: Mapping[Side, int], golden: Sequence[str] = ()
) -> list[Side]:
    """Sides by the order of the prompts' hashes, the same prompt on one side: none is empty, as far as there are prompts.

    Args:
        wanted: rows that a side needs at least; more where its share gives more.
        golden: prompts that are on the test side, whatever their place.
    """
    rows: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        rows.setdefault(content_hash(example.topic), []).append(i)
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
    topics, pairs = Signatures(), Signatures()
    for example in train:
        topics.add(signature(example.topic))
        pairs.add(signature(f"{example.topic}\n{example.answer}"))
    return sum(
        bool(topics.near(signature(e.topic)) or pairs.near(signature(f"{e.topic}\n{e.answer}"))) for e in held_out
    )


def choose(examples: Sequence[Example], at_most: int | None) -> set[int]:
    """Indices of the examples with the `at_most` smallest content hashes: the same whatever the order of rows."""
    order = sorted(range(len(examples)), key=lambda i: _whole_hash(examples[i]))
    return set(order if at_most is None else order[:at_most])


def _whole_hash(example: Example) -> bytes:
    return hashlib.sha256(f"{example.prompt_text}\0{example.answer}".encode()).digest()


def shingles(text: str) -> frozenset[int]:
    """CRC-32 of each character trigram of the text's normal form."""
    normal = normalize(text) or text
    return frozenset(zlib.crc32(normal[i : i + 3].encode()) for i in range(max(1, len(normal) - 2)))


def signature(text: str, without: frozenset[int] = frozenset()) -> Signature:
    """MinHash values of a text's shingles, [126].

    Args:
        without: shingles that do not count, as long as others are left.

    Raises:
        UsageError: datasketch is not installed.
    """
    found = _empty_signature().copy()
    whole = shingles(text)
    found.update_batch(list(whole - without or whole))
    values: Signature = found.hashvalues
    return values


@functools.lru_cache(maxsize=1)
def _empty_signature() -> Any:
    try:
        from datasketch import MinHash
    except ImportError as error:
        hint = "Install it: pip install 'tune2ollama[train]'"
        raise UsageError("splitting needs datasketch, which is not installed", hint) from error
    return MinHash(num_perm=VALUES, seed=1, hashfunc=int)


def is_near(one: str, other: str) -> bool:
    """Whether two texts are near duplicates."""
    return bool((signature(one) == signature(other)).sum() >= NEAR)


class Signatures:
    """Signatures in the order in which they were added, and which of them are near another."""

    def __init__(self) -> None:
        self._count = 0
        self._values: Any = None
        """[capacity, 126]; the first `_count` rows are filled."""
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def _keys(self, values: Signature) -> list[tuple[int, bytes]]:
        raw = values.tobytes()
        width = len(raw) // VALUES * _BAND
        return [(start, raw[start : start + width]) for start in range(0, len(raw), width)]

    def near(self, values: Signature) -> set[int]:
        """The numbers of those that are near."""
        import numpy

        members = [found for key in self._keys(values) if (found := self._bands.get(key))]
        if len(members) < _BANDS_SHARED:
            return set()
        # Where rows share a template, the bands name each of them many times: then looking at all is quicker.
        if sum(map(len, members)) > self._count:
            close = ((self._values[: self._count] == values).sum(axis=1) >= NEAR).nonzero()[0]
            return set(close.tolist())
        named, times = numpy.unique(numpy.fromiter(chain.from_iterable(members), numpy.int64), return_counts=True)
        numbers = named[times >= _BANDS_SHARED]
        if not len(numbers):
            return set()
        close = (self._values[numbers] == values).sum(axis=1) >= NEAR
        return set(numbers[close].tolist())

    def add(self, values: Signature) -> None:
        """Take in one more."""
        if self._values is None:
            self._values = values[None].copy()
        elif self._count == len(self._values):
            self._values = self._values[[*range(self._count)] * 2]  # doubled: room for as many again
        self._values[self._count] = values
        for key in self._keys(values):
            self._bands.setdefault(key, []).append(self._count)
        self._count += 1
