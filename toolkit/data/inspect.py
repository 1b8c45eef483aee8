"""`tune2ollama inspect`: rows as the model will see them, and all that is to be known of them before training."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.data.findings import Finding, find
from toolkit.data.formats import Example
from toolkit.data.images import Picture
from toolkit.data.languages import language_of
from toolkit.data.loading import Loaded, for_other_objectives
from toolkit.data.peek import peek
from toolkit.data.prepare import divide
from toolkit.data.readers import Dropped
from toolkit.errors import DataError
from toolkit.models.bases import settings_folder
from toolkit.models.chat_template import template_file
from toolkit.models.light_tokenizer import LightTokenizer
from toolkit.recipe.schema import Recipe
from toolkit.train.rows import TokenizedRow, pair_of, tokenize

SHOWN = 5
SHOWN_WITH_PICTURES = 12
MEASURED = 2000
"""Rows whose tokens are counted, spread over the file, with the longest by their letters among them: it is to take seconds."""
_LONGEST_BY_LETTERS = 100
PLACE_OF_PICTURE = "<image>"
_BARS = 24
_LANGUAGE_CHARACTERS = 200


@dataclass(frozen=True)
class Shown:
    """A row as it is trained."""

    file: str
    line: int
    pieces: list[tuple[str, bool]]
    """(text, whether it is learnt), in order; special tokens are written out."""
    tokens: int
    learnt: int
    pictures: tuple[Picture, ...] = ()
    """Of the whole row; each is `PLACE_OF_PICTURE` in the pieces, and not among the tokens."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows, as the base's template writes them."""

    median: int
    p95: int
    longest: int
    where: str
    """File and line of the longest."""
    max_length: int
    too_long: int
    """Rows of which `train.max_length` leaves something out, by the share of those that were measured."""
    measured: int
    bars: list[tuple[int, int, int]]
    """(from, up to, rows) of a histogram."""


@dataclass(frozen=True)
class Inspection:
    """All that is known."""

    recipe: Recipe
    loaded: Loaded
    notes: list[str]
    kept: int
    dropped: list[Dropped]
    repaired: Counter[str]
    found: list[Finding]
    languages: Counter[str]
    objective: list[str] = field(default_factory=list)
    """What learns from these rows, where it is not the objective of the recipe."""
    rows: list[Shown] = field(default_factory=list)
    lengths: Lengths | None = None
    near: int = 0
    """Rows that nearly duplicate an earlier one."""
    sides: dict[str, int] = field(default_factory=dict)
    resembling: dict[str, int] = field(default_factory=dict)
    """Held-out rows that resemble one that would be trained on."""
    refused: str = ""
    """Why the base's template refuses rows."""


def inspect(recipe: Recipe) -> Inspection:
    """Look at the rows of a recipe.

    Raises:
        UsageError, DataError: what cannot be read, with file and line.
    """
    if recipe.data is None:
        raise DataError("the recipe has no data", "Name a file: tune2ollama inspect FILE")
    seen = peek(recipe.data)
    others = [f"{fault.message}. {fault.hint}" for fault in for_other_objectives(seen.loaded, recipe.train.objective)]
    # Of a file alone nobody has said a rule yet: rows are shown with their own system texts, as `init` keeps them.
    rule = recipe.data.system if recipe.system else "row"
    examples = [example.under(recipe.system, rule) for example in seen.examples]
    records = [_in_words(example) for example in examples]
    named = recipe.train.chat_template
    tokenizer = LightTokenizer(settings_folder(recipe.base), template_file(named) if named is not None else None)
    counting = _Counting(tokenizer, records, recipe)
    found = [finding for of_row in find(examples) for finding in of_row]
    parts, _, alike, near = divide(examples, recipe, [])
    rows, refused = _shown(tokenizer, records, [example.pictures for example in examples], recipe)
    return Inspection(
        recipe, seen.loaded, seen.notes, len(examples), seen.dropped, seen.repaired, found,
        Counter(language_of([(e.prompt_text + e.answer)[:_LANGUAGE_CHARACTERS]]) for e in examples),
        rows=rows, lengths=counting.lengths(examples), near=near, refused=refused,
        sides={side: len(held) for side, held in parts.items()}, resembling=alike, objective=others,
    )  # fmt: skip


