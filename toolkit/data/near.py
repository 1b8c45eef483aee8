"""Which texts are near duplicates of which.

At least 88 of 126 MinHash values agree (Broder 1997): a Jaccard index of about 0.7 over character trigrams, with a
standard error of 0.04. Looked up in 42 bands of three values (Indyk and Motwani 1998): 38 values that differ spoil 38 bands at
most, so near texts share four, and nearness depends on the two texts alone.
"""

from __future__ import annotations

import functools
import re
import unicodedata
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from toolkit.errors import UsageError

if TYPE_CHECKING:
    import numpy

    Signature = numpy.ndarray[Any, Any]

NEAR = 88
"""Of `VALUES` MinHash values."""
VALUES = 126
_BAND = 3
_BANDS_SHARED = VALUES // _BAND - (VALUES - NEAR)
"""Bands that near texts have in common at least."""
MOST_KEPT = 200
"""Near rows that are remembered of a row: those with more are a template's, and are compared again by what differs."""
_AT_ONCE = 512
_COMPARED_AT_ONCE = 1 << 15
_INSTALL = "Install it: pip install 'tune2ollama[train]'"


def normalize(text: str) -> str:
    """What near duplicates are compared by: letters and digits alone, in one case and width."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


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
                if len(found[one]) < MOST_KEPT:
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
