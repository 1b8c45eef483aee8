"""Thoughts in answers: how data says them, how a chat template writes them, and which part of an answer is one.

No family is known here by name: a template is asked, by giving it a thought and looking at where it puts it. What it has no
place for is written into the text as most models do, `<think>…</think>`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from toolkit.errors import DataError
from toolkit.models.chat_template import NOTHING_TOLD, Messages, render_whole
from toolkit.models.tools import arguments_of, call_as_sent, shows_call

FIELDS = ("reasoning_content", "thinking", "reasoning")
"""What a thought beside an answer is called: by data sets, by Ollama, by OpenAI-like servers. Templates read one of them."""
OPEN, CLOSE = "<think>", "</think>"
_AS_MOST_DO = (f"{OPEN}\n", f"\n{CLOSE}\n\n")
_OPENING, _CLOSING = re.compile(r"<([\w:]+)>\s*$"), re.compile(r"</([\w:]+)>")
_QUESTION, _THOUGHT, _CONTENT = (f"(stand-in for {what})" for what in ("a question", "a thought", "an answer"))

Render = Callable[[Messages, bool], str | None]
"""A conversation as the template writes it, with or without the opening of the next answer; None: it refuses."""


class Parts(NamedTuple):
    """An answer, its thought apart; both without outer white space."""

    thought: str
    content: str


def in_text(text: str) -> Parts | None:
    """Thought and content of a text that holds its thought itself; None: it holds none.

    The opening mark may be missing: answers of models whose prompt opens the thought are often kept so.
    """
    head, found, content = text.partition(CLOSE)
    if not found:
        return None
    before, opened, thought = head.partition(OPEN)
    if opened and before.strip():  # somewhere in the text: it speaks of the marks
        return None
    return Parts((thought if opened else head).strip(), content.strip())


def never_ends(text: str) -> bool:
    """Whether a text begins with a thought that has no end: it was cut there."""
    return text.lstrip().startswith(OPEN) and CLOSE not in text


def of_message(message: dict[str, Any]) -> Parts:
    """Thought and content of an assistant's turn, wherever the thought is."""
    beside = next((str(message[name]) for name in FIELDS if message.get(name)), "")
    if beside:
        return Parts(beside.strip(), str(message["content"]))
    return in_text(str(message["content"])) or Parts("", str(message["content"]))


@dataclass(frozen=True)
class Marks:
    """What a template writes around a thought."""

    opens: str
    """Before the thought: by the model, or at the prompt's end by the template."""
    closes: str
    """Between the thought and the content."""
    plain: str = ""
    """Before the content of an answer without a thought."""

    def split(self, prompt: str, text: str) -> Parts:
        """Thought and content of the text that a model wrote after a prompt; a thought that was cut has no content.

        Args:
            prompt: as it was rendered; it may have opened the thought, or closed it already.
            text: with the texts of special tokens, as far as they are marks.
        """
        opens, closes, plain = self.opens.strip(), self.closes.strip(), self.plain.strip()
        body = text.strip()
        if not self.opened_by(prompt):
            if plain and body.startswith(plain):
                return Parts("", body[len(plain) :].strip())
            if not opens or not body.startswith(opens):
                return Parts("", body)
            body = body[len(opens) :]
        thought, _, content = body.partition(closes)
        return Parts(thought.strip(), content.strip())

    def opened_by(self, prompt: str) -> bool:
        """Whether a prompt ends inside a thought."""
        return bool(self.opens.strip()) and prompt.rstrip().endswith(self.opens.strip())

    def closed_by(self, tail: str) -> bool:
        """Whether what a template writes after the last turn has ended the thought before the answer begins."""
        return bool(self.closes.strip()) and self.closes.strip() in tail


def marks_of(template: str, fields: Mapping[str, Any] = NOTHING_TOLD) -> Marks | None:
    """What a template writes around a thought; None: it knows none.

    Args:
        fields: that it is rendered with; see `Train.chat_template_kwargs`.
    """
    return _marks_of(template, json.dumps(dict(fields), sort_keys=True))


