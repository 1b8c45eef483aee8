"""A projector under judgement (mmproj): the file that sees, beside the language model's."""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from toolkit.errors import DataError
from toolkit.models.pictures import PictureRules, as_given, in_served_order, open_picture, pixels_of, rules_of
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Subject
from toolkit.parity.checks.picture import EQUAL, ShownPicture, picture_check
from toolkit.parity.checks.projector import ReadPrompt, SeenPicture, projector_check
from toolkit.parity.checks.structure import gguf_structure_check
from toolkit.parity.checks.weights import Expected, weights_check
from toolkit.parity.comparison import Comparison
from toolkit.parity.drawn import drawn_rows
from toolkit.parity.encodings import Values
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.eyes import Eyes
from toolkit.parity.golden.goldens import golden_name
from toolkit.parity.metadata import compare_metadata
from toolkit.parity.seeing import Sight
from toolkit.parity.subjects import Tuned
from toolkit.parity.tuning import Tuning
from toolkit.parity.vision import Grid, Vision

NAME = "mmproj"
_ORIENTATION = 0x0112
"""EXIF's tag."""


class Picture(NamedTuple):
    """A golden picture as the tuned model was given it."""

    image: str
    tokens: int
    pixels: Values
    grid: Grid


def seeing(tuned: Tuned) -> Tuned:
    """With the server's rules for pictures, where another tool trained and left none.

    Raises:
        UsageError: how the server prepares pictures for the family is not known.
    """
    if tuned.trained.pictures is not None:
        return tuned
    rules = rules_of(tuned.tuning.folder)
    return replace(tuned, trained=tuned.trained.model_copy(update={"pictures": rules}))


def projector_subject(
    tuned: Tuned, eyes: Eyes, weights: GGUFWeights, compared: Comparison, language: Path, made_from: str,
    tick: Callable[[], None],
) -> Subject:  # fmt: skip
    """The file that sees: what it holds, what it is shown, and what comes out.

    Args:
        language: a file of the language model, which llama.cpp needs beside it.
        tick: is told of every golden.
    """
    started = time.monotonic()
    keys = compare_metadata(tuned.tuning.projector.metadata, weights.header)
    expected = Expected.of(tuned.adapter, tuned.tuning.has_base)
    checks = [gguf_structure_check(compared, keys), weights_check(compared, expected, part="vision")]
    try:
        with Candidate(language) as candidate, eyes.sight(candidate) as sight, tempfile.TemporaryDirectory() as drawn:
            checks += _shown(tuned, eyes, sight, _asked(tuned, eyes, Path(drawn)), tick)
    except DataError as error:
        checks.append(Check(name="projector", verdict="fail", message=error.message))
    return Subject(
        name=NAME, kind="projector", file=weights.path.name, file_type=file_type_of(weights), counts="everything",
        made_from=made_from, checks=checks, seconds=round(time.monotonic() - started, 2),
    )  # fmt: skip


def file_type_of(weights: GGUFWeights) -> str:
    """F16, F32, …: what most of its bytes are."""
    sizes: dict[str, int] = {}
    for tensor in weights.header.tensors:
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.bytes
    return max(sizes, key=sizes.__getitem__, default="")


def _asked(tuned: Tuned, eyes: Eyes, drawn: Path) -> dict[str, dict[str, Any]]:
    """The prompts that show pictures, by name: of the goldens; where none does, of pictures that are drawn into a folder."""
    goldens = tuned.goldens
    if goldens.pictured:
        return {golden_name(number): goldens.rows[number] for number in goldens.pictured}
    eyes.folder = drawn
    rows = drawn_rows(drawn, eyes.rules, tuned.tokenizer, goldens.facts.day, goldens.facts.chat_template_kwargs)
    return {row["pictures"][0]["image"]: row for row in rows}


def _shown(
    tuned: Tuned, eyes: Eyes, sight: Sight, asked: dict[str, dict[str, Any]], tick: Callable[[], None]
) -> list[Check]:
    shown: list[ShownPicture] = []
    pictures: list[Picture] = []
    made: list[Values] = []
    prompts: list[ReadPrompt] = []
    for name, row in asked.items():
        with eyes.read(sight, row) as prompt:
            looks = sight.looks(prompt)
            found = sum(piece.positions for piece in prompt.pieces)
            same = prompt.ids(eyes.rules.image_token_id) == row["prompt_ids"]
        prompts.append(ReadPrompt(name, same, wanted_positions(tuned.tuning, row, eyes.rules), found))
        made += [look.values for look in looks]
        for picture, look in zip(row["pictures"], looks):
            upright, turned = _upright(eyes.folder / picture["image"])
            image = open_picture(eyes.folder / picture["shown"]) if "shown" in picture else upright
            given, grid = pixels_of(image, eyes.rules)
            shown.append(_compared(picture, eyes.rules, given, look.pixels, turned))
            pictures.append(Picture(picture["image"], picture["tokens"], given, grid))
        tick()
    seen = _seen(tuned.tuning, eyes.rules, pictures, made)
    return [
        picture_check(shown, _in_another_order(asked, eyes.rules), eyes.rules.order),
        projector_check(seen, prompts, tuned.tuning.has_base),
    ]


def _in_another_order(asked: dict[str, dict[str, Any]], rules: PictureRules) -> list[str]:
    """Prompts whose parts the server would put otherwise."""
    turns = {name: [turn["content"] for turn in row.get("messages", ())] for name, row in asked.items()}
    return [
        name
        for name, contents in turns.items()
        if any(_kinds(parts) != _kinds(in_served_order(parts, rules)) for parts in contents if isinstance(parts, list))
    ]


def _kinds(parts: list[dict[str, Any]]) -> list[str]:
    """The kinds of parts as they follow each other; several texts in a row are one."""
    return [kind for kind, _ in itertools.groupby(part["type"] for part in parts)]


def _seen(tuning: Tuning, rules: PictureRules, pictures: list[Picture], found: list[Values]) -> list[SeenPicture]:
    """What comes out (`found`) beside what should; the vision part as trained and its base are each read once."""
    made: list[list[Values]] = []
    for part in (lambda w: w.tuned, lambda w: w.base):
        vision = Vision(tuning, part)
        made.append([vision.values(p.pixels, p.grid if rules.kind == "dynamic" else None) for p in pictures])
    return [
        SeenPicture.of(picture.image, picture.tokens, tuned, base, values)
        for picture, tuned, base, values in zip(pictures, *made, found, strict=True)
    ]


def _upright(file: Path) -> tuple[Image.Image, bool]:
    """A picture as training sees it, and whether its file says that it is turned."""
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image).convert("RGB"), turned


def _compared(picture: dict[str, Any], rules: PictureRules, given: Values, shown: Values, turned: bool) -> ShownPicture:
    found, grid = as_given(shown, rules)
    _, down, across = picture["grid"]
    same = found.shape == given.shape
    off = np.abs(found - given) if same else None
    return ShownPicture(
        picture["image"], (across, down), (grid[2], grid[1]), None if off is None else float(off.max()),
        1.0 if off is None else float((off > EQUAL).mean()), turned,
    )  # fmt: skip


def wanted_positions(tuning: Tuning, row: dict[str, Any], rules: PictureRules) -> int:
    """The position behind a golden prompt in the tuned model: a picture of Qwen's takes as many as its longer side has tokens."""
    positions = len(row["prompt_ids"])
    rope = getattr(tuning.config.get_text_config(), "rope_parameters", None) or {}
    if "mrope_section" not in rope:
        return positions
    for picture in row["pictures"]:
        positions += max(picture["grid"][1:]) // rules.merge - picture["tokens"]
    return positions
