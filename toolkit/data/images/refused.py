"""Why a picture is not taken."""

from __future__ import annotations


class Refused(Exception):
    """A picture that nothing is learnt from.

    Args:
        reason: in words that are counted.
        detail: what it is about: a file, a cell, a size.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail
