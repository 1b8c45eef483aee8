"""Asking a served model as an app that sends no options: what its Modelfile says of sampling and turns, and nothing else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from toolkit.models.picture_block import with_pictures
from toolkit.ollama.asked import words_of
from toolkit.ollama.client import Client
from toolkit.ollama.modelfile import shown_parameters
from toolkit.ollama.own_model import Vocabulary
from toolkit.ollama.served import Question, rendered_for_chat
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check
from toolkit.parity.checks.defaults import Asked, Line, Reader, Said, defaults_check
from toolkit.parity.seeing import SeenPrompt, Sight

QUESTIONS, SEEDS, LONGEST = 4, (1, 2), 40
"""Few: what breaks answers breaks most of them, and each costs a second on a small model."""
TURNS = "turns"
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": [],
}  # fmt: skip
"""With all of these, a server draws from the model's own distribution (api/types.go, Options)."""


def judge_defaults(
    client: Client, name: str, shown: dict[str, Any], parameters: dict[str, Any], candidate: Candidate,
    vocabulary: Vocabulary, trained: Sequence[Question], rows: Sequence[dict[str, Any]], system: str,
    limit: int, sight: Sight | None = None,
) -> Check:  # fmt: skip
    """Ask some goldens as an app does, and have the answers judged.

    Args:
        shown: `/api/show`.
        parameters: of the model's Modelfile.
        candidate: the served file.
        trained: the goldens as they were trained, without turns of the Modelfile's.
        rows: of golden.jsonl, in the same order.
        system: what was trained with.
        limit: tokens of an answer at most.
        sight: the projector of a model that sees, on the candidate.
    """
    chosen = range(0, len(rows), max(1, len(rows) // QUESTIONS))[:QUESTIONS]
    questions, limit = [trained[i] for i in chosen], min(limit, LONGEST)
    asked = [
        Asked(
            trained[i].prompt_ids, words_of(rows[i]["messages"][-1]["content"]), rows[i].get("completion", ""),
            len(rows[i].get("completion_ids", ())), bool(rows[i].get("stopped")),
        )
        for i in chosen
    ]  # fmt: skip
    rendered = [
        with_pictures(rendered_for_chat(client, name, question), question.pictures.block) if question.pictures
        else rendered_for_chat(client, name, question)
        for question in questions
    ]  # fmt: skip
    lines = _lines(shown, parameters, vocabulary, system)
    bos = vocabulary.bos_text if vocabulary.adds_bos else ""

    def ask(taken_back: frozenset[str]) -> list[Said]:
        options = {key: NEUTRAL[key] for key in taken_back if key in NEUTRAL}
        said = []
        for at, question in enumerate(questions):
            text = question.prompt_text if TURNS in taken_back else rendered[at]
            text = question.pictures.marked(text.removeprefix(bos) if bos else text)
            for seed in SEEDS:
                answer = client.generate(
                    # Raw, since a thought would be cut out of an answer, and a prompt that is trained may be another one.
                    name, text, raw=True, think=False, logprobs=True,
                    options={**options, "seed": seed, "num_predict": limit}, **question.pictures.sent,
                )  # fmt: skip
                said.append(_said(at, answer, vocabulary))
        return said

    with contextlib.ExitStack() as closing:
        slots = closing.enter_context(candidate.slots(1, max(one.tokens for one in questions) + limit + 1))
        if sight is not None:
            asked = [replace(one, seen=_seen(closing, sight, q, bos)) for one, q in zip(asked, questions)]
        reader = Reader(candidate, slots, asked, limit, sight)
        return defaults_check(reader, ask, lines, len(shown.get("messages") or []))


def _seen(closing: contextlib.ExitStack, sight: Sight, question: Question, bos: str) -> SeenPrompt | None:
    if not question.pictures:
        return None
    text = question.prompt_text.removeprefix(bos) if bos else question.prompt_text
    return closing.enter_context(sight.read(text, question.pictures.block, question.pictures.bytes()))


def _said(golden: int, answer: dict[str, Any], vocabulary: Vocabulary) -> Said:
    tokens: list[int] = []
    for entry in answer.get("logprobs") or []:
        text = str(entry["token"])  # of one token, or of those of a character
        if "\ufffd" in text:
            break
        tokens += vocabulary.tokens_shown(text)
    text = str(answer.get("response", ""))
    return Said(golden, tokens, text, answer.get("done_reason") == "stop", "\ufffd" not in text)


def _lines(shown: dict[str, Any], parameters: dict[str, Any], vocabulary: Vocabulary, system: str) -> list[Line]:
    """Lines of the Modelfile that sample otherwise than the model's own distribution, or put turns into the prompt."""
    lines = []
    for key, neutral in NEUTRAL.items():
        found = parameters.get(key, neutral)
        if key == "stop":
            found = [word for word in found if word not in vocabulary.markers]
        if found != neutral:
            told = [f"PARAMETER stop {word!r}" for word in found] if key == "stop" else [f"PARAMETER {key} {found:g}"]
            own = key in shown_parameters(str(shown.get("parameters", "")))
            lines.append(Line(key, ", ".join(told) if own else f"Ollama's own {key} {found:g}"))
    turns = [f"{len(shown['messages'])} MESSAGE turns"] if shown.get("messages") else []
    turns += ["SYSTEM"] if str(shown.get("system", "")) != system else []
    # Ollama shows this one line where the file's own template is served.
    turns += (
        ["TEMPLATE"] if re.search(r"^TEMPLATE (?!\{\{ \.Prompt \}\}$)", str(shown.get("modelfile", "")), re.M) else []
    )
    return [*lines, *([Line(TURNS, ", ".join(turns))] if turns else [])]
