"""What a projector's file makes of pictures, kept by their content: to encode one takes longer than all else that it costs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
"""Of a picture, [tokens, width of the language model]."""
_BYTES_AT_MOST = 2**30


class Encodings:
    """Of one file, shown pictures under the same limits and computed in the same way: the last gigabyte of them."""

    def __init__(self) -> None:
        self._kept: dict[str, Values] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Values | None:
        """None: it was not encoded yet, or that is long ago."""
        return self._kept.get(key)

    def put(self, key: str, values: Values) -> None:
        """Keep one."""
        self._kept[key] = values
        while sum(kept.nbytes for kept in self._kept.values()) > _BYTES_AT_MOST and len(self._kept) > 1:
            del self._kept[next(iter(self._kept))]
