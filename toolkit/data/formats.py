"""From a row to a conversation: columns, Alpaca (instruction, input, output), or messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from toolkit.data.readers import Row, Table
from toolkit.errors import UsageError
from toolkit.models.thinking import FIELDS
from toolkit.recipe.schema import Data, nearest

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}
_MESSAGE_COLUMNS = ("messages", "conversations")


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: str
    """user or assistant."""
    content: str
    thinking: str = ""
    """A thought that stands beside the content; one in the content stays there."""

    def record(self) -> dict[str, str]:
        """The turn as it is written into a split."""
        beside = {FIELDS[0]: self.thinking} if self.thinking else {}
        return {"role": self.role, "content": self.content, **beside}


@dataclass(frozen=True)
class Example:
    """A prompt (it ends with a user's turn) and the answer to learn."""

    file: str
    line: int
    prompt: tuple[Turn, ...]
    completion: str
    topic: str
    """The text that tells near duplicates: the prompt; for Alpaca rows the input, since many share an instruction."""
    own_system: bool = False
    """The row brought a system text; the recipe's takes its place."""
    thinking: str = ""
    """The answer's thought, where it stands beside the answer."""

    @property
    def prompt_text(self) -> str:
        """All turns of the prompt."""
        return "\n".join(turn.content for turn in self.prompt)

    @property
    def characters(self) -> int:
        """Of prompt, thought and completion."""
        return sum(len(turn.content) for turn in self.prompt) + len(self.thinking) + len(self.completion)

    def record(self, system: str) -> dict[str, Any]:
        """The row as it is written into a split."""
        opening = [{"role": "system", "content": system}] if system else []
        return {
            "prompt": opening + [turn.record() for turn in self.prompt],
            "completion": [Turn("assistant", self.completion, self.thinking).record()],
            "source": {"file": self.file, "line": self.line},
        }


def required_columns(data: Data) -> list[str]:
    """The columns that every file must have; for messages, one of `messages` and `conversations`."""
    if data.format == "columns":
        return [name for name in _columns(data) if name]
    return ["instruction", "output"] if data.format == "alpaca" else ["messages"]


def _columns(data: Data) -> list[str]:
    """Of the prompt, the completion and the thought; empty where none is named."""
    return [data.columns.prompt, data.columns.completion, data.columns.thinking or ""]


def unused_thoughts(data: Data, columns: list[str]) -> list[str]:
    """Columns that are called as a thought is, and that the recipe does not read."""
    if data.format == "messages" or data.columns.thinking:
        return []
    return [name for name in columns if name.casefold() in FIELDS and name not in required_columns(data)]


def missing_columns(data: Data, name: str, columns: list[str]) -> list[UsageError]:
    """A fault for each column that the recipe names and the file does not have, with the nearest name that it has."""
    if data.format == "messages" and any(c in columns for c in _MESSAGE_COLUMNS):
        return []
    named = ("data.columns.prompt", "data.columns.completion", "data.columns.thinking")
    keys = {"columns": named}.get(data.format, ("data.format",) * 2)
    faults = []
    for column, key in zip(required_columns(data), keys):
        if column not in columns:
            shown = ", ".join(columns[:20])
            faults.append(
                UsageError(
                    f"{name}:1: no column {column!r}{nearest(column, columns)}; it has: {shown}",
                    f"Say which it is: --set {key}=…",
                )
            )
    return faults


def check_columns(data: Data, table: Table) -> None:
    """Raise UsageError with every missing column of every file."""
    faults = [fault for name, columns in table.columns.items() for fault in missing_columns(data, name, columns)]
    if faults:
        hints = "\n".join(dict.fromkeys(fault.hint for fault in faults))
        raise UsageError("\n".join(fault.message for fault in faults), hints)


def to_example(row: Row, data: Data) -> Example | str:
    """A row as an example, or the reason why it is none: not text, no answer in the messages."""
    if data.format == "messages":
        return _from_messages(row)
    names = ["instruction", "output", "input"] if data.format == "alpaca" else _columns(data)
    texts = [_text(row.values.get(name)) for name in names]
    if any(text is None for text in texts):
        return "a cell is not text"
    prompt, completion = texts[0] or "", texts[1] or ""
    given = (texts[2] or "").strip() if data.format == "alpaca" else ""
    whole = f"{prompt}\n\n{given}" if given else prompt
    thinking = (texts[2] or "") if data.format == "columns" else ""
    return Example(row.file, row.line, (Turn("user", whole),), completion, given or prompt, thinking=thinking)


def _text(value: Any) -> str | None:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _from_messages(row: Row) -> Example | str:
    found = next((row.values[c] for c in _MESSAGE_COLUMNS if row.values.get(c)), None)
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except ValueError:
            return "messages are not a JSON list"
    if not isinstance(found, list) or not found:
        return "messages are not a list of turns"
    turns = [_turn(item) for item in found]
    if any(turn is None for turn in turns):
        return "a turn is not role and content (user, assistant or system)"
    spoken = [turn for turn in turns if turn is not None and turn.role != "system"]
    last = max((i for i, turn in enumerate(spoken) if turn.role == "assistant"), default=0)
    if last == 0 or any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(spoken[: last + 1])):
        return "turns do not alternate from user to assistant"
    prompt = tuple(spoken[:last])
    topic = "\n".join(turn.content for turn in prompt)
    answer = spoken[last]
    return Example(row.file, row.line, prompt, answer.content, topic, len(spoken) < len(turns), answer.thinking)


def _turn(item: Any) -> Turn | None:
    if not isinstance(item, dict):
        return None
    role = _ROLES.get(str(item.get("role", item.get("from", ""))))
    content = _text(item.get("content", item.get("value")))
    thinking = next((_text(item[name]) for name in FIELDS if item.get(name)), "")
    return None if role is None or content is None or thinking is None else Turn(role, content, thinking)
