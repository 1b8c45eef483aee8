"""What every part of a recipe is made of."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Strict and frozen: an unknown key or a wrong type is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """' (did you mean X?)' for the closest known spelling, or an empty text."""
    found = difflib.get_close_matches(word.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    return next((f" (did you mean {k}?)" for k in known if found and k.lower() == found[0]), "")
