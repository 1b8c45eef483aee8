"""A model that an Ollama serves, judged as a link of the chain: what it renders, and what it answers."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, ExternalToolError, ParityError, ToolkitError
from toolkit.gguf_file import read_gguf
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import (
    Outcome,
    check_conversations,
    differing,
    expected_texts,
    further_conversations,
)
from toolkit.ollama.own_model import OwnModel
from toolkit.ollama.publish import INSTALL, counting, shown_parameters
from toolkit.ollama.served import (
    LARGEST_FLIP,
    LARGEST_MEAN,
    Agreement,
    Question,
    Served,
    as_asked_today,
    check_answers,
    read_questions,
)
from toolkit.ollama.server import serving
from toolkit.ollama.strength import served_strength
from toolkit.ollama.syntax import Message
from toolkit.parity.certificate import Check, Measure, Subject, Verdict, higher_is_better, lower_is_better
from toolkit.parity.limits import file_type_of, limits_for
from toolkit.parity.subjects import Tuned

_FROM = re.compile(r"^FROM (/.+)$", re.MULTILINE)
FORCED_POSITIONS = 60
"""Single tokens that the server is asked for, where its own answer leaves the golden one."""


def judge_served(
    name: str, tuned: Tuned, golden: Path, system: str, log: Path, file: Path | None
) -> tuple[Subject, Path | None]:
    """Have the server render and answer the goldens, and compare both with the tuned model.

    Args:
        name: as `ollama list` shows it.
        golden: the golden stage's folder.
        system: the system text that was trained with; the server must bring it itself, since chat apps send none.
        log: gets what a server says that has to be started.
        file: the GGUF that it serves, when its own copy cannot be read here.

    Returns:
        The subject, and the server's own copy of the GGUF (None when it is not on this machine).

    Raises:
        UsageError: the server has no such model.
        ExternalToolError: no server, or one that does not show its prompts.
    """
    started = time.monotonic()
    with serving(log) as client:
        if client is None:
            raise ExternalToolError("there is no Ollama to ask", INSTALL[:1].upper() + INSTALL[1:])
        shown = client.show(name)
        blob = _blob(shown)
        path = blob or file
        if path is None:
            raise DataError(
                f"the file behind {name} is not on this machine",
                "Name it too: --gguf FILE, the one that was given to Ollama.",
            )
        context = int(shown_parameters(str(shown.get("parameters", ""))).get("num_ctx", 4096))
        questions = read_questions(golden / "golden.jsonl", system)
        own = OwnModel(path, max(context, _longest(questions, tuned)))
        try:
            asked = _Asked(client, name, shown, questions, own, tuned, system)
            checks = [_prompts(asked), _answers(asked, context), _strength(asked, golden, path)]
        finally:
            own.close()
    return Subject(
        name=name, kind="served", file=path.name, file_type=f"Ollama at {client.address}", counts="everything", served=True,
        checks=checks, seconds=round(time.monotonic() - started, 2),
    ), blob  # fmt: skip


def created_subject(
    model: str, file: Path, at: str, rendered: int, outcomes: list[Outcome], agreement: Agreement
) -> Subject:
    """What `create` proved of a candidate before it gave it its name; all of it passed, or it would have stopped.

    Args:
        at: the server, in words.
        rendered: golden prompts that were equal, byte for byte.
    """
    equal = sum(outcome.result == "equal" for outcome in outcomes)
    measures = [
        lower_is_better("golden prompts that differ", 0, 0, 0),
        lower_is_better("conversations that differ", len(differing(outcomes)), 0, 0),
    ]
    told = f"{rendered} golden prompts and {equal} conversations at three addresses are equal, byte for byte"
    details = {"conversations": [vars(outcome) for outcome in outcomes]}
    checks = [Check.of("prompts", measures, told, details), _agreement_check(agreement, [])]
    return Subject(
        name=model, kind="served", file=file.name, file_type=at, counts="everything", served=True, checks=checks
    )


def _agreement_check(agreement: Agreement, before: list[Measure]) -> Check:
    measures = [
        *before,
        lower_is_better("mean |log-probability difference|", agreement.mean, LARGEST_MEAN, 2e-4, "nats"),
        lower_is_better("largest lead of another choice", agreement.largest_flip, LARGEST_FLIP, 0.0, "nats"),
        Measure(name="largest |log-probability difference|", value=agreement.largest, unit="nats"),
    ]
    return Check.of("answers", measures, f"{agreement.answers} answers are those of llama.cpp on the same file")


def _blob(shown: dict[str, Any]) -> Path | None:
    found = _FROM.search(str(shown.get("modelfile", "")))
    return Path(found[1]) if found and Path(found[1]).is_file() else None


def _longest(questions: list[Question], tuned: Tuned) -> int:
    return max(len(question.prompt_ids) for question in questions) + tuned.new_tokens


@dataclass(frozen=True)
class _Asked:
    """A served model, and what it is asked."""

    client: Client
    name: str
    shown: dict[str, Any]
    """`/api/show`"""
    questions: list[Question]
    own: OwnModel
    tuned: Tuned
    system: str

    @property
    def template(self) -> str:
        return str(self.tuned.tokenizer.get_chat_template())

    @property
    def turns(self) -> tuple[Message, ...]:
        """MESSAGE turns of its Modelfile."""
        return tuple(Message(str(turn["role"]), str(turn["content"])) for turn in self.shown.get("messages") or [])

    @property
    def bos(self) -> str:
        return self.own.bos_text if self.own.adds_bos else ""

    def wanted(self) -> list[Question]:
        """The questions as the server must make them today."""
        day = self.tuned.goldens.facts.day
        return as_asked_today(self.questions, self.turns, self.system, self.template, self.own, day)


def _prompts(asked: _Asked) -> Check:
    """Goldens without their system text, as chat apps ask; then every conversation at every address."""
    own, shown = asked.own, asked.shown
    wanted = asked.wanted()
    wrong = []
    for number, question in enumerate(wanted, 1):
        found = asked.client.rendered(asked.name, question.messages)
        if found not in {question.prompt_text, question.prompt_text.removeprefix(asked.bos)}:
            wrong.append({"conversation": f"golden {number}", "wanted": question.prompt_text, "found": found})
    expected = expected_texts(
        further_conversations(asked.system, own.markers), asked.template, own.bos_text, own.eos_text,
        str(shown.get("system", "")), asked.turns, sees="vision" in shown.get("capabilities", []),
    )  # fmt: skip
    outcomes = check_conversations(asked.client, asked.name, expected, asked.bos)
    told = differing(outcomes)
    count = len(wanted) + sum(o.result in ("equal", "differs") for o in outcomes)
    measures = [
        lower_is_better("golden prompts that differ", len(wrong), 0, 0),
        lower_is_better("conversations that differ", len(told), 0, 0),
    ]
    message = f"{count} of {count} prompts are equal, byte for byte, at every address"
    if wrong:
        message = (
            f"{len(wrong)} of {len(wanted)} golden prompts differ; the first: {wrong[0]['found'][:80]!r} instead of "
        )
        message += f"{wrong[0]['wanted'][:80]!r}"
    elif told:
        message = (
            f"{len(told)} conversations differ; the first: {told[0].endpoint}, {told[0].conversation}: {told[0].detail}"
        )
    details = {"different": wrong[:5], "conversations": [vars(outcome) for outcome in outcomes]}
    return Check.of("prompts", measures, message, details)


def _answers(asked: _Asked, context: int) -> Check:
    tuned = asked.tuned
    needed = _longest(asked.questions, tuned)
    room = higher_is_better("num_ctx", context, needed)
    if room.verdict == "fail":
        message = f"num_ctx is {context}, but golden prompts and answers need {needed} tokens"
        return Check.of("answers", [room], message)
    stops = tuple(shown_parameters(str(asked.shown.get("parameters", ""))).get("stop", ()))
    wanted = asked.wanted()
    try:
        with counting(f"answers of {asked.name}", len(wanted)) as tick:
            served = Served(asked.name, stops)
            agreement = check_answers(asked.client, served, wanted, asked.own, tuned.new_tokens, tick)
    except ParityError as error:
        return Check(name="answers", verdict="fail", message=error.message, measures=[room])
    return _agreement_check(agreement, [room])


def _strength(asked: _Asked, golden: Path, file: Path) -> Check:
    try:
        found = served_strength(asked.client, asked.name, golden, asked.own, FORCED_POSITIONS)
    except ToolkitError as error:
        return Check(name="strength", verdict="inconclusive", message=error.message)
    header = read_gguf(file)
    limits, _ = limits_for(file_type_of(header, file), asked.tuned.parameters, 0.0)
    low, high = limits.strength_low, limits.strength_high
    if found.strength is None:
        return Check(
            name="strength", verdict="inconclusive", message="the tuning changed nothing that the server shows"
        )
    value = found.strength
    outside = value.high < low or value.low > high
    verdict: Verdict = "fail" if outside else "pass" if low <= value.low and value.high <= high else "inconclusive"
    measures = [
        Measure(name="strength", value=value.value, limit=low, floor=1.0, verdict=verdict),
        Measure(name="strength low", value=value.low, limit=low),
        Measure(name="strength high", value=value.high, limit=high),
        Measure(name="positions", value=found.positions),
        Measure(name="probability in the 20 tokens told", value=found.window),
    ]
    said = f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}] over {found.positions} positions, wanted within "
    return Check(name="strength", verdict=verdict, message=f"{said}[{low:g}, {high:g}]", measures=measures)
