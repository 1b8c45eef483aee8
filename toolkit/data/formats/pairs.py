"""A question and its answer in two columns, and Alpaca's three (instruction, input, output); with a history, if there is one."""

from __future__ import annotations

from typing import Any

from toolkit.data.formats.cells import NOT_TEXT, are_turns, parsed, text_of
from toolkit.data.formats.messages import Conversation, asked_in, conversation, plain_turns
from toolkit.data.formats.shape import Shape
from toolkit.data.formats.turns import Turn
from toolkit.models.thinking import FIELDS

NO_HISTORY = "history is no list of pairs or turns"
Paired = tuple[Conversation, str]
"""A conversation and its topic (see `Example.topic`)."""


def paired(values: dict[str, Any], shape: Shape, learn: str) -> Paired | str:
    """A row of columns as a conversation, or why it is none."""

    def cell(role: str) -> Any:
        return values.get(shape.roles[role]) if role in shape.roles else None

    if are_turns(cell("prompt")) or are_turns(cell("completion")):
        return _of_turns(cell("prompt"), cell("completion"), learn)
    texts = [text_of(cell(role)) for role in ("prompt", "completion", "input", "thinking")]
    if any(text is None for text in texts):
        return NOT_TEXT
    prompt, completion, given, thinking = (text or "" for text in texts)
    whole = f"{prompt}\n\n{given.strip()}" if given.strip() else prompt
    before = plain_turns(cell("history"))
    if before is None:
        return NO_HISTORY
    answer = {"role": "assistant", "content": completion, FIELDS[0]: thinking}
    if not before:  # as it is, empty cells too: cleaning says what is wrong with them
        found = Conversation("", (Turn("user", whole),), (Turn("assistant", completion, thinking),), ())
        made = (
            conversation([{"role": "user", "content": whole}, answer], learn) if "<tool_call>" in completion else found
        )
    else:
        made = conversation([*before, {"role": "user", "content": whole}, answer], learn)
    if isinstance(made, str):
        return made
    earlier = [str(turn.get("content", turn.get("value"))) for turn in before if turn.get("role", turn.get("from")) in
               ("user", "human")]  # fmt: skip
    return made, "\n".join([*earlier, given.strip() or prompt])


def _of_turns(prompt: Any, completion: Any, learn: str) -> Paired | str:
    """TRL's conversational prompt and completion: both may be lists of turns."""
    turns: list[Any] = []
    for value, role in ((prompt, "user"), (completion, "assistant")):
        value = parsed(value)
        turns += value if isinstance(value, list) else [{"role": role, "content": value}]
    made = conversation(turns, learn)
    return made if isinstance(made, str) else (made, asked_in(made.prompt + made.completion))
