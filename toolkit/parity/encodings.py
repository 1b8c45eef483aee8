"""What a projector's file makes of pictures, kept by their content: to encode one takes longer than all else that it costs.

Beside the projector that it certified, `verify` leaves a folder of what the golden pictures became:
    encoded-pictures/of.json    the projector's SHA-256, and the limits of a picture's tokens
    encoded-pictures/KEY.npy    float32 [tokens, width of the language model]; KEY is the picture's SHA-256 and its number
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.models.json_file import parse_object
from toolkit.run.artifacts import file_sha256, write_json

Values = npt.NDArray[np.float32]
"""Of a picture, [tokens, width of the language model]."""
Limits = tuple[int | None, int | None]
"""Tokens of a picture, at least and at most; None: as the file says."""
_FOLDER = "encoded-pictures"
_BYTES_AT_MOST = 2**30


class Encodings:
    """Of one file, shown pictures under the same limits and computed in the same way: the last gigabyte of them.

    Args:
        folder: where more of them are, of an earlier process.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._kept: dict[str, Values] = {}
        self._folder = folder

    @classmethod
    def beside(cls, mmproj: Path, limits: Limits) -> Encodings:
        """With what `save` left beside a file, where it was of the same file and limits."""
        told = mmproj.parent / _FOLDER / "of.json"
        try:
            known = told.is_file() and parse_object(told.read_bytes()) == _about(mmproj, limits)
        except ValueError:
            known = False
        return cls(told.parent if known else None)

    def save(self, mmproj: Path, limits: Limits) -> None:
        """Keep all of them beside the file that made them, without flash attention."""
        folder = mmproj.parent / _FOLDER
        folder.mkdir()
        for key, values in self._kept.items():
            np.save(folder / f"{key}.npy", values)
        write_json(folder / "of.json", _about(mmproj, limits))

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Values | None:
        """None: it was not encoded yet, or that is long ago."""
        if key not in self._kept and self._folder is not None and (path := self._folder / f"{key}.npy").is_file():
            self.put(key, np.load(path, allow_pickle=False))
        return self._kept.get(key)

    def put(self, key: str, values: Values) -> None:
        """Keep one."""
        self._kept[key] = values
        while sum(kept.nbytes for kept in self._kept.values()) > _BYTES_AT_MOST and len(self._kept) > 1:
            del self._kept[next(iter(self._kept))]


def _about(mmproj: Path, limits: Limits) -> dict[str, Any]:
    return {"mmproj": file_sha256(mmproj), "tokens": list(limits)}
