"""Rows that were not trained on, as tokens to read and as questions to ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from toolkit.models.chat_template import NOTHING_TOLD
from toolkit.models.ends import turn_end
from toolkit.models.pictures import PictureRules
from toolkit.models.reference import TeacherForced
from toolkit.models.seen import SHOWN, Picture, expanded, seen_rows
from toolkit.models.thinking import Marks, marks_of
from toolkit.models.tools import Tools, as_sent
from toolkit.parity.checks.tokens import encode
from toolkit.train.rows import TokenizedRow, answers_of, pair_of, template_of, tokenize

Kind = Literal["answers", "pairs", "labels", "texts"]
"""What rows hold: an answer each; a better and a worse one; one that is labelled good or bad; plain text."""
SPLITS = ("test", "validation")
"""In this order: the validation split may have had a say in the training."""
ROWS_READ = 32
"""Rows whose losses are measured, at most: it is to cost seconds."""


class Question(NamedTuple):
    """What is asked of a row, and what it says itself."""

    text: str
    """The prompt as the chat template writes it, up to where the answer begins."""
    ids: list[int]
    messages: list[dict[str, Any]]
    """As an app sends them."""
    tools: Tools | None
    reference: str
    """The row's own answer as the template writes it, thoughts and calls included, without the end of the turn."""
    content: str
    """The same as it stands in the row: what rewards are given."""
    pictures: tuple[Picture, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """Tells it from others: the prompt, and the pictures' names."""
        return (self.text, *(picture.path.name for picture in self.pictures))


@dataclass
class HeldOut:
    """Rows to be measured on; the lists run alike."""

    kind: Kind = "answers"
    rows: list[dict[str, Any]] = field(default_factory=list)
    sides: list[list[list[TokenizedRow]]] = field(default_factory=list)
    """The sequences of each row: of its answer (or text); of pairs first of the chosen, then of the rejected one."""
    questions: list[Question] = field(default_factory=list)
    """One of each of the first rows, where they ask something."""
    too_long: int = 0
    """Rows that are left out, since they do not fit into `train.max_length` tokens."""
    splits: dict[str, int] = field(default_factory=dict)
    """Split → its rows among these."""
    marks: Marks | None = None
    """What the template writes around thoughts."""

    @property
    def sequences(self) -> list[TeacherForced]:
        """All that is read, row by row and side by side."""
        return [TeacherForced(p.input_ids, p.first, p.pictures) for row in self.sides for side in row for p in side]


def kind_of(row: Mapping[str, Any]) -> Kind:
    """What a row holds."""
    if "text" in row:
        return "texts"
    if "chosen" in row:
        return "pairs"
    return "labels" if "label" in row else "answers"


def of_dataset(
    folder: Path,
    tokenizer: Any,
    max_length: int,
    asked: int,
    fields: Mapping[str, Any] = NOTHING_TOLD,
    pictures: PictureRules | None = None,
) -> HeldOut:
    """The held-out rows of a dataset artifact's folder.

    Args:
        max_length: tokens of a row at most.
        asked: rows that are asked for answers, at most.
        fields: what the chat template is told.
        pictures: how those of the rows are shown.
    """
    rows = [{**row, "split": split} for split in SPLITS for row in seen_rows(folder, split, pictures)]
    return of_rows(rows, tokenizer, max_length, asked, fields)


def of_rows(
    rows: list[dict[str, Any]], tokenizer: Any, max_length: int, asked: int, fields: Mapping[str, Any] = NOTHING_TOLD
) -> HeldOut:
    """The first of these rows that are short enough; see `of_dataset`.

    Raises:
        DataError: the template refuses a row; with file and line.
    """
    found = HeldOut(kind=kind_of(rows[0]) if rows else "answers")
    if found.kind != "texts":
        found.marks = marks_of(template_of(tokenizer), fields)
    for row in rows:
        if len(found.rows) == max(ROWS_READ, asked):
            break
        sides = _sides(tokenizer, row, fields)
        if any(len(part.input_ids) > max_length for side in sides for part in side):
            found.too_long += 1
            continue
        if found.kind == "answers" and len(found.questions) < asked:
            found.questions.append(question_of(tokenizer, row, fields))
        split = str(row.get("split", ""))
        found.splits[split] = found.splits.get(split, 0) + 1
        found.rows.append(row)
        found.sides.append(sides)
    return found


def _sides(tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any]) -> list[list[TokenizedRow]]:
    if kind_of(row) == "pairs":
        return [[side] for side in pair_of(tokenizer, row, fields)]
    return [tokenize(tokenizer, row, fields)]


def question_of(tokenizer: Any, row: dict[str, Any], fields: Mapping[str, Any] = NOTHING_TOLD) -> Question:
    """The first question of a row. Of a conversation with functions that is the one that is answered by a call."""
    answer = answers_of(tokenizer, row, fields)[0]
    end, ids = _turn_ends(tokenizer, answer.written.text), encode(tokenizer, answer.prompt)
    pictures: tuple[Picture, ...] = ()
    if SHOWN in row:
        ids, pictures = expanded(ids, answer.context, row[SHOWN])
    return Question(
        answer.prompt,
        ids,
        answer.context,
        as_sent(row.get("tools")),
        answer.written.text[:end],
        str(answer.turn["content"]),
        pictures,
    )


def _turn_ends(tokenizer: Any, written: str) -> int:
    """Where, in a written answer, the end of the turn begins."""
    end = turn_end(tokenizer)
    place = written.rfind(end.text) if end is not None and end.written else -1
    return place if place >= 0 else len(written)
