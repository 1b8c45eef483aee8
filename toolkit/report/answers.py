"""Golden questions with the answers of the base, of the tuned model and of the server, for people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.models.thinking import in_text
from toolkit.ollama.asked import words_of
from toolkit.run.artifacts import read_jsonl

SHOWN_ANSWERS = 2


@dataclass(frozen=True)
class Answer:
    """One golden question, as the base and as the tuned model answer it (greedily)."""

    question: str
    before: str
    after: str
    ended: bool
    """The tuned model ended its answer by itself."""
    served: str = ""
    """What the server answers; where functions were sent along and it told a call apart, the call's name and arguments."""
    pictures: tuple[Path, ...] = ()
    """That it is about."""
    changed: bool = True
    """The tuned model says something else than the base."""
    called: bool = False
    """The server was given a call."""

    @property
    def title(self) -> str:
        """The question, and the files of its pictures."""
        names = ", ".join(picture.name for picture in self.pictures)
        return f"{self.question} ({names})" if names else self.question


def read_answers(golden: Path, served: Path) -> list[Answer]:
    """Every golden question with its answers, in their order.

    Args:
        golden: the golden stage's folder.
        served: what the server showed; need not be there.
    """
    called, texts = _given(served)
    answers = []
    for number, row in enumerate(read_jsonl(golden / "golden.jsonl"), 1):
        call = called.get(f"golden question {number}", "")
        said = texts[number - 1] if number <= len(texts) else ""
        answers.append(
            Answer(
                _question(row), _whole(row["base_completion"]), _whole(_without_marks(row)), row["stopped"],
                call or _whole(said), tuple(golden / picture["image"] for picture in row.get("pictures", ())),
                row["completion"] != row["base_completion"], bool(call),
            )
        )  # fmt: skip
    return answers


def shown_answers(answers: list[Answer]) -> list[Answer]:
    """The few that show most: a call first, then an answer in words."""
    # A question where nothing changed shows nothing, and an answer that was cut shows less than one that ended.
    best = sorted(answers, key=lambda one: (not one.changed, not one.ended))
    shown = [*[one for one in best if one.called][:1], *[one for one in best if not one.called]]
    return (shown if len(shown) >= SHOWN_ANSWERS else best)[:SHOWN_ANSWERS]


def _question(row: dict[str, Any]) -> str:
    """The last question; what functions gave since, in brackets."""
    turns = row["messages"]
    results = [turn["content"] for turn in turns if turn["role"] == "tool"] if turns[-1]["role"] == "tool" else []
    last = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    return " ".join([words_of(last), *(f"({result})" for result in results)])


def _given(served: Path) -> tuple[dict[str, str], list[str]]:
    """The calls that the server told apart, by question; and what it answered to every question, in their order."""
    if not served.is_file():
        return {}, []
    checks = json.loads(served.read_text(encoding="utf-8"))["checks"]
    examples = [one for check in checks for one in check["details"].get("calls", [])]
    texts = [text for check in checks for text in check["details"].get("texts", [])]
    calls = {one["question"]: "\n".join(f"{name}({arguments})" for name, arguments in one["calls"]) for one in examples}
    return calls, [_thought_apart(text) for text in texts]


def _thought_apart(text: str) -> str:
    parts = in_text(text)
    return f"({parts.thought}) {parts.content}" if parts and parts.thought else parts.content if parts else text


def _without_marks(row: dict[str, Any]) -> str:
    """An answer for people: its thought, where there is one, in brackets."""
    content, thought = row.get("content"), row.get("thinking")
    if not content:  # cut within the thought
        return str(row["completion"]).strip()
    return f"({thought}) {content}" if thought else str(content)


def _whole(answer: str) -> str:
    """Without the half character at which an answer was cut."""
    return answer.rstrip("\ufffd").strip()
