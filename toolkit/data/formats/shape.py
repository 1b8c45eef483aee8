"""Which shape the rows of a file have, and why: told from its columns and its first rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from toolkit.data.formats.cells import are_turns, parsed, text_of, together
from toolkit.data.formats.labels import LABELS, are_labels, known_words, listed, setting, word_of
from toolkit.data.formats.messages import KNOWN_KEYS
from toolkit.data.formats.picture_columns import picture_columns
from toolkit.data.images.sources import Shelf
from toolkit.errors import UsageError
from toolkit.models.thinking import FIELDS
from toolkit.recipe.rows import Reading
from toolkit.recipe.section import nearest
from toolkit.recipe.training import Objective

Kind = Literal["columns", "alpaca", "messages", "preference", "unpaired", "text"]
FIRST_ROWS = 100
"""So many rows of a file are looked at."""
_HELD = {
    "preference": "preference pairs",
    "unpaired": "answers labelled good or bad",
    "text": "plain text",
}
_ANSWERS = "questions with answers"
_LEARN_FROM: dict[str, tuple[Objective, ...]] = {
    _ANSWERS: ("sft", "grpo", "rloo"),
    _HELD["preference"]: ("dpo", "orpo", "simpo", "reward"),
    _HELD["unpaired"]: ("kto",),
    _HELD["text"]: ("pretrain",),
}


def objectives_of(held: str) -> tuple[Objective, ...]:
    """The objectives that learn from rows which hold this; see `Shape.held`."""
    return _LEARN_FROM[held]


def rows_for(objective: Objective) -> str:
    """What rows must hold for an objective."""
    return next(held for held, objectives in _LEARN_FROM.items() if objective in objectives)


PROMPT_NAMES = ("prompt", "question", "ask", "query", "instruction", "input", "user", "q", "问题", "提问", "问", "咨询",
                "問題", "提問", "問", "title", "标题")  # fmt: skip
COMPLETION_NAMES = ("completion", "answer", "response", "output", "reply", "assistant", "a", "回答", "答案", "回复",
                    "答复", "答", "回覆", "答覆")  # fmt: skip
_TURNS_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
_BESIDE = {
    "system": ("system", "system_prompt", "系统", "系統"),
    "history": ("history", "历史", "歷史"),
    "tools": ("tools", "functions"),
}
_TEXTS = ("text", "content", "文本", "内容")
_HANDFUL = 20


@dataclass(frozen=True)
class Shape:
    """What the columns of a file are."""

    kind: Kind
    reason: str
    """Why, in a few words."""
    roles: dict[str, str] = field(default_factory=dict)
    """prompt, completion, thinking, system, history, tools, input, messages, chosen, rejected, label, text → column."""
    unused: tuple[str, ...] = ()
    """Columns, and keys of turns, that nothing is made of."""
    labels: dict[str, bool] = field(default_factory=dict)
    """Where a column judges answers: its word → whether that says good."""
    pictures: tuple[str, ...] = ()
    """Columns that hold pictures."""
    pictures_first: bool = True
    """The first of them stands before the one with the questions."""
    shelf: Shelf = field(default_factory=Shelf)
    """Where the names of its pictures lead."""

    @property
    def held(self) -> str:
        """What its rows hold, in words."""
        return _HELD.get(self.kind, _ANSWERS)


def shape_of(name: str, columns: Sequence[str], rows: Sequence[dict[str, Any]], reading: Reading) -> Shape:
    """The shape of a file.

    Args:
        name: of the file, for messages.
        columns: all that its rows have, in order.
        rows: the first `FIRST_ROWS` of them, and some later ones, in which only pictures are looked for.

    Raises:
        UsageError: a column that the recipe names is missing, or no columns look like questions and answers.
    """
    chosen = reading.columns.model_dump()
    image = chosen.pop("image")
    named = {*chosen.values()} - {None}
    free = [column for column in columns if column not in named]
    pictures = picture_columns(free, rows, image, (*PROMPT_NAMES, *COMPLETION_NAMES, *_TEXTS))
    seen = _Columns(name, [column for column in columns if column not in pictures], rows[:FIRST_ROWS])
    if image and not pictures:
        seen.missing(image, list(columns), "data.columns.image")
    for role, column in chosen.items():
        if column is not None:
            seen.take(role, column, f"data.columns.{role}")
    if reading.format == "auto":
        kind, reason = _found(seen, reading)
        asked = {chosen["prompt"], chosen["completion"]} - {None}
        if chosen["label"] is not None:
            kind, reason = "unpaired", "data.columns.label is set"
        elif asked and (kind == "columns" or asked & set(columns)):
            kind, reason = "columns", "data.columns names them"
        elif asked:  # a recipe made for tables, given rows of another shape
            seen.roles, seen.faults = {}, []
    else:
        kind = "messages" if reading.format == "sharegpt" else reading.format
        reason = f"data.format is {reading.format}"
    _FILL[kind](seen)
    for role, names in _BESIDE.items():
        if kind in ("columns", "alpaca", "messages", "preference", "unpaired"):
            seen.find(role, names)
    labels = _labels(seen, reading) if kind == "unpaired" and not seen.faults else {}
    if seen.faults:
        hints = "\n".join(dict.fromkeys(fault.hint for fault in seen.faults))
        raise UsageError("\n".join(fault.message for fault in seen.faults), hints)
    asking = next((seen.roles[role] for role in ("prompt", "messages") if role in seen.roles), "")
    first = not (pictures and asking) or columns.index(pictures[0]) < columns.index(asking)
    unused = (*seen.left(), *_unused_keys(seen))
    return Shape(kind, reason, seen.roles, unused, labels, pictures, first)


class _Columns:
    """A file's columns, and which role each has been given."""

    def __init__(self, name: str, columns: list[str], rows: Sequence[dict[str, Any]]) -> None:
        self.name, self.columns, self.rows = name, columns, rows
        self.roles: dict[str, str] = {}
        self.faults: list[UsageError] = []

    def left(self) -> list[str]:
        return [column for column in self.columns if column not in self.roles.values()]

    def take(self, role: str, column: str, key: str) -> None:
        if column in self.columns:
            self.roles[role] = column
        else:
            self.missing(column, self.columns, key)

    def missing(self, column: str, columns: list[str], key: str) -> None:
        self.faults.append(
            UsageError(
                f"{self.name}:1: no column {column!r}{nearest(column, columns)}; it has: {_listed(columns)}",
                f"Say which it is: --set {key}=…",
            )
        )

    def find(self, role: str, names: Sequence[str], within: bool = False) -> bool:
        """Give a role to the first column with one of these names, or with one in its name."""
        if role not in self.roles and (found := _named(self.left(), names, within)):
            self.roles[role] = found
        return role in self.roles

    def need(self, role: str, names: Sequence[str]) -> None:
        if not self.find(role, names):
            self.take(role, names[0], "data.format")

    def values(self, column: str) -> list[Any]:
        return [row[column] for row in self.rows if row.get(column) not in (None, "")]

    def with_turns(self) -> str | None:
        holds = [c for c in self.columns if (found := self.values(c)) and all(map(are_turns, found[:_HANDFUL]))]
        return _named(holds, _TURNS_NAMES, True) or next(iter(holds), None)


