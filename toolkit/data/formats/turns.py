"""What rows become: conversations with an answer to learn, two answers to choose between, an answer with a label, plain text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from toolkit.data.images.sources import MARK, Picture
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
    """Its text, with a `MARK` in the place of each picture."""
    thinking: str = ""
    """A thought that stands beside the content; one in the content stays there."""
    calls: tuple[Call, ...] = ()
    name: str = ""
    """Of a tool's turn: the function that answered."""
    call_id: str = ""
    pictures: tuple[Picture, ...] = ()
    """Of a user's turn, one for each `MARK`."""

    def record(self) -> dict[str, Any]:
        """The turn as it is written into a split: its content is a text, or a list of typed parts where it has pictures."""
        made: dict[str, Any] = {"role": self.role, "content": list(self._parts()) if self.pictures else self.content}
        if self.thinking:
            made[FIELDS[0]] = self.thinking
        if self.calls:
            made["tool_calls"] = [call.record() for call in self.calls]
        if self.name:
            made["name"] = self.name
        if self.call_id:
            made["tool_call_id"] = self.call_id
        return made

    def _parts(self) -> Iterator[dict[str, str]]:
        """Texts and pictures in order; white space beside a picture is none of the text."""
        pictures = iter(self.pictures)
        for place, text in enumerate(self.content.split(MARK)):
            if place:
                yield {"type": "image", "image": next(pictures).name}
            if text.strip():
                yield {"type": "text", "text": text.strip()}

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
    rejected: tuple[Turn, ...] = ()
    """Of a preference pair: the answer that is worse than the completion."""
    good: bool | None = None
    """Of an answer with a label: whether it is good."""

    @classmethod
    def of_text(cls, file: str, line: int, text: str) -> Example:
        """Plain text: all of it is learnt, and nothing stands before it."""
        return cls(file, line, (), (Turn("assistant", text),), text)

    @property
    def is_text(self) -> bool:
        """It is plain text, not a conversation."""
        return not self.prompt

    @property
    def prompt_text(self) -> str:
        """All that is said before the first answer to learn."""
        return "\n".join(
            turn.content.replace(MARK, "").strip() if turn.pictures else turn.content for turn in self.prompt
        )

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Of all turns, in order."""
        return tuple(picture for turn in self.prompt + self.completion for picture in turn.pictures)

    @property
    def answer(self) -> str:
        """All that is learnt from, thoughts and calls too; of a pair both answers."""
        return "\n".join(turn.text for turn in self.completion + self.rejected if turn.role == "assistant")

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Prompt and answers."""
        return self.prompt + self.completion + self.rejected

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
        place: dict[str, Any] = {"file": self.file, "line": self.line}
        source = {"source": {**place, "name": self.source} if self.source else place}
        if self.is_text:
            return {"text": self.completion[0].content, **source}
        opening = [{"role": "system", "content": self.system}] if self.system else []
        completion = [turn.record() for turn in self.completion]
        return {
            "prompt": opening + [turn.record() for turn in self.prompt],
            **({"chosen": completion} if self.rejected else {"completion": completion}),
            **({"rejected": [turn.record() for turn in self.rejected]} if self.rejected else {}),
            **({"label": self.good} if self.good is not None else {}),
            **({"tools": json.loads(self.tools)} if self.tools else {}),
            **source,
        }
