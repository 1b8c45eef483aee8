"""Lists of turns: `messages` (role, content) as OpenAI writes them, `conversations` (from, value) as ShareGPT does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

from toolkit.data.formats.cells import CONTENTS, SPEAKERS, parsed, text_of, together
from toolkit.data.formats.tools import calls_in_text, calls_of
from toolkit.data.formats.turns import Call, Turn
from toolkit.data.images.sources import MARK, Picture, reference_of
from toolkit.models.thinking import FIELDS

_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "system": "system", "developer": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "function_response": "tool",
    "tool_response": "tool", "tool_result": "tool", "function_call": "call", "tool_call": "call",
}  # fmt: skip
KNOWN_KEYS = {
    *SPEAKERS, *CONTENTS, *FIELDS, "tool_calls", "function_call", "tool_call_id", "name", "weight", "train",
}  # fmt: skip

GREETING = "a greeting before the first question left out"
UNANSWERED = "a last question without an answer left out"
JOINED = "system texts joined at the beginning"
IN_TEXT = "calls written into an answer's text taken as calls"
NOT_THE_USERS = "a picture in a turn that is not the user's"
NOT_A_LIST = "messages are not a list of turns"
NOT_A_TURN = "a turn is not an object with role and content"
NO_QUESTION = "no turn of the user"
NO_ANSWER = "no turn of the assistant after the first question"
NOTHING_LEARNT = "every assistant turn has weight 0, so nothing would be learnt"
WEIGHT_BETWEEN = "an assistant turn with weight 0 between learnt ones"


class Conversation(NamedTuple):
    """A list of turns, parted."""

    system: str
    prompt: tuple[Turn, ...]
    completion: tuple[Turn, ...]
    notes: tuple[str, ...]


class _Said(NamedTuple):
    role: str
    """As in `_ROLES`."""
    turn: Turn
    learnt: bool
    from_text: bool


def conversation(value: Any, learn: str = "all") -> Conversation | str:
    """Part a list of turns into what stands before the first answer to learn, and what follows; or say why it cannot be.

    A greeting before the first question is left out: what a server is asked begins with a question, and so do templates.

    Args:
        value: the list, or a JSON text of it.
        learn: `Data.learn`.
    """
    value = parsed(value)
    if isinstance(value, str):
        return "messages are not a JSON list"
    if not isinstance(value, list) or not value:
        return NOT_A_LIST
    value = list(chain.from_iterable(map(_apart, value)))
    said: list[_Said] = []
    systems: list[str] = []
    notes: list[str] = []
    for place, item in enumerate(value):
        found = _said(item)
        if isinstance(found, str):
            return found
        if found.role == "system":
            systems.append(found.turn.content)
            if place >= len(systems) and JOINED not in notes:
                notes.append(JOINED)
            continue
        if found.from_text:
            notes.append(IN_TEXT)
        said = _with(said, found)
    first = next((i for i, one in enumerate(said) if one.turn.role == "user"), None)
    if first is None:
        return NO_QUESTION
    if first:
        notes.append(GREETING)
    said = said[first:]
    last = max((i for i, one in enumerate(said) if one.turn.role == "assistant"), default=None)
    if last is None:
        return NO_ANSWER
    if last + 1 < len(said):
        notes.append(UNANSWERED)
    said = said[: last + 1]
    if fault := _disorder([one.turn for one in said]):
        return fault
    return _parted(said, "\n\n".join(filter(None, systems)), notes, learn)


def _apart(item: Any) -> list[Any]:
    """The turns of an item; some hold a question and its answer together."""
    keys = together(item) if isinstance(item, dict) else None
    if keys is None:
        return [item]
    return [{"role": role, "content": item[key]} for role, key in zip(("user", "assistant"), keys)]


def _parted(said: list[_Said], system: str, notes: list[str], learn: str) -> Conversation | str:
    answers = [i for i, one in enumerate(said) if one.turn.role == "assistant"]
    learnt = [i for i in answers if said[i].learnt]
    if not learnt:
        return NOTHING_LEARNT
    start = learnt[-1] if learn == "last" else learnt[0]
    if any(start < i < learnt[-1] and not said[i].learnt for i in answers):
        return WEIGHT_BETWEEN
    turns = _results_named([one.turn for one in said])
    unique = tuple(dict.fromkeys(notes))
    return Conversation(system, turns[:start], turns[start : learnt[-1] + 1], unique)


def _results_named(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns, with each result's function named: by its id, or else by its place among the calls before it."""
    made: list[Turn] = []
    calls: list[Call] = []
    for turn in turns:
        if turn.calls:
            calls = list(turn.calls)
        if turn.role == "tool" and calls:
            call = next((c for c in calls if c.id and c.id == turn.call_id), calls[0])
            calls.remove(call)
            turn = replace(turn, name=turn.name or call.name)
        made.append(turn)
    return tuple(made)


