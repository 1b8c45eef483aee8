"""General texts and questions that no recipe trains on, written for this project (Apache-2.0): what is forgotten shows here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Question(NamedTuple):
    """A question with a few answers, the first of them right."""

    text: str
    choices: list[str]


def paragraphs() -> list[str]:
    """Short paragraphs of plain facts, English and Chinese."""
    return [str(line["text"]) for line in _lines("paragraphs.jsonl")]


def questions() -> list[Question]:
    """General questions, English and Chinese."""
    return [
        Question(str(line["question"]), [str(one) for one in line["choices"]]) for line in _lines("questions.jsonl")
    ]


def _lines(name: str) -> list[dict[str, Any]]:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
