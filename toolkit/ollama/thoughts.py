"""Models that think: what apps are shown when they ask for thoughts, for none, or say nothing.

At `/api/chat` and `/v1/chat/completions` llama.cpp's server takes the thought out of the text and gives it apart; tokens that it
takes out have no log-probability there. `/api/generate` shows the text as the model writes it. So the text itself is judged by
asking with the prompt as it is (raw), token by token, and each address by putting thought and content together again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ParityError
from toolkit.models.chat_template import AS_TRAINED, EFFORT, THINKING, render_trained
from toolkit.models.thinking import Marks
from toolkit.ollama.asked import ENDPOINTS, Conversation, Messages, request_fields
from toolkit.ollama.client import Client
from toolkit.ollama.predict import COUNTS_WHAT_IT_KEPT, GENERATE_RENDERS, numbers, thinks
from toolkit.ollama.told import Raw, Told, raw_text, told_at

Think = bool | str | None
"""What an app says: yes, no, a level, or nothing."""
A_LEVEL = "high"
THINKS: tuple[Think, ...] = (None, True, False, A_LEVEL)
MODE_TOKENS = 64
"""Of an answer, at most: whole answers are judged token by token elsewhere."""


def keeps_to_training(served: str) -> bool:
    """Whether a file's template was mended so that it writes training's prompt whatever `think` says, but for a level."""
    return THINKING + AS_TRAINED in served


def told_by(think: Think, fields: Mapping[str, Any], kept: bool) -> dict[str, Any]:
    """What the training template has to be told to write what a server is to write.

    Args:
        fields: that it was told in training.
        kept: whether the served template `keeps_to_training`.
    """
    if isinstance(think, str):  # llm/llama_server.go, llamaServerChatTemplateKwargs; common/jinja/caps.cpp of llama.cpp
        return {**fields, THINKING: True, EFFORT: think, "reasoning_strength": think}
    return {**fields} if think is None or kept else {**fields, THINKING: think}


def who_sees_what(served: str, fields: Mapping[str, Any]) -> list[str]:
    """Which apps get the prompt that was trained, and which another one of the template's; empty where it is always the same.

    Args:
        served: the template in the file.
        fields: what it was told in training.
    """
    question = [{"role": "user", "content": "?"}]

    def rendered(think: Think) -> str:
        return render_trained(served, question, "", "", **told_by(True if think is None else think, {}, False)) or ""

    trained = rendered(None)
    named: dict[Think, str] = {
        True: "think: true",
        False: "think: false",
        A_LEVEL: f'think: "{A_LEVEL}" (or another level)',
    }
    other = [think for think in named if rendered(think) != trained]
    if not thinks(served) or not other:
        return []
    same = ["say nothing", *(f"say {name}" for think, name in named.items() if think not in other)]
    told = f" (the template told {json.dumps(dict(fields), sort_keys=True)})" if fields else ""
    lines = [f"Apps that {' or '.join(same)} get the prompt that was trained{told}."]
    for think in other:
        end = json.dumps(rendered(think).rpartition("?")[2], ensure_ascii=False)
        lines.append(f"Apps that say {named[think]} get a prompt that was not trained; it ends with {end}.")
    return lines


@dataclass(frozen=True)
class Asked:
    """A question, asked in one way."""

    name: str
    messages: Messages
    think: Think
    prompt: str
    """As the training template writes it then."""

    @property
    def called(self) -> str:
        said = {None: "think unset", True: "think true", False: "think false"}
        return f"{self.name}, {said[self.think] if not isinstance(self.think, str) else f'think {self.think!r}'}"


@dataclass
class Shown:
    """What apps were shown."""

    answers: int = 0
    with_thoughts: int = 0
    """Answers with a thought that the server told apart."""
    with_marks: int = 0
    """Answers that show the marks of their thought in the text."""


def ways_of(
    name: str, messages: Messages, template: str, fields: Mapping[str, Any], kept: bool, bos: str, eos: str,
    before: Sequence[dict[str, Any]],
) -> list[Asked]:  # fmt: skip
    """A question in every way in which an app may ask it.

    Args:
        template: of the training.
        before: turns that the served model brings itself.
    """
    found = []
    for think in THINKS:
        prompt = render_trained(template, [*before, *messages], bos, eos, **told_by(think, fields, kept))
        if prompt is not None:
            found.append(Asked(name, messages, think, prompt))
    return found


def check_ways(
    client: Client, model: str, asked: Sequence[Asked], marks: Marks, bos: str, options: dict[str, Any], limit: int,
    tick: Callable[[], None] = lambda: None,
) -> Shown:  # fmt: skip
    """Ask every question in its way at every address, and compare with what the model writes after the same prompt.

    Args:
        marks: of the training template.
        bos: text of the token that the tokenizer puts first by itself; empty: none.
        options: sampling; greedy.
        limit: tokens of an answer at most.

    Raises:
        ParityError: another prompt, or an answer of which something is lost, or in the wrong place.
    """
    from toolkit.ollama.conversations import require_prompt

    shown, most, version = Shown(), min(limit, MODE_TOKENS), numbers(client.version())
    written: dict[str, Raw] = {}
    for one in asked:
        if one.prompt not in written:
            written[one.prompt] = raw_text(client, model, one.prompt, bos, options, most)
        raw = written[one.prompt]
        for endpoint in ENDPOINTS:
            request = request_fields(Conversation(one.called, one.messages, think=one.think), endpoint)
            if isinstance(request, str) or (endpoint == "/api/generate" and version and version < GENERATE_RENDERS):
                continue
            require_prompt(client, model, f"{one.called}, at {endpoint}", one.prompt, endpoint, request, bos)
            told = told_at(client, model, endpoint, request, options, most)
            if told.tokens != raw.tokens and (not version or version >= COUNTS_WHAT_IT_KEPT):
                raise ParityError(
                    f"{one.called}, at {endpoint}: the served prompt has {told.tokens} tokens, as it is it has {raw.tokens}",
                    "The server adds or loses a special token (BOS), or cut the prompt.",
                )
            if not fits(marks, one.prompt, raw.text, told):
                # A near-tie may fall otherwise where the prompt was read in other pieces; now both find it read.
                raw = raw_text(client, model, one.prompt, bos, options, most)
                told = told_at(client, model, endpoint, request, options, most)
            if not fits(marks, one.prompt, raw.text, told):
                raise ParityError(
                    f"{one.called}, at {endpoint}: the server gives the thought {told.thinking[:60]!r} and the answer "
                    f"{told.content[:60]!r}, where the model writes {raw.text[:120]!r}",
                    "The server does not know this template's marks of a thought, or loses a part of the answer.",
                )
            shown.answers += 1
            shown.with_thoughts += bool(told.thinking)
            opens, closes = marks.opens.strip(), marks.closes.strip()
            shown.with_marks += bool(closes) and (closes in told.content or (bool(opens) and opens in told.content))
        tick()
    return shown


def fits(marks: Marks, prompt: str, raw: str, told: Told) -> bool:
    """Whether thought and content, put together in the model's order, are the text that it wrote: between and around them
    only the template's marks (the last perhaps cut) and white space are missing, and what is told as thought is one."""
    raw, thought, content = _whole(raw), _whole(told.thinking), _whole(told.content)
    wanted = marks.split(prompt, raw)
    rest = wanted.thought[len(thought) :].strip()
    cut = wanted.thought.startswith(thought) and marks.closes.strip().startswith(rest)
    if thought and thought != wanted.thought and not (cut and not content):
        return False
    known = [mark for mark in (marks.plain.strip(), marks.opens.strip(), marks.closes.strip()) if mark]
    between = r"\s*(?:(?:" + "|".join(re.escape(mark) for mark in known) + r")\s*)*" if known else r"\s*"
    parts = {mark[:length] for mark in known for length in range(1, len(mark))}
    end = between + (
        f"(?:{'|'.join(re.escape(part) for part in sorted(parts, key=len, reverse=True))})?" if parts else ""
    )
    # What the server told, and no more, may stand between the marks.
    whole = between + re.escape(thought) + between + re.escape(content) + end
    return re.fullmatch(whole, raw) is not None


def _whole(text: str) -> str:
    """Without outer white space, and without half a character where the answer was cut."""
    return text.strip().rstrip("\ufffd").strip()