def _with(said: list[_Said], found: _Said) -> list[_Said]:
    """A call that ShareGPT writes as a turn of its own belongs to the words before it."""
    before = said[-1].turn if said else None
    if found.role == "call" and before is not None and before.role == "assistant" and not before.calls:
        return [*said[:-1], said[-1]._replace(turn=replace(before, calls=found.turn.calls))]
    said.append(found)
    return said


def _disorder(turns: Sequence[Turn]) -> str:
    """Why turns do not follow each other as a conversation's do; empty: they do."""
    for before, turn in pairwise(turns):
        if before.role == turn.role and turn.role != "tool":
            return f"two {turn.role} turns in a row: a turn between them is missing"
        if turn.role == "tool" and not (before.calls or before.role == "tool"):
            return "a tool's result that no call asked for"
        if turn.role == "user" and before.role == "tool":
            return "an assistant turn is missing after a tool's result"
    return ""


def _said(item: Any) -> _Said | str:
    if not isinstance(item, dict):
        return NOT_A_TURN
    speaker = next((item[name] for name in SPEAKERS if name in item), None)
    if speaker is None:
        return NOT_A_TURN
    role = _ROLES.get(str(speaker).strip().casefold())
    if role is None:
        return f"unknown role {str(speaker)[:30]!r}"
    found = _content(next((item[name] for name in CONTENTS if name in item), None))
    if found is None:
        return "a turn's content is not text"
    content, pictures = found
    if pictures and role != "user":
        return NOT_THE_USERS
    if role == "system":
        return _Said(role, Turn("user", content), False, False)
    if role == "call":
        calls = calls_of(parsed(content))
        return calls if isinstance(calls, str) else _Said(role, Turn("assistant", "", calls=calls), True, False)
    if role == "tool":
        name, called = text_of(item.get("name")) or "", text_of(item.get("tool_call_id")) or ""
        return _Said(role, Turn("tool", _unwrapped(content), name=name, call_id=called), False, False)
    if role == "user":
        return _Said(role, Turn("user", content, pictures=pictures), False, False)
    return _answer(item, content)


def _answer(item: dict[str, Any], content: str) -> _Said | str:
    thinking = next((text_of(item[name]) for name in FIELDS if item.get(name)), "")
    if thinking is None:
        return "a turn's thought is not text"
    given = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    calls = calls_of(given) if given else ()
    if isinstance(calls, str):
        return calls
    from_text = False
    if not calls and (found := calls_in_text(content)) is not None:
        content, calls, from_text = *found, True
    learnt = item.get("weight", 1) not in (0, "0") and item.get("train", True) is not False
    return _Said("assistant", Turn("assistant", content, thinking, calls), learnt, from_text)


def _content(value: Any) -> tuple[str, tuple[Picture, ...]] | None:
    """A turn's text and pictures, with a mark for each of these; OpenAI and TRL write lists of typed parts."""
    if isinstance(value, list) and value:
        return _of_parts(value)
    if isinstance(value, dict):  # a result, or a call, that was not written as text
        return json.dumps(value, ensure_ascii=False), ()
    text = text_of(value)
    return None if text is None else (text, ())


def _of_parts(parts: list[Any]) -> tuple[str, tuple[Picture, ...]] | None:
    texts: list[str] = []
    pictures: list[Picture] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            texts.append(MARK)
            pictures.append(Picture(reference_of(part)))
        elif kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            return None
    if pictures:
        texts = [text if text == MARK else text.replace(MARK, "") for text in texts]
    return "".join(texts), tuple(pictures)


def _unwrapped(content: str) -> str:
    inside = re.fullmatch(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", content, re.S)
    return inside[1] if inside else content


def plain_turns(pairs: Any) -> list[dict[str, Any]] | None:
    """Turns of a `history`: a list of [question, answer] pairs, or of turns; None: it is neither."""
    pairs = parsed(pairs)
    if pairs is None or pairs in ("", []):
        return []
    if not isinstance(pairs, list):
        return None
    if all(isinstance(pair, dict) for pair in pairs):
        return pairs
    made: list[dict[str, Any]] = []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return None
        made += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return made


def asked_in(turns: Sequence[Turn]) -> str:
    """All that the user says."""
    return "\n".join(turn.content for turn in turns if turn.role == "user")
