"""A look at a user's file, for `tune2ollama init`: which format, which columns, which language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.data.cleaning import clean_text
from toolkit.data.formats import Example, to_example
from toolkit.data.readers import Row, read_table
from toolkit.recipe.schema import Columns, Data

_PROMPT_NAMES = ("prompt", "question", "ask", "query", "instruction", "input", "user", "q", "问题", "提问", "问", "咨询",
                 "問題", "提問", "問", "title", "标题")  # fmt: skip
_COMPLETION_NAMES = ("completion", "answer", "response", "output", "reply", "assistant", "a", "回答", "答案", "回复",
                     "答复", "答", "回覆", "答覆")  # fmt: skip


@dataclass(frozen=True)
class Peek:
    """What a file or folder seems to hold."""

    format: Literal["columns", "alpaca", "messages"]
    encodings: dict[str, str]
    columns: list[str]
    """Those of the first file."""
    prompt: str | None
    """Guessed column; None where the format needs none or no name is known."""
    completion: str | None
    language: Literal["zh", "en"]
    """By the share of Han characters among letters."""
    rows: int
    median_characters: int
    """Of prompt and completion; 0 where the columns are not known."""
    sample: list[tuple[str, str]]
    """The first three pairs of prompt and completion."""


def peek(path: Path, encoding: str | None = None) -> Peek:
    """Read a file or folder and guess. Raises as `toolkit.data.readers.read_table`."""
    table = read_table(path, encoding)
    columns = next(iter(table.columns.values()))
    names = [c.casefold() for c in columns]
    form: Literal["columns", "alpaca", "messages"] = "columns"
    if "messages" in names or "conversations" in names:
        form = "messages"
    elif "instruction" in names and "output" in names:
        form = "alpaca"
    prompt = completion = None
    if form == "columns":
        prompt, completion = _guess(columns, _PROMPT_NAMES), _guess(columns, _COMPLETION_NAMES)
    examples: list[Example] = []
    if form != "columns" or (prompt and completion):
        data = Data(
            path=str(path), format=form, columns=Columns(prompt=prompt or "ask", completion=completion or "answer")
        )
        examples = [found for row in table.rows if isinstance(found := to_example(row, data), Example)]
    lengths = sorted(example.characters for example in examples)
    return Peek(
        format=form,
        encodings=table.encodings,
        columns=columns,
        prompt=prompt,
        completion=completion,
        language=language_of(_texts(table.rows, examples)),
        rows=len(table.rows),
        median_characters=lengths[len(lengths) // 2] if lengths else 0,
        sample=[(clean_text(e.prompt_text)[0], clean_text(e.completion)[0]) for e in examples[:3]],
    )


def language_of(texts: list[str]) -> Literal["zh", "en"]:
    """zh where Han characters are more than three in ten letters: a Han character says about what a short word does."""
    han = letters = 0
    for text in texts:
        han += len(re.findall(r"[\u3400-\u9fff]", text))
        letters += len(re.findall(r"[^\W\d_]", text))
    return "zh" if han > 0.3 * letters else "en"


def _guess(columns: list[str], known: tuple[str, ...]) -> str | None:
    """The column whose name is a known one, or else holds one of at least two letters; the list's order decides."""
    for name in known:
        for column in columns:
            if column.casefold() == name:
                return column
    for name in known:
        for column in columns:
            if (len(name) > 1 or not name.isascii()) and name in column.casefold():
                return column
    return None


def _texts(rows: list[Row], examples: list[Example]) -> list[str]:
    if examples:
        return [f"{e.prompt_text} {e.completion}" for e in examples[:500]]
    return [_joined(row.values) for row in rows[:500]]


def _joined(values: dict[str, Any]) -> str:
    return " ".join(str(value) for value in values.values())
