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
Motwani 1998): 38 values that differ cannot spoil 42 bands, so no near pair is missed, and nearness depends on the two
texts alone.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

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
) -> list[Side | None]:
    """Choose a side for each example; None: it is near rows of two sides.

    Args:
        examples: cleaned, in reading order.
        golden: prompts that stand before all rows on the test side, so that what resembles them is not trained on.
        step: called after each example.

    Raises:
        UsageError: datasketch is not installed.
    """
    topics, pairs = _Placed(), _Placed()
    sides: list[Side | None] = []
    for prompt in golden:
        topics.add(signature(prompt), "test")
    for example in examples:
        topic, pair = signature(example.topic), signature(f"{example.topic}\n{example.completion}")
        found = topics.near(topic) | pairs.near(pair)
        side: Side | None = None
        if len(found) <= 1:
            side = found.pop() if found else own_side(example.topic, data)
            topics.add(topic, side)
            pairs.add(pair, side)
        sides.append(side)
        step()
    return sides


def choose(examples: Sequence[Example], at_most: int | None) -> set[int]:
    """Indices of the examples with the `at_most` smallest content hashes: the same whatever the order of rows."""
    order = sorted(range(len(examples)), key=lambda i: _whole_hash(examples[i]))
    return set(order if at_most is None else order[:at_most])


def _whole_hash(example: Example) -> bytes:
    return hashlib.sha256(f"{example.prompt_text}\0{example.completion}".encode()).digest()


def shingles(text: str) -> frozenset[int]:
    """CRC-32 of each character trigram of the text's normal form."""
    normal = normalize(text) or text
    return frozenset(zlib.crc32(normal[i : i + 3].encode()) for i in range(max(1, len(normal) - 2)))


def signature(text: str) -> Signature:
    """MinHash values of a text's shingles, [126].

    Raises:
        UsageError: datasketch is not installed.
    """
    found = _empty_signature().copy()
    found.update_batch(list(shingles(text)))
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


class _Placed:
    """Signatures with their sides, and which sides hold one near a new signature."""

    def __init__(self) -> None:
        self._count = 0
        self._values: Any = None
        """[capacity, 126]; the first `_count` rows are filled."""
        self._sides: list[Side] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def _keys(self, values: Signature) -> list[tuple[int, bytes]]:
        return [(start, values[start : start + _BAND].tobytes()) for start in range(0, VALUES, _BAND)]

    def near(self, values: Signature) -> set[Side]:
        members = [found for key in self._keys(values) if (found := self._bands.get(key))]
        if not members:
            return set()
        # Where rows share a template, the bands name each of them many times: then looking at all is quicker.
        everything = sum(map(len, members)) > self._count
        numbers = range(self._count) if everything else sorted(set().union(*members))
        rows = self._values[: self._count] if everything else self._values[numbers]
        close = ((rows == values).sum(axis=1) >= NEAR).nonzero()[0]
        return {self._sides[numbers[i]] for i in close}

    def add(self, values: Signature, side: Side) -> None:
        if self._values is None:
            self._values = values[None].copy()
        elif self._count == len(self._values):
            self._values = self._values[[*range(self._count)] * 2]  # doubled: room for as many again
        self._values[self._count] = values
        for key in self._keys(values):
            self._bands.setdefault(key, []).append(self._count)
        self._sides.append(side)
        self._count += 1
