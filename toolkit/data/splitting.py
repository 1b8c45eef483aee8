"""Train, validation and test: deterministic, no near duplicate on two sides, and rows stay where they are.

The rule, row by row in reading order: a row goes to the side of the earlier rows that are near duplicates of it; without
any, the side is a function of its own text. A row that is near earlier rows of two different sides would leak between
them: it is left out. So

- no two near duplicates are ever on different sides;
- rows appended after the present ones (at the end of a file, or in a file that sorts last) move none of them;
- rows put elsewhere can move only their own near duplicates.

No rule does better without remembering earlier runs: where A and B are alone, only their own texts can decide, and a row
that is near both, put first, must differ from one of them.

Near: a Jaccard index of at least 0.7 over character trigrams, of the prompts or of prompt and answer together. MinHash
with banding (Broder 1997; Indyk and Motwani 1998) proposes pairs, 99.98 % of those at 0.7; the exact index decides.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

from toolkit.data.formats import Example
from toolkit.errors import UsageError
from toolkit.recipe import Data

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")

NEAR = 0.7
_BANDS, _ROWS_PER_BAND = 32, 4


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
    topics, pairs = _Near(), _Near()
    sides: list[Side | None] = []
    placed: list[Side] = []
    for prompt in golden:
        topics.add(prompt, len(placed))
        placed.append("test")
    for example in examples:
        whole = f"{example.topic}\n{example.completion}"
        near = topics.find(example.topic) | pairs.find(whole)
        found = {placed[i] for i in near}
        side: Side | None = None
        if len(found) <= 1:
            side = found.pop() if found else own_side(example.topic, data)
            topics.add(example.topic, len(placed))
            pairs.add(whole, len(placed))
            placed.append(side)
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


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Shared members divided by all members."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


class _Near:
    """Texts seen so far, and which of them are near a new one."""

    def __init__(self) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            hint = "Install it: pip install 'tune2ollama[train]'"
            raise UsageError("splitting needs datasketch, which is not installed", hint) from error
        count = _BANDS * _ROWS_PER_BAND
        self._index = MinHashLSH(num_perm=count, params=(_BANDS, _ROWS_PER_BAND))
        self._empty = MinHash(num_perm=count, seed=1, hashfunc=int)
        self._sets: dict[int, frozenset[int]] = {}
        self._last: tuple[str, frozenset[int], Any] | None = None

    def _signature(self, text: str) -> tuple[frozenset[int], Any]:
        if self._last is None or self._last[0] != text:
            members = shingles(text)
            signature = self._empty.copy()
            signature.update_batch(list(members))
            self._last = (text, members, signature)
        return self._last[1:]

    def find(self, text: str) -> set[int]:
        members, signature = self._signature(text)
        return {i for i in self._index.query(signature) if jaccard(members, self._sets[i]) >= NEAR}

    def add(self, text: str, number: int) -> None:
        self._sets[number], signature = self._signature(text)
        self._index.insert(number, signature)
