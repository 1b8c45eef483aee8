"""Pictures in sequences of tokens: where they stand, and what a model is given of them beside the token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.errors import DataError
from toolkit.models.pictures import PictureRules, in_served_order, open_picture, pixels_of, size_of_picture
from toolkit.run.artifacts import read_jsonl

if TYPE_CHECKING:
    import torch

SHOWN = "shown"
"""Key of a row that shows pictures: its `Shown`. In memory only; the files hold names."""


@dataclass(frozen=True)
class Shown:
    """Where a row's pictures lie, and how a server shows them."""

    folder: Path
    rules: PictureRules


class Picture(NamedTuple):
    """A picture that a sequence of tokens shows."""

    path: Path
    rules: PictureRules
    end: int = 0
    """Behind its last token."""


def seen_rows(folder: Path, split: str, rules: PictureRules | None) -> list[dict[str, Any]]:
    """The rows of a split, their turns' parts as the server orders them at /api/chat.

    Every other row to learn from has them as /api/generate does: `ollama run NAME ./photo.png "…"` asks there.

    Args:
        folder: of the prepare stage; it holds the pictures that rows name.
        rules: of the base; None: it sees nothing, or nothing is to be seen.

    Raises:
        DataError: a row shows a picture to a base that sees none.
    """
    rows = read_jsonl(folder / f"{split}.jsonl")
    learnt = split == "train"
    return [as_seen(row, folder, rules.turned() if rules and learnt and i % 2 else rules) for i, row in enumerate(rows)]


def as_seen(row: dict[str, Any], folder: Path, rules: PictureRules | None) -> dict[str, Any]:
    """A row as `seen_rows` gives it; one without pictures comes back as it is."""
    if not any(isinstance(turn["content"], list) for turn in row.get("prompt", ())):
        return row
    if rules is None:
        place = row.get("source") or {}
        raise DataError(
            f"{place.get('file', folder)}:{place.get('line', '?')}: the row shows a picture, and the base sees none",
            "Name a base that sees, as recipes/car_insurance.yaml does.",
        )
    return {**row, "prompt": [_ordered(turn, rules) for turn in row["prompt"]], SHOWN: Shown(folder, rules)}


def _ordered(turn: dict[str, Any], rules: PictureRules) -> dict[str, Any]:
    content = turn["content"]
    return {**turn, "content": in_served_order(content, rules)} if isinstance(content, list) else turn


def picture_names(turns: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The names of the pictures that turns show, in their order."""
    for turn in turns:
        if isinstance(turn["content"], list):
            yield from (str(part["image"]) for part in turn["content"] if part["type"] == "image")


def with_files(turns: Sequence[dict[str, Any]], files: Iterable[Path]) -> list[dict[str, Any]]:
    """Turns whose pictures are named by the files' paths, as whoever sends them wants it.

    Args:
        files: of all pictures, in their order.
    """
    left = iter(files)
    return [
        {**turn, "content": [{**p, "image": str(next(left))} if p["type"] == "image" else p for p in turn["content"]]}
        if isinstance(turn.get("content"), list) else turn
        for turn in turns
    ]  # fmt: skip


def expanded(ids: list[int], turns: Sequence[dict[str, Any]], shown: Shown) -> tuple[list[int], tuple[Picture, ...]]:
    """Token ids with as many tokens for each picture as it has, instead of one.

    Args:
        ids: of the rendered turns.
        turns: what they were rendered of.

    Raises:
        DataError: the template does not write one mark for each picture, or a picture cannot be read.
    """
    rules, names = shown.rules, [*picture_names(turns)]
    made: list[int] = []
    pictures: list[Picture] = []
    if ids.count(rules.image_token_id) != len(names):
        raise DataError(
            f"the chat template writes {ids.count(rules.image_token_id)} times {rules.image_token} for {len(names)} pictures",
            "Take the mark out of the texts, or name a template that writes one for each: --set train.chat_template=FILE",
        )
    for token in ids:
        if token != rules.image_token_id:
            made.append(token)
            continue
        path = shown.folder / names[len(pictures)]
        made += [token] * rules.tokens(*size_of_picture(path))
        pictures.append(Picture(path, rules, len(made)))
    return made, tuple(pictures)


def given(ids: torch.Tensor, pictures: Sequence[Picture]) -> dict[str, torch.Tensor]:
    """What a model that sees is given beside token ids; nothing where there are no pictures.

    Args:
        ids: [sequences, tokens].
        pictures: of all sequences, one after the other.

    Returns:
        pixel_values float32; for the Qwen-VL families image_grid_thw [pictures, 3]; and which tokens are a picture's, by the
        name that transformers' processors give it.
    """
    import numpy as np
    import torch

    if not pictures:
        return {}
    rules = pictures[0].rules
    found = [pixels_of(open_picture(picture.path), rules) for picture in pictures]
    marks = (ids == rules.image_token_id).long()
    if rules.kind == "fixed":
        values = torch.from_numpy(np.stack([pixels for pixels, _ in found]))
        return {"pixel_values": values.to(ids.device), "token_type_ids": marks}
    values = torch.from_numpy(np.concatenate([pixels for pixels, _ in found]))
    grid = torch.tensor([grid for _, grid in found], device=ids.device)
    return {"pixel_values": values.to(ids.device), "image_grid_thw": grid, "mm_token_type_ids": marks}
