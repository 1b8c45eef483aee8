"""What rows become: conversations to learn from, and rows of kinds that other methods learn from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from toolkit.models.thinking import FIELDS

Role = Literal["user", "assistant", "tool"]


@dataclass(frozen=True)
class Call:
    """An assistant's call of a function."""

    name: str
    arguments: str
    """A JSON object."""
    id: str = ""

    def record(self) -> dict[str, Any]:
        """As OpenAI writes it, with the arguments as an object."""
        return {"type": "function", "function": {"name": self.name, "arguments": json.loads(self.arguments)}}


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: Role
    content: str
    thinking: str = ""
    """A thought that stands beside the content; one in the content stays there."""
    calls: tuple[Call, ...] = ()
    name: str = ""
    """Of a tool's turn: the function that answered."""
    call_id: str = ""

    def record(self) -> dict[str, Any]:
        """The turn as it is written into a split."""
        made: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking:
            made[FIELDS[0]] = self.thinking
        if self.calls:
            made["tool_calls"] = [call.record() for call in self.calls]
        if self.name:
            made["name"] = self.name
        if self.call_id:
            made["tool_call_id"] = self.call_id
        return made

    @property
    def text(self) -> str:
        """All that is said in it: thought, content and calls."""
        return "\n".join(filter(None, (self.thinking, self.content, *(f"{c.name} {c.arguments}" for c in self.calls))))


@dataclass(frozen=True)
class Example:
    """A conversation: what stands before the first answer to learn, and what follows."""

    file: str
    line: int
    prompt: tuple[Turn, ...]
    """Ends with a user's or a tool's turn; the system text stands apart."""
    completion: tuple[Turn, ...]
    """Begins and ends with an assistant's turn; every one of these is learnt."""
    topic: str
    """The text that tells near duplicates: all that the user says; for Alpaca rows the input, since many share an instruction."""
    system: str = ""
    """The row's own system text."""
    tools: str = ""
    """The functions that may be called: a JSON list as OpenAI writes it; empty: none."""
    source: str = ""
    """Its source's name, where there are several."""
    notes: tuple[str, ...] = ()
    """What reading it changed, in words that are counted."""

    @property
    def prompt_text(self) -> str:
        """All turns before the first answer to learn."""
        return "\n".join(turn.content for turn in self.prompt)

    @property
    def answer(self) -> str:
        """All that is learnt, thoughts and calls too."""
        return "\n".join(turn.text for turn in self.completion if turn.role == "assistant")

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Prompt and completion."""
        return self.prompt + self.completion

    @property
    def characters(self) -> int:
        """Of all turns."""
        return sum(len(turn.text) for turn in self.turns)

    def under(self, system: str, rule: str) -> Example:
        """The row with the system text that it is trained with.

        Args:
            system: the recipe's.
            rule: `Data.system`.
        """
        own = self.system
        chosen = {"recipe": system, "row": own or system, "both": "\n\n".join(filter(None, (system, own)))}[rule]
        return replace(self, system=chosen)

    def record(self) -> dict[str, Any]:
        """The row as it is written into a split."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        source: dict[str, Any] = {"file": self.file, "line": self.line}
        return {
            "prompt": opening + [turn.record() for turn in self.prompt],
            "completion": [turn.record() for turn in self.completion],
            **({"tools": json.loads(self.tools)} if self.tools else {}),
            "source": {**source, "name": self.source} if self.source else source,
        }


@dataclass(frozen=True)
class Preference:
    """Two answers to the same prompt, one of them better."""

    file: str
    line: int
    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    system: str = ""


@dataclass(frozen=True)
class Unpaired:
    """An answer that is good, or one that is not."""

    file: str
    line: int
    prompt: tuple[Turn, ...]
    completion: tuple[Turn, ...]
    good: bool
    system: str = ""


@dataclass(frozen=True)
class Text:
    """Text without question and answer."""

    file: str
    line: int
    text: str


Found = Example | Preference | Unpaired | Text
