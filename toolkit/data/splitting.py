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

Templates: twenty rows or more that are near each other, directly or through others, and that consist for the most part of what
more than half of them hold, were made from a template ("How do I reset device 12?"). As near duplicates they would all be on one
side, and nothing could be tested. Among themselves they are compared without what most of them hold: by what differs. Appended
rows then move others only where they are a template's twentieth, or change which trigrams most rows hold.

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
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from toolkit.data.formats import Example
from toolkit.errors import UsageError
from toolkit.recipe.rows import Data

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
"""So many rows near each other may have been made from a template."""
_MOST_KEPT = 200
"""Near rows that are remembered of a row: those with more are a template's, and are compared again by what differs."""
_AT_ONCE = 512
_COMPARED_AT_ONCE = 1 << 15
_INSTALL = "Install it: pip install 'tune2ollama[train]'"


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
        shared = _shared([row.topic for row in found]) if len(members) >= TEMPLATE else frozenset()
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


def _groups(rows: Sequence[_Compared]) -> tuple[list[list[int]], dict[int, list[int]]]:
    """Rows that are near each other, directly or through others; and for each row the earlier ones that are near it."""
    leader = list(range(len(rows)))

    def lead(i: int) -> int:
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    near = _near(rows)
    for i, earlier in near.items():
        for j in earlier:
            leader[lead(j)] = lead(i)
    members: dict[int, list[int]] = {}
    for i in range(len(rows)):
        members.setdefault(lead(i), []).append(i)
    return list(members.values()), near


def _near(
    rows: Sequence[_Compared], of_topics: frozenset[int] = frozenset(), of_pairs: frozenset[int] = frozenset()
) -> dict[int, list[int]]:
    """For each row the earlier ones that are near it, without what does not count."""
    topics = earlier_near([signature(row.topic, of_topics) for row in rows])
    pairs = earlier_near([signature(row.pair, of_pairs) for row in rows])
    return {i: sorted({*one, *other}) for i, (one, other) in enumerate(zip(topics, pairs))}


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
    near = _near([_compared(example) for example in (*train, *held_out)])
    return sum(any(j < len(train) for j in near[len(train) + i]) for i in range(len(held_out)))


def _compared(example: Example) -> _Compared:
    return _Compared(example.topic, f"{example.topic}\n{example.answer}")


def choose(examples: Sequence[Example], at_most: int | None) -> set[int]:
    """Indices of the examples with the `at_most` smallest content hashes: the same whatever the order of rows."""
    order = sorted(range(len(examples)), key=lambda i: _whole_hash(examples[i]))
    return set(order if at_most is None else order[:at_most])


def _whole_hash(example: Example) -> bytes:
    return hashlib.sha256(f"{example.prompt_text}\0{example.answer}".encode()).digest()


def shingles(text: str) -> frozenset[int]:
    """CRC-32 of each character trigram of the text's normal form."""
    normal = normalize(text) or text
    trigrams = {normal[i : i + 3] for i in range(max(1, len(normal) - 2))}
    return frozenset(map(zlib.crc32, map(str.encode, trigrams)))


def signature(text: str, without: frozenset[int] = frozenset()) -> Signature:
    """MinHash values of a text's shingles, [126].

    Args:
        without: shingles that do not count, as long as others are left.

    Raises:
        UsageError: datasketch is not installed.
    """
    hashed, whole = _minhash(), shingles(text)
    hashed.clear()
    hashed.update_batch(whole - without or whole)
    values: Signature = hashed.digest()
    return values


@functools.lru_cache(maxsize=1)
def _minhash() -> Any:
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise UsageError("splitting needs datasketch, which is not installed", _INSTALL) from error
    return MinHash(num_perm=VALUES, seed=1, hashfunc=int)


def is_near(one: str, other: str) -> bool:
    """Whether two texts are near duplicates."""
    return bool((signature(one) == signature(other)).sum() >= NEAR)


def earlier_near(signatures: Sequence[Signature]) -> list[list[int]]:
    """For each signature the numbers of the earlier ones that are near it, the first 200 of them.

    Raises:
        UsageError: scipy is not installed.
    """
    import numpy

    found: list[list[int]] = [[] for _ in signatures]
    if len(signatures) < 2:
        return found
    values = numpy.stack(signatures).astype(numpy.uint32)
    bands = _bands(values)
    for start in range(0, len(values), _AT_ONCE):
        end = min(start + _AT_ONCE, len(values))
        shared = (bands[start:end] @ bands[:end].T).tocoo()
        later, earlier = shared.row + start, shared.col
        likely = ((shared.data >= _BANDS_SHARED) & (earlier < later)).nonzero()[0]
        for piece in numpy.array_split(likely, max(1, len(likely) // _COMPARED_AT_ONCE)):
            i, j = later[piece], earlier[piece]
            close = (values[i] == values[j]).sum(axis=1) >= NEAR
            for one, other in zip(i[close].tolist(), j[close].tolist()):
                if len(found[one]) < _MOST_KEPT:
                    found[one].append(other)
    return found


def _bands(values: Signature) -> Any:
    """A sparse matrix [texts, band keys] of ones: three values of a text make a key; those of one text alone are left out."""
    import numpy

    try:
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise UsageError("splitting needs scipy, which is not installed", _INSTALL) from error
    rows, columns, count = [], [], 0
    for start in range(0, VALUES, _BAND):
        keys = numpy.ascontiguousarray(values[:, start : start + _BAND]).view(f"V{4 * _BAND}").ravel()
        _, key, times = numpy.unique(keys, return_inverse=True, return_counts=True)
        several = (times[key] > 1).nonzero()[0]
        rows.append(several)
        columns.append(key[several] + count)
        count += len(times)
    where = (numpy.concatenate(rows), numpy.concatenate(columns))
    return csr_matrix((numpy.ones(len(where[0]), numpy.int32), where), shape=(len(values), count))
