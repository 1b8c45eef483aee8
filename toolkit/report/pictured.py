"""pictures.html: what a model that sees says of the golden pictures, before, after and served.

One file that needs no network and runs no script; everything in it is untrusted, and is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from toolkit.report.answers import Answer
from toolkit.report.evaluated import evaluation_lines
from toolkit.report.markdown import inline, markdown_table
from toolkit.report.page import PAGE, SIGNS, WORDS, sentence
from toolkit.report.summary import Summary
from toolkit.run.artifacts import new_file, write_text

PICTURES = "pictures.html"
FOLDER = "pictures"
SIDE = 480
"""Pixels of a shown picture's longer side, at most."""


@dataclass(frozen=True)
class Card:
    """A question about pictures."""

    answer: Answer
    pictures: list[tuple[str, str]]
    """File name and data URL of each."""
    kept: bool
    """The server answers as the tuned model did."""


def write_pictures(summary: Summary, out: Path) -> list[str]:
    """Write pictures.html, and the pictures in small beside it.

    Returns:
        Of each question the file of its first picture, relative to `out`; empty where none is about pictures.
    """
    if not summary.pictured:
        return []
    (out / FOLDER).mkdir(exist_ok=True)
    cards, files = [], []
    for number, answer in enumerate(summary.pictured, 1):
        small = [_small(picture) for picture in answer.pictures]
        files.append(f"{FOLDER}/{number}.png")
        with new_file(out / files[-1]) as target:
            target.write_bytes(small[0])
        urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in small]
        names = [picture.name for picture in answer.pictures]
        cards.append(Card(answer, list(zip(names, urls)), answer.served == answer.after))
    write_text(out / PICTURES, _page(summary, cards))
    return files


def pictured_table(answers: Sequence[Answer], files: Sequence[str]) -> str:
    """The same in Markdown, a row a question."""
    served = any(answer.served for answer in answers)
    head = ("picture", "question", "before", "after", *(["served"] if served else []))
    rows = [
        (f"![{answer.pictures[0].name}]({file})", answer.question, *_said(answer, served))
        for answer, file in zip(answers, files)
    ]
    return markdown_table(head, [tuple(map(inline, row)) for row in rows])


def _said(answer: Answer, served: bool) -> list[str]:
    return [answer.before, answer.after, *([answer.served] if served else [])]


def _small(picture: Path) -> bytes:
    from PIL import Image

    with Image.open(picture) as image:
        image.thumbnail((SIDE, SIDE))
        target = io.BytesIO()
        image.convert("RGB").save(target, "PNG")
    return target.getvalue()


def _page(summary: Summary, cards: list[Card]) -> str:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["sentence"] = sentence
    served = [card for card in cards if card.answer.served]
    certificate: dict[str, Any] = summary.certificate
    return environment.get_template("pictured.html.jinja").render(
        name=summary.name, model=summary.model, cards=cards, served=len(served), kept=sum(card.kept for card in served),
        changed=sum(card.answer.changed for card in cards), verdict=certificate["verdict"],
        message=certificate["message"], certificate=PAGE, signs=SIGNS, words=WORDS, trained=dict(summary.trained),
        losses=dict(summary.losses), helped=evaluation_lines(summary.evaluation) if summary.evaluation else [],
        warnings=[warning for warning in certificate.get("warnings", []) if "picture" in warning],
        commands=summary.commands,
    )  # fmt: skip