def _listed(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _HANDFUL} more" if len(columns) > _HANDFUL else ""
    return ", ".join(columns[:_HANDFUL]) + more if columns else "none"


def _named(columns: Sequence[str], names: Sequence[str], within: bool) -> str | None:
    """The column whose name is one of these, or else holds one of at least two letters; the order of names decides."""
    for name in names:
        for column in columns:
            if column.strip().casefold() == name:
                return column
    for name in names if within else ():
        for column in columns:
            if (len(name) > 1 or not name.isascii()) and name in column.casefold():
                return column
    return None


def _found(seen: _Columns, reading: Reading) -> tuple[Kind, str]:
    names = {column.strip().casefold() for column in seen.columns}
    if {"chosen", "rejected"} <= names:
        return "preference", "it has the columns chosen and rejected"
    turns = seen.with_turns()
    label = _named(seen.columns, LABELS, False)
    if label is not None and (reading.labels or names & {"prompt", "messages", "conversations"}):
        values = seen.values(label)
        answers = turns or _named([column for column in seen.columns if column != label], COMPLETION_NAMES, True)
        words = known_words(values, reading.labels)
        if answers and (
            are_labels(values, words) or (reading.labels and any(word_of(value) in words for value in values))
        ):
            return "unpaired", f"it has the column {label} with {listed(values)}"
    if turns is not None and not {"prompt", "completion"} <= names:
        how = "from and value, as in ShareGPT" if "from" in parsed(seen.values(turns)[0])[0] else "role and content"
        return "messages", f"{turns} holds lists of turns ({how})"
    if named := _named(seen.columns, _TURNS_NAMES[:2], False):
        return "messages", f"it has the column {named}"
    if "instruction" in names and names & {"output", "response"}:
        return "alpaca", "it has the columns instruction and " + ("output" if "output" in names else "response")
    asked, answered = (_named(seen.columns, n, True) for n in (PROMPT_NAMES, COMPLETION_NAMES))
    if asked and answered and asked != answered:
        return "columns", f"its columns are called {asked} and {answered}"
    if len(seen.columns) == 1:
        return "text", f"it has one column, {seen.columns[0]}"
    if (named := _named(seen.columns, _TEXTS, False)) and not (asked or answered):
        return "text", f"it has the column {named}, and none for answers"
    if len(seen.columns) == 2:
        return "columns", "it has two columns"
    if len(_with_texts(seen)) == 2:
        return "columns", "two of its columns hold texts"
    return "columns", "nothing else fits"


