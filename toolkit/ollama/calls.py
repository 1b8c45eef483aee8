"""Functions: what apps are given when the model calls one, at the two addresses that take functions.

llama.cpp's server takes a call out of the text and gives its name and arguments apart; tokens that it takes out have no
log-probability there. So the text itself is judged by asking with the prompt as it is (raw), token by token
(`toolkit.ollama.served`), and here each address: what it gives, written by the training template, must be what the model wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.errors import DataError, ExternalToolError, ParityError
from toolkit.models.chat_template import render_whole
from toolkit.models.thinking import Marks, marks_of, written
from toolkit.models.tools import CALL_ID, Tools, calls_in, names_and_arguments, offered
from toolkit.ollama.asked import Conversation, Endpoint, Messages, request_fields
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import require_prompt
from toolkit.ollama.told import Told, raw_text, told_at

ADDRESSES: tuple[Endpoint, ...] = ("/api/chat", "/v1/chat/completions")
"""`/api/generate` takes no functions."""


@dataclass(frozen=True)
class Asked:
    """A conversation with functions."""

    name: str
    messages: Messages
    """As an app sends them."""
    tools: Tools
    context: Messages
    """The same with the turns that the served model brings itself."""
    prompt: str
    """As the training template writes it."""


@dataclass
class Shown:
    """What apps were given."""

    answers: int = 0
    with_calls: int = 0
    """Answers whose calls the server told apart."""
    not_offered: int = 0
    """Questions that the model answers with a call of no offered function, or with other arguments: a server that reads calls by
    a grammar makes another answer of it, so nothing is compared."""
    not_read: int = 0
    """Answers that begin a call and go on in words that the template does not write: what a server makes of that is its own
    affair, and nothing is compared."""
    cut: int = 0
    """Questions whose answer is longer than was asked for."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """For every question: what `/api/chat` gave."""


@dataclass(frozen=True)
class Writing:
    """How the training template writes an answer."""

    template: str
    fields: Mapping[str, Any]
    bos: str
    eos: str
    silent: Sequence[str]
    """Texts of control tokens, which a server does not show."""

    @property
    def marks(self) -> Marks | None:
        return marks_of(self.template, self.fields)

    def fits(self, one: Asked, raw: str, told: Told) -> bool:
        """Whether content, thought and calls, written by the template, are the text of the model: but for white space, control
        tokens, and the end of the turn.
        """
        if told.error:
            return False
        said, opening = self._bare(self._after_thought(one, raw)), self._opening(one)
        words, called, _ = said.partition(opening)
        if told.calls and names_and_arguments(calls_in(raw)) == names_and_arguments(told.calls):
            # The same calls, perhaps in other words: a model may write its JSON in another order than the template.
            return self._bare(told.content) == words if called else self._bare(told.content) in said
        if not told.calls:
            return not called and self._bare(told.content) == said
        turn: dict[str, Any] = {"role": "assistant", "content": told.content}
        turn |= {"reasoning_content": told.thinking} if told.thinking else {}
        turn["tool_calls"] = told.calls
        try:
            text, plain = self._written(one, turn), self._written(one, {"role": "assistant", "content": "stand-in"})
        except DataError:
            return False
        ending = self._bare(plain.rpartition("stand-in")[2])
        return self._bare(raw) in {self._bare(text), self._bare(text).removesuffix(ending)}

    def readable(self, one: Asked, raw: str) -> bool:
        """Whether it can be told here which calls a text holds: none, or whole ones in JSON."""
        said = self._bare(self._after_thought(one, raw))
        return self._opening(one) not in said or 0 < said.count('{"name":') == len(calls_in(raw))

    def _opening(self, one: Asked) -> str:
        """What the template writes of a call before its function's name."""
        name = one.tools[0]["function"]["name"]
        call = {"id": CALL_ID, "type": "function", "function": {"name": name, "arguments": {}}}
        text = self._written(one, {"role": "assistant", "content": "", "tool_calls": [call]})
        return self._bare(self._after_thought(one, text).partition(name)[0]) or name

    def _written(self, one: Asked, turn: dict[str, Any]) -> str:
        def render(messages: Messages, opens: bool) -> str | None:
            return render_whole(self.template, messages, self.bos, self.eos, one.tools, opens, **self.fields)

        return written(render, self.marks, one.context, turn).text

    def _after_thought(self, one: Asked, raw: str) -> str:
        return self.marks.split(one.prompt, raw).content if self.marks else raw

    def _bare(self, text: str) -> str:
        for mark in self.silent:
            text = text.replace(mark, "")
        return re.sub(r"\s+", "", text.rstrip("\ufffd"))


def check_calls(
    client: Client, model: str, asked: Sequence[Asked], writing: Writing, bos: str, options: dict[str, Any], limit: int,
    tick: Callable[[], None] = lambda: None,
) -> Shown:  # fmt: skip
    """Ask every conversation with its functions at both addresses, and compare with what the model writes after the same prompt.

    Args:
        bos: text of the token that the tokenizer puts first by itself; empty: none.
        options: sampling; greedy.
        limit: tokens of an answer at most.

    Raises:
        ParityError: another prompt, or an answer of which something is lost, or a call that is not told apart.
    """
    shown = Shown()
    for one in asked:
        sent = Conversation(one.name, one.messages, one.tools)
        made = {endpoint: request_fields(sent, endpoint) for endpoint in ADDRESSES}
        requests = {endpoint: request for endpoint, request in made.items() if not isinstance(request, str)}
        for endpoint, request in requests.items():
            where = f"{one.name}, with its functions at {endpoint}"
            require_prompt(client, model, where, one.prompt, endpoint, request, bos)
        raw, _, whole = raw_text(client, model, one.prompt, bos, options, limit)
        called = calls_in(raw)
        shown.cut += not whole
        shown.not_offered += not offered(called, one.tools)
        if whole and offered(called, one.tools):
            for endpoint, request in requests.items():
                told = _told(client, model, endpoint, request, options, limit)
                if not writing.fits(one, raw, told):
                    # A near-tie may fall otherwise where the prompt was read in other pieces; now both find it read.
                    raw, *_ = raw_text(client, model, one.prompt, bos, options, limit)
                    told = _told(client, model, endpoint, request, options, limit)
                if not writing.fits(one, raw, told):
                    if writing.readable(one, raw):
                        raise ParityError(
                            _otherwise(one, endpoint, raw, told), "The server reads this template's calls otherwise."
                        )
                    shown.not_read += 1
                    continue
                shown.answers += 1
                shown.with_calls += bool(told.calls)
                if endpoint == "/api/chat":
                    example = {"question": one.name, "content": told.content, "calls": names_and_arguments(told.calls)}
                    shown.examples.append(example)
        tick()
    return shown


def _otherwise(one: Asked, endpoint: Endpoint, raw: str, told: Told) -> str:
    calls = ", ".join(f"{name} {arguments}" for name, arguments in names_and_arguments(told.calls)) or "no call"
    given = f"an error ({told.error[-200:]})" if told.error else f"{calls} and the text {told.content[:60]!r}"
    return f"{one.name}, at {endpoint}: the server gives {given}, where the model writes {raw[:160]!r}"


def _told(
    client: Client, model: str, endpoint: Endpoint, request: dict[str, Any], options: dict[str, Any], limit: int
) -> Told:
    """What an address gives, an error too: a server that cannot read its model's call gives one."""
    try:
        return told_at(client, model, endpoint, request, options, limit)
    except ExternalToolError as error:
        return Told("", "", [], error.message)
