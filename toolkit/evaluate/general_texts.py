"""General texts and questions that came with this package: what a model knew before it was tuned.

general/paragraphs.jsonl: language, text. general/questions.jsonl: language, question, choices (the first is right).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from toolkit.models.reference import TeacherForced
from toolkit.parity.checks.tokens import encode

_ASKED = {"en": ("Question: {}\nAnswer:", " {}"), "zh": ("问题：{}\n答案：", "{}")}
"""How a question and a choice are written, by language. No chat template: knowledge is meant here, not manners."""


@dataclass(frozen=True)
class General:
    """General texts as tokens."""

    paragraphs: list[TeacherForced]
    choices: list[list[TeacherForced]]
    """Of each question; the first is right."""
    characters: list[int]
    """Of each choice of all questions, in their order, as they are written."""

    @property
    def sequences(self) -> list[TeacherForced]:
        """All that is read."""
        return [*self.paragraphs, *(choice for question in self.choices for choice in question)]


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of one of the files."""
    text = resources.files("toolkit.evaluate").joinpath("general").joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read_general(tokenizer: Any) -> General:
    """General texts in a model's own tokens. A text begins as its tokenizer begins one, where it does."""
    begin = [token for token in list(tokenizer("", verbose=False)["input_ids"])[:1] if token == tokenizer.bos_token_id]
    paragraphs = []
    for row in rows_of("paragraphs"):
        ids = [*begin, *encode(tokenizer, row["text"])]
        paragraphs.append(TeacherForced(ids, 1))
    choices, characters = [], []
    for row in rows_of("questions"):
        ask, say = _ASKED[row["language"]]
        prompt = [*begin, *encode(tokenizer, ask.format(row["question"]))]
        choices.append(
            [TeacherForced([*prompt, *encode(tokenizer, say.format(one))], len(prompt)) for one in row["choices"]]
        )
        characters += [len(one) for one in row["choices"]]
    return General(paragraphs, choices, characters)
