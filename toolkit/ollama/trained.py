"""What was trained, as a server has to show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.models.picture_block import picture_block
from toolkit.ollama.own_model import Vocabulary

if TYPE_CHECKING:
    from toolkit.models.pictures import PictureRules


@dataclass(frozen=True)
class Trained:
    """What was trained, as a server has to show it."""

    golden: Path
    """The golden stage's folder."""
    system: str
    """The server must bring it itself, since chat apps send none."""
    template: str
    day: str
    """On which the goldens were rendered."""
    new_tokens: int
    """Tokens of an answer at most."""
    ends: tuple[int, ...]
    """Tokens at which the tuned model ends."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the template was told."""
    pictures: PictureRules | None = None
    """What the model was shown of pictures; None: it was trained on texts."""

    def block(self, vocabulary: Vocabulary) -> str:
        """What the template writes for a picture."""
        found = picture_block(self.template, vocabulary.bos_text, vocabulary.eos_text) if self.pictures else None
        return found or ""

    @property
    def picture_tokens(self) -> tuple[int | None, int | None]:
        """The fewest and most of a picture; None: nothing was said of them."""
        return (self.pictures.min_tokens, self.pictures.max_tokens) if self.pictures is not None else (None, None)
