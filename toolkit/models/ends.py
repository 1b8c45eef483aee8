"""At which tokens an answer ends. Those who know are asked: the generation config, the tokenizer, and the chat template."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError

from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts

_ANSWER, _NEXT = "Qzanswer", "Qznext"
"""Words that no template writes of itself."""


class TurnEnd(NamedTuple):
    """What closes an assistant's turn."""

    token: int
    text: str
    written: bool
    """The template itself writes it after the last answer; otherwise training has to add it, or nobody learns to end."""


class Ends(NamedTuple):
    """Where a tuned model's answers end."""

    listed: list[int]
    """By the base's generation config and the tokenizer that was trained with, sorted."""
    turn: TurnEnd | None
    """None: the template refuses a question with its answer, or nothing there is a token."""

    @property
    def tokens(self) -> list[int]:
        """All of them, sorted."""
        return sorted({*self.listed, *([self.turn.token] if self.turn else [])})

    @property
    def unlisted(self) -> TurnEnd | None:
        """The turn's end, where nobody but the template knows it as an end."""
        return self.turn if self.turn and self.turn.token not in self.listed else None

    def told(self) -> str:
        """A sentence about a turn's end that is not listed; empty when it is."""
        if self.unlisted is None:
            return ""
        return (
            f"the chat template closes a turn with {self.unlisted.text!r} (token {self.unlisted.token}), which the base does "
            "not list as an end: training, goldens and exports take it as one"
        )


def end_tokens(adapter: Artifact[AdapterFacts], tokenizer: Any) -> Ends:
    """Where the tuned model ends: by its generation config, by its tokenizer, and by its chat template.

    Args:
        tokenizer: the one that was trained with.
    """
    facts = adapter.facts
    return ends_of(adapter.folder if facts.method == "full" else Path(facts.base.folder), tokenizer)


def ends_of(folder: Path, tokenizer: Any) -> Ends:
    """Where a model of this folder ends that is asked through this tokenizer."""
    from transformers import AutoConfig, GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # without one, transformers takes what config.json says
        configured = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config().eos_token_id
    found = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    listed = sorted(token for token in found if token is not None)
    return Ends(listed, turn_end(tokenizer, tuple(listed)))


def turn_end(tokenizer: Any, listed: tuple[int, ...] = ()) -> TurnEnd | None:
    """What the template writes after an answer: a token that is known as an end, or else the first added one (Cohere closes
    the text first, then the turn). Where it writes none there, the same of what stands before the next question (GLM-4 opens
    the user's turn, and nothing else closes the assistant's); where there is none at all, the tokenizer's end of text.

    Args:
        listed: tokens that are known as ends; the tokenizer's own is, in any case.
    """
    own = tokenizer.eos_token_id
    known = {*listed, *([] if own is None else [own])}
    return _turn_end(tokenizer, str(tokenizer.chat_template), frozenset(known), own)


@functools.lru_cache(maxsize=16)
def _turn_end(tokenizer: Any, _template: str, known: frozenset[int], own: int | None) -> TurnEnd | None:
    after = _after(tokenizer, following=False)
    if after is None:
        return None
    closing, between = (_added_in(tokenizer, text or "") for text in (after, _after(tokenizer, following=True)))
    # Phi-3 writes its end of text after the last turn only: what closes every turn counts.
    found = [token for token in closing if token in known and token in between] or closing
    found = found or [token for token in between if token in known] or between
    token = found[0] if found else own
    return None if token is None else TurnEnd(token, tokenizer.convert_ids_to_tokens(token), bool(closing))


def _added_in(tokenizer: Any, text: str) -> list[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    return [token for token in ids if token in added]


def turn_marks(tokenizer: Any) -> list[str]:
    """What the template writes between an answer and the next question, in pieces: added tokens but the end, and lines of text
    that are no plain word, as '### Instruction:'. An answer that holds one goes on into a turn that it invents.
    """
    between, end = _after(tokenizer, following=True) or "", turn_end(tokenizer)
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    present = sorted((text for text in added if text in between), key=len, reverse=True)
    pattern = "|".join([*map(re.escape, present), r"\n"])
    lines = [line.strip() for line in re.split(pattern, between)]
    marks = [line for line in lines if len(line) > 3 and not line.isalnum()]
    return [*(text for text in present if end is None or text != end.text), *marks]


def is_mark(word: str, template: str) -> bool:
    """Whether a text is a mark of a chat template, as '### Response:' or '[INST]', and no plain word or white space."""
    return len(word.strip()) > 3 and not word.isalnum() and word in template


def _after(tokenizer: Any, following: bool) -> str | None:
    """The text after an answer: up to its end, or up to the next question; None: the template refuses."""
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}
    asked = [question, answer, *([{"role": "user", "content": _NEXT}] if following else [])]
    for opening in ([], [{"role": "system", "content": "b"}]):
        try:
            text = str(tokenizer.apply_chat_template([*opening, *asked], tokenize=False))
        except (TemplateError, ValueError, TypeError):
            continue
        if _ANSWER in text:
            return text.rpartition(_ANSWER)[2].partition(_NEXT)[0]
    return None
