"""What one subject was seen to do: what it lost on every row, and what it answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.evaluate.general_texts import General
from toolkit.evaluate.held_out import HeldOut, Question
from toolkit.evaluate.readers import Reader, Said
from toolkit.models.picture_block import block_of
from toolkit.models.seen import with_files
from toolkit.models.thinking import Marks
from toolkit.ollama.asked import Conversation, raw_answer, request_fields
from toolkit.ollama.client import Client
from toolkit.ollama.pictures import Pictures
from toolkit.ollama.served import GREEDY
from toolkit.parity.golden.export_answers import Asked


@dataclass
class Seen:
    """Of one subject; lists run like those of `HeldOut` and `General`."""

    log_probabilities: list[list[float]] = field(default_factory=list)
    """Of each row, of each of its sides: the sum over the tokens that are learnt, in nats. Empty: it was not read."""
    answers: list[str] | None = None
    """To the questions, without thoughts; None: it was not asked."""
    texts: list[str] = field(default_factory=list)
    """The same with thoughts, as rewards are given them."""
    whole: list[bool] = field(default_factory=list)
    """Whether each answer ended by itself."""
    paragraphs: list[float] = field(default_factory=list)
    """Log-probability of each general paragraph, in nats."""
    choices: list[list[float]] = field(default_factory=list)
    """Log-probability of each choice of each general question."""

    def said_by(self, other: Seen) -> None:
        """Take the answers of another, of a file's those of the server that serves it."""
        self.answers, self.texts, self.whole = other.answers, other.texts, other.whole


def look(
    reader: Reader, held_out: HeldOut, general: General | None, new_tokens: int, tokenizer: Any,
    known: Mapping[tuple[str, ...], tuple[str, bool]],
) -> Seen:  # fmt: skip
    """Have somebody read and answer everything.

    Args:
        new_tokens: of an answer at most.
        known: `Question.key` → (raw answer, whether it ended), where it was recorded before.
    """
    own = held_out.sequences
    read = reader.read([*own, *(general.sequences if general else [])])
    seen, place = Seen(), 0
    for row in held_out.sides:
        sums = []
        for side in row:
            total = 0.0
            for part in side:
                learnt = np.array([label >= 0 for label in part.labels[part.first :]])
                total += float(read[place].nats[learnt].sum())
                place += 1
            sums.append(total)
        seen.log_probabilities.append(sums)
    if general is not None:
        rest = [float(one.nats.sum()) for one in read[len(own) :]]
        seen.paragraphs, rest = rest[: len(general.paragraphs)], rest[len(general.paragraphs) :]
        for question in general.choices:
            seen.choices.append(rest[: len(question)])
            rest = rest[len(question) :]
    if reader.answers:
        unknown = [question for question in held_out.questions if question.key not in known]
        said = reader.say([Asked(one.ids, one.pictures) for one in unknown], new_tokens) if unknown else []
        told = {**known, **{q.key: _told(tokenizer, one) for q, one in zip(unknown, said, strict=True)}}
        take(seen, held_out, [told[question.key] for question in held_out.questions], tokenizer)
    return seen


def _told(tokenizer: Any, said: Said) -> tuple[str, bool]:
    return str(tokenizer.decode(said.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)), said.ended


def take(seen: Seen, held_out: HeldOut, said: Sequence[tuple[str, bool]], tokenizer: Any) -> None:
    """Keep answers as they are compared.

    Args:
        said: (the model's own text, whether it ended) to each question.
    """
    seen.answers = [plain(q, text, held_out.marks, tokenizer) for q, (text, _) in zip(held_out.questions, said)]
    seen.texts = [plain(q, text, None, tokenizer) for q, (text, _) in zip(held_out.questions, said)]
    seen.whole = [ended for _, ended in said]


def plain(question: Question, text: str, marks: Marks | None, tokenizer: Any) -> str:
    """An answer without its thought, without special tokens, and without the half character at which it was cut.

    A server shows no special tokens, so they count for nobody.
    """
    content = marks.split(question.text, text).content if marks else text
    for token in tokenizer.added_tokens_decoder.values():
        if getattr(token, "special", False) and token.content in content:
            content = content.replace(token.content, "")
    return content.rstrip("\ufffd").strip()


def look_at_served(client: Client, model: str, held_out: HeldOut, system: str, new_tokens: int, tokenizer: Any) -> Seen:
    """Ask a server as an app does: the conversation, without the system text that the model brings itself. Where functions or
    thoughts are in play, which a server takes out of the text, the model's own text is asked for.
    """
    said = []
    block = block_of(tokenizer) or "" if any(question.pictures for question in held_out.questions) else ""
    for question in held_out.questions:
        if question.tools or held_out.marks or any(turn.get("tool_calls") for turn in question.messages):
            shown = Pictures(tuple(picture.path for picture in question.pictures), block)
            found = raw_answer(client, model, shown.marked(question.text), GREEDY, new_tokens, **shown.sent)
            text = str(found.get("response", ""))
        else:
            turns = with_files(question.messages, (picture.path for picture in question.pictures))
            if system and turns and turns[0] == {"role": "system", "content": system}:
                turns = turns[1:]
            fields = request_fields(Conversation("", turns), "/api/chat")
            assert isinstance(fields, dict), "a conversation can always be sent there"  # noqa: S101
            found = client.chat(model, **fields, options={**GREEDY, "num_predict": new_tokens})
            text = str((found.get("message") or {}).get("content", ""))
        said.append((text, found.get("done_reason") == "stop"))
    seen = Seen()
    take(seen, held_out, said, tokenizer)
    return seen
