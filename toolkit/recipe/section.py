"""What every part of a recipe is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Strict and frozen: an unknown key or a wrong type is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