@functools.lru_cache(maxsize=256)
def _marks_of(template: str, fields: str) -> Marks | None:
    def render(messages: Messages, opens_answer: bool) -> str | None:
        return render_whole(template, messages, "", "", opens_answer=opens_answer, **json.loads(fields))

    question: Messages = [{"role": "user", "content": _QUESTION}]
    prompt = render(question, True) or ""
    answer = {"role": "assistant", "content": _CONTENT}
    plain, content, _ = (render([*question, answer], False) or "").partition(_CONTENT)
    instead = plain[len(prompt) :] if content and plain.startswith(prompt) else ""
    whole = render([*question, {**answer, **dict.fromkeys(FIELDS, _THOUGHT)}], False) or ""
    before, thought, after = whole.partition(_THOUGHT)
    closes, content, _ = after.partition(_CONTENT)
    if thought and content:
        return Marks(_opens(prompt, before, closes), closes, instead)
    opening = _OPENING.search(prompt)
    # It may name the marks without writing a thought: DeepSeek-R1 drops every thought that it is given.
    if opening and f"</{opening[1]}>" in template:
        return Marks(opening[0], f"\n</{opening[1]}>\n\n", instead)
    return Marks(*_AS_MOST_DO, instead) if OPEN in template and CLOSE in template else None


def _opens(prompt: str, before: str, closes: str) -> str:
    """What opens a thought, from a prompt and from what stands before a thought in a whole conversation."""
    if before.startswith(prompt) and before[len(prompt) :].strip():
        return before[len(prompt) :]
    closing = _CLOSING.search(closes)
    if closing and (opening := f"<{closing[1]}>") in before:
        return opening + before.rpartition(opening)[2]
    if prompt.startswith(before):  # the prompt opens it, in its own words
        return prompt.rpartition(_QUESTION)[2]
    return before[_common(before, prompt) :]


