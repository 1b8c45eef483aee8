"""What pictures add to the tokens of rows, told from the headers of their files: for a plan. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from toolkit.data.formats import FIRST_ROWS, Example, Shape, read_row
from toolkit.data.images import Picture, Refused, Shelf, opened, size_upright
from toolkit.data.images.sources import MARK
from toolkit.data.readers import Row
from toolkit.errors import ToolkitError
from toolkit.models.bases import is_here, settings_folder
from toolkit.models.pictures import LLAMA_CPP_TOKENS, OLLAMA_MIN_TOKENS, PictureRules, rules_of

MEASURED = 1000
"""Rows of a file whose pictures are looked at, spread over it: it is to take seconds."""
QWEN_VL = PictureRules(
    kind="dynamic", patch=28, min_tokens=OLLAMA_MIN_TOKENS, max_tokens=LLAMA_CPP_TOKENS[1], mean=(0, 0, 0), std=(1, 1, 1),
    image_token="", image_token_id=-1,
)  # fmt: skip
"""Sizes and tokens of Qwen2.5-VL's pictures, for a base that is not on this machine."""


class RowSize(NamedTuple):
    """What a row holds."""

    text: str
    """All words."""
    tokens: int
    """Of its pictures."""
    pixels: int
    """Of its pictures."""


def rules_for(base: str) -> PictureRules | None:
    """How a base is shown pictures; None: it sees none. Of one that is not on this machine, as if it were a Qwen2.5-VL; nothing
    is fetched to find out."""
    if not is_here(base):
        return QWEN_VL
    try:
        return rules_of(settings_folder(base))
    except ToolkitError:  # told by who trains
        return None


def rows_with_pictures(rows: list[Row], shape: Shape, rules: PictureRules, learn: str) -> list[RowSize]:
    """The rows of a file, where its first ones show pictures; else none. Of a large file those between stand for others.

    Rows whose pictures are refused are left out, as they will be dropped.

    Args:
        learn: `Data.learn`.
    """

    def examples(some: Iterable[int]) -> list[Example]:
        found = (read_row(rows[number], shape, learn) for number in some)
        return [one for one in found if isinstance(one, Example)]

    if not any(example.pictures for example in examples(range(min(FIRST_ROWS, len(rows))))):
        return []
    step = -(-len(rows) // MEASURED)
    sizes: dict[object, tuple[int, int]] = {}
    found = []
    for example in examples(range(0, len(rows), step)):
        try:
            shown = [_size(picture, shape.shelf, sizes) for picture in example.pictures]
        except Refused:
            continue
        text = f"{example.prompt_text} {example.answer}".replace(MARK, "")
        found += [
            RowSize(text, sum(rules.tokens(*size) for size in shown), sum(across * down for across, down in shown))
        ] * step
    return found[: len(rows)]


def _size(picture: Picture, shelf: Shelf, known: dict[object, tuple[int, int]]) -> tuple[int, int]:
    source = shelf.find(picture.source)
    if source not in known:
        with opened(source) as stream:
            known[source] = size_upright(stream)
    return known[source]


def bytes_of_rows(file: Path) -> int:
    """Of a file without the pictures that a workbook holds."""
    import zipfile

    size = file.stat().st_size
    if file.suffix.lower() in (".xlsx", ".xlsm"):
        try:
            with zipfile.ZipFile(file) as package:
                size -= sum(part.compress_size for part in package.infolist() if "/media/" in part.filename)
        except (zipfile.BadZipFile, NotImplementedError):  # told by who reads it
            pass
    return max(size, 0)
