"""How many rows a recipe will train on, and how long they are: for a plan. Imports no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from toolkit.errors import ToolkitError
from toolkit.models.bases import is_here
from toolkit.recipe.estimates import as_text
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sizes import Shape

if TYPE_CHECKING:
    from toolkit.data.readers import Row
    from toolkit.models.pictures import PictureRules
    from toolkit.recipe.pictured import RowSize

LARGEST_READ = 64 * 2**20


class Rows(NamedTuple):
    """The rows that a recipe will train on."""

    train: int
    held_out: int
    tokens: float
    """Mean tokens of a row, with system text, template and pictures."""
    longest: int
    bytes: int
    shown: float = 0
    """Mean tokens of a row's pictures."""
    largest: int = 0
    """Tokens of the pictures of the row that shows most."""
    pixels: int = 0
    """Of all pictures."""
    patches: int = 1
    """Of a token of a picture."""

    def read(self, shape: Shape) -> float:
        """Tokens of text that cost as much as a row does."""
        return as_text(shape, self.tokens - self.shown, self.shown, self.shown * self.patches)


def rows_of(recipe: Recipe, notes: list[str]) -> Rows:
    """Count rows and guess their tokens: 4 letters a token, a Chinese character 0.7 (2.5 for the embedded base)."""
    from toolkit.data.loading import load
    from toolkit.data.readers import places
    from toolkit.recipe.pictured import RowSize, bytes_of_rows, rows_with_pictures, rules_for

    rules = rules_for(recipe.base)
    of_one = _of_one(rules) if rules and is_here(recipe.base) else []
    if recipe.data is None:
        notes += of_one
        return Rows(0, 0, 64, 128, 0)
    data = recipe.data
    found: list[RowSize] = []
    try:
        files = [file for source in data.readings for _, file in places(source) if file is not None]
        size = sum(bytes_of_rows(inside) for file in files for inside in _files(file))
        if size <= LARGEST_READ:
            loaded = load(data)
            notes += loaded.doubts.values()
            of_file: dict[str, list[Row]] = {file: [] for file in loaded.shapes}
            for row in loaded.table.rows:
                of_file[row.file].append(row)
            for file, shape in loaded.shapes.items():
                pictured = rows_with_pictures(of_file[file], shape, rules, data.learn) if rules else []
                used = list(shape.roles.values())
                found += pictured or [RowSize(_text(row, used), 0, 0) for row in of_file[file]]
    except (ToolkitError, OSError) as error:
        notes += [f"The data cannot be read yet, so it counts as no rows: {error}", *of_one]
        return Rows(0, 0, 64, 128, 0)
    if size > LARGEST_READ:
        notes.append(f"{data.place} is large: rows are guessed at 400 bytes each.")
        found, count = [RowSize("x" * 400, 0, 0)], size // 400
    else:
        found = [one for one in found if data.max_characters is None or len(one.text) <= data.max_characters]
        count = len(found)
    if rules and any(one.tokens for one in found):
        notes += _of_pictures(recipe, found, rules)
    frame = 24 + _tokens(recipe.system, recipe)
    most = recipe.train.max_length
    lengths = [min(frame + _tokens(one.text, recipe) + one.tokens, most) for one in found] or [64.0]
    train = count - round(count * data.validation) - round(count * data.test)
    if data.max_rows is not None:
        train = min(train, data.max_rows)
    held_out = int(count * data.validation)
    shown = [min(one.tokens, most) for one in found] or [0]
    return Rows(
        train, held_out, sum(lengths) / len(lengths), math.ceil(max(lengths)), size, sum(shown) / len(shown), max(shown),
        sum(one.pixels for one in found), rules.merge**2 if rules else 1,
    )  # fmt: skip


def _of_one(rules: PictureRules) -> list[str]:
    each = f"{rules.min_tokens:,}" + (f" to {rules.max_tokens:,}" if rules.max_tokens > rules.min_tokens else "")
    return [f"A row's picture will take {each} tokens, by its size."]


def _of_pictures(recipe: Recipe, rows: list[RowSize], rules: PictureRules) -> list[str]:
    shown = sorted(row.tokens for row in rows if row.tokens)
    told = [
        f"{len(shown):,} of {len(rows):,} rows show pictures, which take {shown[len(shown) // 2]:,} tokens of a row in the "
        f"middle, {shown[-1]:,} at most: the server takes {rules.min_tokens:,} to {rules.max_tokens:,} for each."
    ]
    if not is_here(recipe.base):
        told.append(f"{recipe.base} is not on this machine: its pictures are counted as those of a Qwen2.5-VL.")
    if shown[-1] >= recipe.train.max_length:
        told.append(
            f"Rows with more than train.max_length = {recipe.train.max_length} tokens are left out, and some pictures alone are "
            f"as long: --set train.max_length={shown[-1] + 512}, or smaller pictures."
        )
    return told


def packed(rows: Rows, max_length: int) -> Rows:
    """Rows put behind each other in sequences of `max_length` tokens."""
    sequences = math.ceil(rows.train * rows.tokens / max_length)
    tokens = rows.train * rows.tokens / sequences if sequences else rows.tokens
    return rows._replace(train=sequences, tokens=tokens, longest=max_length)


def _files(file: Path) -> list[Path]:
    return [inside for inside in file.rglob("*") if inside.is_file()] if file.is_dir() else [file]


def _text(row: Row, used: list[str]) -> str:
    """What is in the columns that are used."""
    return "".join(str(row.values.get(column) or "") for column in used)


def _tokens(text: str, recipe: Recipe) -> float:
    ideographs = sum(1 for character in text if ord(character) > 0x2E7F)
    return (len(text) - ideographs) / 4 + ideographs * (2.5 if recipe.base.startswith("embedded:") else 0.7)