def _in_words(example: Example) -> dict[str, Any]:
    """The row as it is written into a split, with pictures as words: templates of bases that see none know no typed parts."""
    record = example.record()
    for turn in record.get("prompt", []) + record.get("completion", []) if example.pictures else ():
        if isinstance(parts := turn["content"], list):
            turn["content"] = "".join(part.get("text", PLACE_OF_PICTURE) for part in parts)
    return record


class _Counting:
    """Tokens of all rows, counted beside everything else: the tokenizer leaves Python alone meanwhile."""

    def __init__(self, tokenizer: LightTokenizer, records: Sequence[dict[str, Any]], recipe: Recipe) -> None:
        self._found: list[int] = []
        self._max_length, self._rows = recipe.train.max_length, len(records)
        self._spread = list(range(0, len(records), -(-len(records) // MEASURED) or 1))
        letters = sorted(range(len(records)), key=lambda i: -len(str(records[i])))
        self._numbers = [*self._spread, *letters[: _LONGEST_BY_LETTERS if len(self._spread) < len(records) else 0]]
        texts = [_whole(tokenizer, records[i], recipe) for i in self._numbers]
        self._thread = threading.Thread(target=lambda: self._found.extend(tokenizer.lengths(texts)))
        self._thread.start()

    def lengths(self, examples: Sequence[Example]) -> Lengths | None:
        """What was counted."""
        self._thread.join()
        if not self._found:
            return None
        ordered = sorted(self._found[: len(self._spread)])
        most = max(self._found)
        longest = examples[self._numbers[self._found.index(most)]]
        share = sum(length > self._max_length for length in ordered) / len(ordered)
        return Lengths(
            median=ordered[len(ordered) // 2], p95=ordered[len(ordered) * 95 // 100], longest=most,
            where=f"{longest.file}:{longest.line}", max_length=self._max_length,
            too_long=round(share * self._rows), measured=len(ordered), bars=_bars(ordered),
        )  # fmt: skip


def _bars(ordered: list[int]) -> list[tuple[int, int, int]]:
    """A histogram up to the 99th percentile; its last bar holds all that is longer."""
    end = ordered[len(ordered) * 99 // 100] + 1
    width = max(1, -(-end // _BARS))
    counts = Counter(min(length // width, _BARS - 1) for length in ordered)
    return [(i * width, (i + 1) * width if i < _BARS - 1 else ordered[-1] + 1, counts[i]) for i in range(_BARS)]


def _whole(tokenizer: LightTokenizer, record: dict[str, Any], recipe: Recipe) -> str:
    """A row as the template writes it; where it refuses, the texts alone, so that a length is known."""
    if "text" in record:
        return str(record["text"])
    answers = [record[key] for key in ("completion", "chosen", "rejected") if key in record]
    turns = [*record["prompt"], *max(answers, key=lambda answer: len(str(answer)))]
    try:
        return tokenizer.apply_chat_template(turns, tools=record.get("tools"), **recipe.train.chat_template_kwargs)
    except Exception:  # whatever a template raises; the rows that are shown say why
        return "\n".join(str(turn["content"]) for turn in turns)


def _shown(
    tokenizer: LightTokenizer,
    records: Sequence[dict[str, Any]],
    pictures: Sequence[tuple[Picture, ...]],
    recipe: Recipe,
) -> tuple[list[Shown], str]:
    """A few rows from all over the file, and why others could not be shown."""
    count = SHOWN_WITH_PICTURES if any(pictures) else SHOWN
    step = max(1, len(records) // count)
    rows, refused = [], ""
    for record, beside in list(zip(records, pictures))[::step][:count]:
        try:
            sequences = _rendered(tokenizer, record, recipe)
        except DataError as error:
            refused = refused or f"{error.message}. {error.hint}"
            continue
        for one in sequences:
            learnt = [label >= 0 for label in one.labels]
            pieces = _pieces(tokenizer, one.input_ids, learnt)
            place = record["source"]
            rows.append(Shown(place["file"], place["line"], pieces, len(learnt), one.learnt, beside))
    return rows[:count], refused


def _rendered(tokenizer: LightTokenizer, record: dict[str, Any], recipe: Recipe) -> Sequence[TokenizedRow]:
    """The row's sequences; of a pair, that of each answer."""
    fields = recipe.train.chat_template_kwargs
    return pair_of(tokenizer, record, fields) if "chosen" in record else tokenize(tokenizer, record, fields)


def _pieces(tokenizer: LightTokenizer, ids: list[int], learnt: list[bool]) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or learnt[i] != learnt[start]:
            pieces.append((tokenizer.decode(ids[start:i]), learnt[start]))
            start = i
    return pieces
