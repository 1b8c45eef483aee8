"""What a chat template made of the rows, in counts and sentences: answers, thoughts, calls, rows in several sequences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toolkit.models.chat_template import NOTHING_TOLD, generated_texts
from toolkit.models.thinking import marks_of, of_message
from toolkit.models.tools import not_sent
from toolkit.train.rows import Answer, answers_of, template_of, tokenize

MARKS_LOOKED_AT = 100
"""Rows whose answers are compared with the template's own marks: it is to cost seconds."""


@dataclass
class Found:
    """What became of the rows."""

    rows: int = 0
    answers: int = 0
    """That are learnt."""
    sequences: int = 0
    """That they are learnt in."""
    split: int = 0
    """Rows in more than one sequence: the template writes earlier turns otherwise than it wrote them as answers."""
    thoughts: int = 0
    """Answers with a thought."""
    put_together: int = 0
    """Answers that the template could not write after its own prompt; see `toolkit.models.thinking.written`."""
    earlier: int = 0
    """Rows with thoughts in earlier turns, which no app sends back."""
    example: str = ""
    """What is learnt before the content of the first answer without a thought; empty: nothing."""
    knows_thoughts: bool = False
    """The template knows thoughts."""
    calls: int = 0
    """Answers with a call."""
    silent_calls: int = 0
    """Of them, those whose words beside the call the template leaves out."""
    not_sent: set[str] = field(default_factory=set)
    """Keys in lists of tools that a server does not pass on."""
    otherwise_marked: int = 0
    """Answers that the template's own `{% generation %}` marks show otherwise."""


def look_at(tokenizer: Any, rows: list[dict[str, Any]], fields: Mapping[str, Any] = NOTHING_TOLD) -> Found:
    """Count what the chat template made of the rows."""
    template = template_of(tokenizer)
    marks = marks_of(template, fields)
    found = Found(len(rows), knows_thoughts=marks is not None)
    marked = "generation" in template
    plain = False
    for number, row in enumerate(rows):
        if "text" in row:
            found.sequences += 1
            continue
        answers, sequences = answers_of(tokenizer, row, fields), len(tokenize(tokenizer, row, fields))
        found.answers += len(answers)
        found.sequences += sequences
        found.split += sequences > 1
        context = [turn for turn in [*row["prompt"], *row.get("completion", ())[:-1]] if turn["role"] == "assistant"]
        found.earlier += marks is not None and any(of_message(turn).thought for turn in context)
        found.not_sent |= not_sent(row.get("tools") or [])
        for answer in answers:
            parts = of_message(answer.turn)
            found.thoughts += bool(parts.thought)
            found.put_together += not answer.written.by_template
            found.calls += bool(answer.turn.get("tool_calls"))
            found.silent_calls += not answer.written.beside_calls
            if not plain and not parts.thought and parts.content:
                plain, found.example = True, answer.written.text.partition(parts.content)[0]
            if marked and number < MARKS_LOOKED_AT and answer.written.by_template:
                found.otherwise_marked += not _marked_so(template, answer, row, fields)
    return found


def _marked_so(template: str, answer: Answer, row: dict[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether the template's own marks call the same text generated: but for white space after its end, as far as they tell."""
    conversation = [*answer.context, answer.turn]
    texts = generated_texts(template, conversation, row.get("tools"), **fields)
    return not texts or texts[-1].strip() == answer.written.text.strip()


def told(found: Found) -> list[str]:
    """The counts, in sentences; none where there is nothing to say."""
    lines = []
    if found.answers > found.rows:
        lines.append(
            f"{found.answers} answers of {found.rows} rows are learnt, each after the prompt of its own place."
        )
    if found.split:
        lines.append(
            f"{found.split} rows are learnt in several sequences, {found.sequences} in all: the chat template writes earlier "
            "turns otherwise than it wrote them as answers."
        )
    if found.calls:
        lines.append(f"{found.calls} of {found.answers} answers call functions, as the template writes calls.")
    if found.silent_calls:
        lines.append(f"{found.silent_calls} answers have words beside their calls, which the template leaves out.")
    if found.not_sent:
        lines.append(
            f"Lists of tools hold {', '.join(sorted(found.not_sent))}: Ollama does not pass that on to a template, so it is "
            "left out in training too."
        )
    if found.thoughts:
        where = (
            "as the template writes them"
            if found.knows_thoughts
            else "inside the answer's text: the template knows none"
        )
        lines.append(f"{found.thoughts} of {found.answers} answers hold a thought, trained {where}.")
    if (found.knows_thoughts or found.thoughts) and found.example.strip() and found.thoughts < found.answers:
        lines.append(
            f"{found.answers - found.thoughts} answers hold none; {json.dumps(found.example)} is learnt before them."
        )
    if found.put_together:
        lines.append(
            f"{found.put_together} answers follow the prompt in words that the template itself does not write there."
        )
    if found.earlier:
        lines.append(
            f"{found.earlier} rows hold thoughts in earlier turns, which are left out: a server keeps them apart, and apps "
            "do not send them back."
        )
    if found.otherwise_marked:
        lines.append(
            f"The template's own generation marks call another text generated than is learnt, of {found.otherwise_marked} "
            "answers: learnt is all that follows the prompt of a server."
        )
    return lines
