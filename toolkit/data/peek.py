"""A first look at a user's rows, for `init` and `inspect`: read as a recipe would, without asking back what can be told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from toolkit.data.cleaning import clean
from toolkit.data.formats import Example, Shape
from toolkit.data.languages import language_of
from toolkit.data.loading import Loaded, load, told
from toolkit.data.readers import Dropped
from toolkit.data.readers.header import NoHeader
from toolkit.recipe.rows import Data

NO_HEADER = (
    "the first line looks like a row, so no header is assumed and columns are called 1, 2, … (data.header: false); if it is "
    "one: --set data.header=true"
)
_LANGUAGE_ROWS = 500


@dataclass(frozen=True)
class Peek:
    """What a file or folder holds."""

    data: Data
    """As it was read: `header` is false where the first line looks like a row."""
    loaded: Loaded
    examples: list[Example]
    """Cleaned, with their own system texts; empty where the rows are no questions with answers."""
    dropped: list[Dropped]
    repaired: Counter[str]
    notes: list[str]
    """What was read, what was chosen and what is not used; for people."""

    @property
    def shape(self) -> Shape:
        """Of the first file."""
        return next(iter(self.loaded.shapes.values()))

    @property
    def language(self) -> Literal["zh", "en"]:
        """By the share of Han characters among letters."""
        return language_of(f"{e.prompt_text} {e.answer}" for e in self.examples[:_LANGUAGE_ROWS])

    @property
    def median_characters(self) -> int:
        """Of the examples; 0 where there are none."""
        lengths = sorted(example.characters for example in self.examples)
        return lengths[len(lengths) // 2] if lengths else 0

    @property
    def systems(self) -> Counter[str]:
        """The rows' own system texts; '' for rows without one."""
        return Counter(example.system for example in self.examples)


def peek(data: Data) -> Peek:
    """Read and clean all rows. Raises as `toolkit.data.loading.load`, but for a header that is missing."""
    notes = []
    try:
        loaded = load(data)
    except NoHeader:
        data = data.model_copy(update={"header": False})
        loaded = load(data)
        notes.append(NO_HEADER)
    with_own = data.model_copy(update={"system": "row"})
    examples, dropped, repaired = clean(loaded.table.rows, loaded.shapes, with_own)
    return Peek(
        data,
        loaded,
        examples,
        [*loaded.table.dropped, *dropped],
        repaired,
        [*notes, *told(loaded), *loaded.doubts.values()],
    )