def _common(one: str, other: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


class Written(NamedTuple):
    """An answer as it is trained: what follows the prompt, up to and with what ends the turn."""

    text: str
    by_template: bool
    """False: put together here, since the template writes another prompt before an answer than before none."""
    beside_calls: bool = True
    """False: the answer has words beside its calls, and the template leaves them out."""


def written(render: Render, marks: Marks | None, turns: Messages, answer: dict[str, Any]) -> Written:
    """The text to learn after the prompt of `turns`.

    The template's own way is taken wherever it continues the prompt and keeps thought, content and calls whole. Else the answer
    is put together here: the prompt is what a server will render, so whatever is learnt must follow that one.

    Args:
        marks: of `marks_of`.

    Raises:
        DataError: nothing is in the answer; the prompt has closed the thought that the answer brings; or the template shows the
            answer otherwise.
    """
    thought, content = parts = of_message(answer)
    calls = [call_as_sent(call) for call in answer.get("tool_calls") or []]
    if not (content.strip() or calls):
        raise DataError("an answer is empty, so there is nothing to learn", "Take the row out, or write its answer.")
    called = {"tool_calls": calls} if calls else {}

    def ended_by(**turn: Any) -> str | None:
        return render([*turns, {"role": "assistant", **turn, **called}], False)

    prompt, bare, plain = render(turns, True), render(turns, False), ended_by(content=content)
    if prompt is None or bare is None or plain is None:
        raise DataError("the chat template refuses a row", "Look at the roles of its turns, and at its system text.")
    if thought and marks is not None and marks.closed_by(prompt[_common(bare, prompt) :]):
        raise DataError(
            "an answer holds a thought, and the prompt that the chat template writes has closed it before the answer begins",
            "Train the thoughts: --set train.chat_template_kwargs='{enable_thinking: true}' (or what this template calls it); "
            "or take them out of the rows.",
        )
    if not all(_shows(plain, call) for call in calls):
        raise DataError(
            "the chat template does not write an answer's calls", "Choose a base whose template takes tools."
        )
    beside_calls = not calls or content in plain
    if not beside_calls:
        content, parts = "", Parts(thought, "")
    as_text = in_place({**answer, "content": content}) if calls else in_place(answer)
    forms: list[dict[str, Any]] = [{"content": content}]
    if thought:
        forms = [{"content": content, **dict.fromkeys(FIELDS, thought)}, {"content": as_text}]
    for form in forms:
        whole = ended_by(**form)
        if whole is not None and whole.startswith(prompt):
            text = whole[len(prompt) :]
            if _holds(marks, prompt, text, parts) and all(_shows(text, call) for call in calls):
                return Written(text, True, beside_calls)
    head, said = _apart(render, turns, plain, content, bool(calls))
    if marks is not None and marks.opened_by(prompt):
        return Written(f"{thought}{marks.closes}{said}", False, beside_calls)
    # Hermes ends the line of a tool's result before an answer, and not where the prompt ends: both open the answer alike.
    opening = prompt[_common(bare, prompt) :]
    opened_alike = bool(opening.strip()) and head.endswith(opening)
    if not (prompt.startswith(head) or head.startswith(prompt) or opened_alike):
        raise DataError(
            "the chat template renders a prompt alone differently from the same prompt before its answer; "
            "the model would be trained on a context that it never sees",
            "Use a base whose template does not rewrite earlier turns.",
        )
    if thought and marks is not None:
        return Written(f"{marks.opens}{thought}{marks.closes}{said}", False, beside_calls)
    return Written(said if calls else f"{as_text}{said[len(content) :]}", False, beside_calls)


def _apart(render: Render, turns: Messages, plain: str, content: str, calls: bool) -> tuple[str, str]:
    """A conversation that ends with an answer, cut where the answer's content begins, or its calls where there is none.

    Raises:
        DataError: it is not there.
    """
    if content:
        head, found, ending = plain.rpartition(content)
        if found:
            return head, content + ending
    elif calls:
        likewise = render([*turns, {"role": "assistant", "content": _CONTENT}], False) or ""
        head, found, _ = likewise.partition(_CONTENT)
        if found and plain.startswith(head):
            return head, plain[len(head) :]
    raise DataError("the chat template does not show an answer's text as it is", "Choose another base.")


def _shows(text: str, call: dict[str, Any]) -> bool:
    values = [value for value in arguments_of(call).values() if isinstance(value, str) and value.isalnum()]
    return all(shows_call(text, call["function"]["name"], value) for value in values or [""])


def in_place(answer: dict[str, Any]) -> str:
    """The text of an assistant's turn with its thought in it, as most models write one."""
    parts = of_message(answer)
    beside = any(answer.get(name) for name in FIELDS)
    return f"{OPEN}\n{parts.thought}\n{CLOSE}\n\n{parts.content}" if beside else str(answer["content"])


def _holds(marks: Marks | None, prompt: str, text: str, parts: Parts) -> bool:
    at = text.find(parts.thought)
    if at < 0 or parts.content not in text[at + len(parts.thought) :]:
        return False
    if marks is None:
        return True
    opening = _OPENING.search(prompt)
    twice = opening is not None and text.lstrip().startswith(opening[0].strip())
    found = marks.split(prompt, text)
    return not twice and found.thought == parts.thought and (bool(found.content) or not parts.content)


def as_sent_back(turns: Messages, marks: Marks | None) -> Messages:
    """Turns as an app sends them with its next question, and as a server gives them to the template: a thought that the server
    told apart does not come back (Ollama leaves out even one that an app sends; llm/llama_server.go, llamaServerChatMessage).
    """
    return [_sent_back(turn, marks) for turn in turns]


def _sent_back(turn: dict[str, Any], marks: Marks | None) -> dict[str, Any]:
    made = {"role": turn["role"], "content": turn["content"]}
    made |= {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key)}
    if turn["role"] != "assistant":
        return made
    made["content"] = of_message(turn).content if marks else in_place(turn)
    calls = [call_as_sent(call) for call in turn.get("tool_calls") or []]
    return {**made, "tool_calls": calls} if calls else made
