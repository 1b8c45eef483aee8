"""What may be meant otherwise than it is read: a column of labels that nobody can read, or that is not used."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.data.formats.labels import (
    A_HANDFUL,
    LABELS,
    are_labels,
    known_words,
    listed,
    may_judge,
    setting,
    unlike,
    word_of,
)
from toolkit.data.formats.shape import Shape
from toolkit.data.readers import Row
from toolkit.recipe.rows import Reading


def doubt(file: str, shape: Shape, rows: Sequence[Row], reading: Reading) -> str:
    """What is to be said of a column that judges answers, or may; empty: nothing.

    Args:
        rows: the first of the file.
    """
    column = shape.roles.get("label") or may_judge(shape.unused)
    held = [(row.line, row.values[column]) for row in rows if column and word_of(row.values.get(column))]
    if column is None or not held or shape.kind == "preference":
        return ""
    values = [value for _, value in held]
    words = known_words(values, reading.labels)
    if shape.kind == "unpaired":
        odd = [(line, value) for line, value in held if word_of(value) not in words]
        if not odd or reading.labels:
            return ""
        return (
            f"{file}:{odd[0][0]}: {column} holds {listed(value for _, value in odd)}, neither true nor false, in {len(odd)} of "
            f"the first {len(held)} rows: such rows are dropped. To say what it means: {setting(values, words)}"
        )
    few = unlike(values) <= A_HANDFUL
    known = column.strip().casefold() in LABELS
    if not few and not known:
        return ""  # a score, say: it is named among what is not used
    said = f"{file}:{held[0][0]}: {column} holds {listed(values)}, and is not used"
    if shape.kind == "text":
        prompt = f"--set data.columns.prompt={shape.roles['text']} --set data.columns.completion={column}"
        return f"{said}; to learn it as the answer to the text: {prompt}"
    said += ": every answer is learnt, good or bad"
    if not few:
        return f"{said}. If it judges them, put true or false there"
    mends = [] if known and not are_labels(values, words) else [f"--set data.columns.label={column}"]
    mends += [] if are_labels(values, words) else [f"{setting(values, {})}, with true or false for each"]
    return f"{said}. If it judges them: {' '.join(mends)}"