def _with_texts(seen: _Columns) -> list[str]:
    """Columns whose cells are texts of some length, most of them unlike each other."""
    chosen = []
    for column in seen.columns:
        texts = [text_of(value) or "" for value in seen.values(column)]
        if texts and sum(map(len, texts)) > 10 * len(texts) and 2 * len(set(texts)) > len(texts):
            chosen.append(column)
    return chosen


def _fill_columns(seen: _Columns) -> None:
    if seen.faults:
        return
    seen.find("prompt", PROMPT_NAMES, True)
    seen.find("completion", COMPLETION_NAMES, True)
    missing = [role for role in ("prompt", "completion") if role not in seen.roles]
    free = [column for column in seen.left() if column.casefold() not in FIELDS]
    texts = [column for column in _with_texts(seen) if column in free]
    for pool in (free, texts):
        if missing and len(pool) == len(missing):
            seen.roles.update(zip(missing, pool))
            return
    if missing:
        what = "the questions" if "prompt" in missing else "the answers"
        seen.faults.append(
            UsageError(
                f"{seen.name}:1: it has the columns {_listed(seen.columns)}, and none of them looks like {what}",
                "Say which they are: "
                + " ".join(f"--set data.columns.{role}=…" for role in missing)
                + " (or rename them in the file: prompt for what is asked, completion for what is answered)",
            )
        )


def _fill_alpaca(seen: _Columns) -> None:
    seen.need("prompt", ("instruction",))
    seen.need("completion", ("output", "response"))
    seen.find("input", ("input", "context"))


def _fill_messages(seen: _Columns) -> None:
    turns = _named(seen.columns, _TURNS_NAMES, False) or seen.with_turns()
    if turns is None:
        seen.take("messages", "messages", "data.format")
    else:
        seen.roles["messages"] = turns


def _fill_preference(seen: _Columns) -> None:
    seen.find("prompt", PROMPT_NAMES)
    seen.find("input", ("input", "context"))
    seen.need("chosen", ("chosen",))
    seen.need("rejected", ("rejected",))


def _fill_unpaired(seen: _Columns) -> None:
    seen.need("label", LABELS)
    if not seen.find("messages", _TURNS_NAMES):
        _fill_columns(seen)
        seen.find("input", ("input", "context"))


def _labels(seen: _Columns, reading: Reading) -> dict[str, bool]:
    column = seen.roles["label"]
    values = seen.values(column)
    words = known_words(values, reading.labels)
    if values and not any(word_of(value) in words for value in values):
        seen.faults.append(
            UsageError(
                f"{seen.name}:1: {column} holds {listed(values)}: nothing says which of these mean a good answer",
                f"Say it: {setting(values, words)}, with true or false for each",
            )
        )
    return words


def _fill_text(seen: _Columns) -> None:
    if len(seen.columns) == 1:
        seen.roles["text"] = seen.columns[0]
    else:
        seen.need("text", _TEXTS)


_FILL: dict[str, Callable[[_Columns], None]] = {
    "columns": _fill_columns, "alpaca": _fill_alpaca, "messages": _fill_messages, "preference": _fill_preference,
    "unpaired": _fill_unpaired, "text": _fill_text,
}  # fmt: skip


def _unused_keys(seen: _Columns) -> list[str]:
    """Keys of turns that nothing is made of."""
    column = seen.roles.get("messages")
    turns = [turn for value in (seen.values(column) if column else []) if isinstance(value, list) for turn in value]
    keys = dict.fromkeys(key for turn in turns if isinstance(turn, dict) and not together(turn) for key in turn)
    return [f"{column}[].{key}" for key in keys if key not in KNOWN_KEYS]


def thought_columns(shape: Shape) -> list[str]:
    """Unused columns that are called as a thought is."""
    return [name for name in shape.unused if name.strip().casefold() in FIELDS]
