"""A model that an Ollama serves, judged as a link of the chain: what it renders, and what it answers."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from toolkit.errors import DataError, ExternalToolError, ParityError
from toolkit.models.gguf_file import read_gguf
from toolkit.models.thinking import Marks, marks_of
from toolkit.ollama.calls import Asked, Writing, check_calls
from toolkit.ollama.calls import Shown as Calls
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import (
    Outcome,
    check_conversations,
    differing,
    expected_texts,
    further_conversations,
    opening,
)
from toolkit.ollama.defaults import judge_defaults
from toolkit.ollama.modelfile import shown_parameters
from toolkit.ollama.own_model import OwnModel, Vocabulary
from toolkit.ollama.predict import abilities
from toolkit.ollama.served import (
    ELSEWHERE,
    GREEDY,
    LARGEST_FLIP,
    Agreement,
    Question,
    Served,
    as_asked_today,
    check_everywhere,
    check_rendering,
    largest_means,
    read_questions,
)
from toolkit.ollama.server import INSTALL, serving
from toolkit.ollama.strength import served_strength_check
from toolkit.ollama.syntax import Message
from toolkit.ollama.thoughts import A_LEVEL, check_ways, keeps_to_training, ways_of
from toolkit.ollama.thoughts import Shown as Thoughts
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Measure, Subject, higher_is_better, lower_is_better
from toolkit.parity.checks.ends import stop_words_check
from toolkit.parity.limits import file_type_of, limits_for
from toolkit.parity.probe import probe
from toolkit.parity.subjects import Tuned
from toolkit.run.artifacts import file_sha256, read_jsonl

_FROM = re.compile(r"^FROM (/.+)$", re.MULTILINE)
_HOW_TO_GET_IT = (
    "Name the file that was given to Ollama: --gguf FILE. Or get at Ollama's own: sudo usermod -aG ollama $USER, then log "
    "in again; or, for this once, sudo cp it somewhere and name that."
)
_DEFAULTS = {"num_ctx": 4096, "num_predict": -1, "temperature": 0.8, "repeat_penalty": 1.0}
"""Where a model says nothing (api/types.go, DefaultOptions); num_ctx: under 24 GiB of graphics memory."""


@dataclass(frozen=True)
class ServedModel:
    """A model on a server, and the file behind it."""

    client: Client
    name: str
    """As `ollama list` shows it."""
    shown: dict[str, Any]
    """`/api/show`"""
    file: Path

    @property
    def parameters(self) -> dict[str, Any]:
        """Of its Modelfile, with Ollama's defaults."""
        return _DEFAULTS | shown_parameters(str(self.shown.get("parameters", "")))

    @property
    def turns(self) -> tuple[Message, ...]:
        """MESSAGE turns of its Modelfile."""
        return tuple(Message(str(turn["role"]), str(turn["content"])) for turn in self.shown.get("messages") or [])


@dataclass(frozen=True)
class Trained:
    """What was trained, as a server has to show it."""

    golden: Path
    """The golden stage's folder."""
    system: str
    """The server must bring it itself, since chat apps send none."""
    template: str
    day: str
    """On which the goldens were rendered."""
    new_tokens: int
    """Tokens of an answer at most."""
    ends: tuple[int, ...]
    """Tokens at which the tuned model ends."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What the template was told."""


@dataclass
class Shown:
    """What a server showed, and whether it is what was trained."""

    checks: list[Check]
    rendered: int = 0
    """Golden prompts that were equal, byte for byte."""
    outcomes: list[Outcome] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)
    """Over the answers at `/api/chat`."""


@contextlib.contextmanager
def served_model(name: str, log: Path, files: Sequence[Path]) -> Iterator[ServedModel]:
    """The model of the running server, or of one that is started for it.

    Args:
        log: gets what a server says that has to be started.
        files: GGUF files that are judged anyway. One of them is taken for the one that is served when it has the same
            bytes, and the first one when the server's own copy cannot be read.

    Raises:
        UsageError: the server has no such model.
        ExternalToolError: no server, or one that is too old.
        DataError: the file behind it cannot be read, or llama.cpp cannot run it.
    """
    with serving(log) as client:
        if client is None:
            raise ExternalToolError("there is no Ollama to ask", INSTALL[:1].upper() + INSTALL[1:])
        client.version()
        shown = client.show(name)
        copy = own_copy(shown)
        file = next((path for path in files if copy is None or _same(path, copy)), copy)
        if file is None:
            raise DataError(_unreadable(name, shown), _HOW_TO_GET_IT)
        client.require_shown_prompts(name)
        if file == copy:
            probe(file)
        yield ServedModel(client, name, shown, file)


def own_copy(shown: dict[str, Any]) -> Path | None:
    """The server's own copy of the GGUF; None when it is not on this machine, or not to be read by this user."""
    found = _FROM.search(str(shown.get("modelfile", "")))
    if found is None:
        return None
    try:
        with Path(found[1]).open("rb"):
            return Path(found[1])
    except OSError:  # also of a folder that is closed, as /usr/share/ollama is to everybody but its service
        return None


def _same(file: Path, copy: Path) -> bool:
    # Ollama names its files after their sums.
    return file.stat().st_size == copy.stat().st_size and file_sha256(file) == copy.name.removeprefix("sha256-")


def _unreadable(name: str, shown: dict[str, Any]) -> str:
    found = _FROM.search(str(shown.get("modelfile", "")))
    if found is None:
        return f"Ollama does not tell which file is behind {name}"
    return f"the file behind {name} is not here, or not to be read by you: {found[1]}"


def judge_served(model: ServedModel, tuned: Tuned, golden: Path, system: str, whole: bool) -> Subject:
    """Have the server render and answer the goldens, and compare both with the tuned model.

    Args:
        golden: the golden stage's folder.
        whole: whether the served file's weights show the adapter whole; see `toolkit.parity.checks.logits.WHOLE_LOW`.
    """
    started = time.monotonic()
    template, day = str(tuned.tokenizer.get_chat_template()), tuned.goldens.facts.day
    facts = tuned.goldens.facts
    trained = Trained(
        golden, system, template, day, tuned.new_tokens, tuple(facts.end_tokens), facts.chat_template_kwargs
    )
    shown = what_is_shown(model, trained)
    limits, _ = limits_for(file_type_of(read_gguf(model.file), model.file), tuned.parameters, 0.0)
    subject = subject_of(model, shown)
    vocabulary = Vocabulary(model.file)
    try:
        strength = served_strength_check(model.client, model.name, golden, vocabulary, limits, whole)
    finally:
        vocabulary.close()
    checks = [*shown.checks, strength]
    return subject.model_copy(update={"checks": checks, "seconds": round(time.monotonic() - started, 2)})


def subject_of(model: ServedModel, shown: Shown, name: str = "") -> Subject:
    """What a server showed, as the certificate has it."""
    return Subject(
        name=name or model.name, kind="served", file=model.file.name, file_type=f"Ollama {model.client.version()}",
        counts="everything", served=True, checks=shown.checks,
    )  # fmt: skip


def what_is_shown(model: ServedModel, trained: Trained) -> Shown:
    """Prompts and answers of a served model, against what was trained."""
    rows = read_jsonl(trained.golden / "golden.jsonl")
    vocabulary = Vocabulary(model.file)
    try:
        questions = read_questions(trained.golden / "golden.jsonl", trained.system)
        wanted = as_asked_today(
            questions, model.turns, trained.system, trained.template, vocabulary, trained.day, trained.fields
        )
        needed = max(len(question.prompt_ids) for question in wanted) + trained.new_tokens
        stops = _stop_words(model, trained, rows, vocabulary)
        room = higher_is_better("num_ctx", int(model.parameters["num_ctx"]), needed)
        if room.verdict == "fail":  # it cuts the prompts too, which would then be blamed
            told = f"num_ctx is {room.value:.0f}, but golden prompts and answers need {needed} tokens"
            return Shown([stops, Check.of("answers", [room], told)])
        model.client.unload(model.name)
        shown = _prompts(model, trained, vocabulary, wanted)
    except ParityError as error:
        return Shown([Check(name="prompts", verdict="fail", message=error.message)])
    finally:
        vocabulary.close()
    longest = max((len(row.get("completion_ids", ())) for row in rows), default=0)
    measures = [room, *_cut(model, longest)]
    check, shown.agreement = _answers(model, wanted, trained, needed, measures)
    shown.checks += [stops, check, _defaults(model, trained, rows)]
    return shown


def _stop_words(model: ServedModel, trained: Trained, rows: list[dict[str, Any]], vocabulary: Vocabulary) -> Check:
    held = {token for row in rows if row["stopped"] for token in row["completion_ids"][:-1]}
    silent = [token for token in vocabulary.control if token not in held]
    ends = [vocabulary.piece(token, special=True).decode(errors="replace") for token in (*trained.ends, *silent)]
    return stop_words_check(list(model.parameters.get("stop", ())), rows, ends, trained.template)


def _defaults(model: ServedModel, trained: Trained, rows: list[dict[str, Any]]) -> Check:
    """As an app meets the model that sends no options."""
    vocabulary = Vocabulary(model.file)
    try:
        questions = read_questions(trained.golden / "golden.jsonl", trained.system)
        told = trained.fields
        without_turns = as_asked_today(questions, (), trained.system, trained.template, vocabulary, trained.day, told)
        with Candidate(model.file) as candidate:
            return judge_defaults(
                model.client, model.name, model.shown, model.parameters, candidate, vocabulary, without_turns, rows,
                trained.system, trained.new_tokens,
            )  # fmt: skip
    finally:
        vocabulary.close()


def _cut(model: ServedModel, longest: int) -> list[Measure]:
    """Whether the Modelfile's own limit cuts the longest golden answer. Requests for comparison bring a limit of their own."""
    most = int(model.parameters["num_predict"])
    return [] if most < 0 else [higher_is_better("num_predict", most, longest)]


def _prompts(model: ServedModel, trained: Trained, vocabulary: Vocabulary, wanted: list[Question]) -> Shown:
    """Goldens without their system text, as chat apps ask; then every conversation at every address."""
    shown = model.shown
    with _counting(f"prompts of {model.name}", len(wanted)) as tick:
        wrong = check_rendering(model.client, model.name, wanted, vocabulary, tick)
    header = read_gguf(model.file)
    served = str(header.metadata.get("tokenizer.chat_template", ""))
    expected = expected_texts(
        further_conversations(trained.system, vocabulary.markers), trained.template, vocabulary.bos_text,
        vocabulary.eos_text, str(shown.get("system", "")), model.turns, "vision" in shown.get("capabilities", []), served,
        trained.fields, header.architecture,
    )  # fmt: skip
    bos = vocabulary.bos_text if vocabulary.adds_bos else ""
    outcomes = check_conversations(model.client, model.name, expected, bos)
    told = differing(outcomes)
    equal = sum(outcome.result == "equal" for outcome in outcomes)
    measures = [
        lower_is_better("golden prompts that differ", len(wrong), 0, 0),
        lower_is_better("conversations that differ", len(told), 0, 0),
    ]
    unlisted = sorted(abilities(trained.template) - set(shown.get("capabilities", ())))
    measures.append(
        lower_is_better("capabilities that the template has and the server does not list", len(unlisted), 0, 0)
    )
    message = f"{len(wanted)} golden prompts and {equal} conversations at three addresses are equal, byte for byte"
    if wrong:
        message = f"{len(wrong)} of {len(wanted)} golden prompts differ; the first, {wrong[0][0]}, {wrong[0][1]}"
    elif told:
        first = told[0]
        message = f"{len(told)} conversations differ; the first: {first.endpoint}, {first.conversation}: {first.detail}"
        version = model.client.version()
        if not differing(outcomes, version):
            message = (
                f"Ollama {version} gives the model the bare question at /api/generate: use 0.31 or newer; {message}"
            )
    elif unlisted:
        message = f"ollama show lists no {' and no '.join(unlisted)}, which the training template has"
    details = {
        "different": [{"conversation": name, "first_difference": where} for name, where in wrong[:5]],
        "conversations": [vars(outcome) for outcome in outcomes],
    }
    return Shown([Check.of("prompts", measures, message, details)], len(wanted) - len(wrong), outcomes)


def _answers(
    model: ServedModel, wanted: list[Question], trained: Trained, needed: int, measures: list[Measure]
) -> tuple[Check, Agreement]:
    """Every answer at `/api/chat`, a few at the other addresses, each followed by llama.cpp on the same file."""
    own = OwnModel(model.file, needed)
    parameters = model.parameters
    served = Served(model.name, tuple(parameters.get("stop", ())), float(parameters["repeat_penalty"]))
    marks = marks_of(trained.template, trained.fields)
    thinks = marks is not None and "thinking" in model.shown.get("capabilities", ())
    thoughts = called = None
    try:
        with _counting(f"answers of {model.name}, compared with llama.cpp", len(wanted) + 2 * ELSEWHERE) as tick:
            agreement, elsewhere = check_everywhere(model.client, served, wanted, own, trained.new_tokens, tick, thinks)
            if thinks and marks is not None:
                thoughts = _ways(model, wanted, trained, own, marks, tick)
            called = _calls(model, wanted, trained, own, tick)
    except ParityError as error:
        differ = lower_is_better("answers that differ", 1, 0, 0)  # the first one ends the comparison
        return Check.of("answers", [*measures, differ], error.message), Agreement()
    finally:
        own.close()
    file_type = file_type_of(read_gguf(model.file), model.file)
    check = _agreement_check(agreement, elsewhere, file_type, measures, parameters)
    check = with_thoughts(check, thoughts) if thoughts else check
    return with_calls(check, called) if called else check, agreement


def _ways(
    model: ServedModel, wanted: list[Question], trained: Trained, own: OwnModel, marks: Marks, tick: Any
) -> Thoughts:
    """The first questions, asked with think true, false, unset and a level."""
    served = str(read_gguf(model.file).metadata.get("tokenizer.chat_template", ""))
    between = [{"role": turn.role, "content": turn.content} for turn in model.turns]
    system = str(model.shown.get("system", ""))
    asked = []
    plain = [(number, question) for number, question in enumerate(wanted, 1) if not question.calls]
    for number, question in plain[:ELSEWHERE]:
        own_system = question.messages[0]["role"] == "system"
        if own_system and between:  # /api/generate puts them the other way round; see `expected_texts`
            continue
        before = opening(question.messages, system)
        asked += ways_of(
            f"golden question {number}", question.messages, trained.template, trained.fields, keeps_to_training(served),
            own.bos_text, own.eos_text, [*before, *between],
        )  # fmt: skip
    bos = own.bos_text if own.adds_bos else ""
    return check_ways(model.client, model.name, asked, marks, bos, GREEDY, trained.new_tokens, tick)


def _calls(model: ServedModel, wanted: list[Question], trained: Trained, own: OwnModel, tick: Any) -> Calls | None:
    """Every question that brings functions, at the addresses that take them."""
    between = [{"role": turn.role, "content": turn.content} for turn in model.turns]
    system = str(model.shown.get("system", ""))
    asked = []
    for number, question in enumerate(wanted, 1):
        if question.tools:
            context = [*opening(question.messages, system), *between, *question.messages]
            asked.append(
                Asked(f"golden question {number}", question.messages, question.tools, context, question.prompt_text)
            )
    if not asked:
        return None
    silent = [own.piece(token, special=True).decode(errors="replace") for token in own.control]
    writing = Writing(trained.template, trained.fields, own.bos_text, own.eos_text, silent)
    bos = own.bos_text if own.adds_bos else ""
    return check_calls(model.client, model.name, asked, writing, bos, GREEDY, trained.new_tokens, tick)


def with_calls(check: Check, shown: Calls) -> Check:
    """The check, with what apps are given of calls."""
    measures = [
        *check.measures,
        Measure(name="answers asked with functions, at two addresses", value=shown.answers),
        Measure(name="answers whose calls are told apart", value=shown.with_calls),
        Measure(name="questions answered with a call that was not offered", value=shown.not_offered),
        Measure(name="answers with a call that is not whole", value=shown.not_read),
        Measure(name="questions with functions whose answer was cut", value=shown.cut),
    ]
    told = f"{shown.with_calls} of {shown.answers} answers with functions are calls, with the model's own names and arguments"
    message = f"{check.message}; {told}" if check.verdict == "pass" else check.message
    details = {**check.details, "calls": shown.examples}
    return check.model_copy(update={"measures": measures, "message": message, "details": details})


def with_thoughts(check: Check, shown: Thoughts) -> Check:
    """The check, with what apps are shown of thoughts."""
    measures = [
        *check.measures,
        Measure(name="answers asked with think true, false, unset and a level", value=shown.answers),
        Measure(name="answers whose thought is told apart", value=shown.with_thoughts),
        Measure(name="answers that show the marks of a thought", value=shown.with_marks),
    ]
    told = f"{shown.answers} answers, with think true, false, unset and {A_LEVEL!r}, are whole with their thoughts"
    message = f"{check.message}; {told}" if check.verdict == "pass" else check.message
    return check.model_copy(update={"measures": measures, "message": message})


def _agreement_check(
    agreement: Agreement, elsewhere: Agreement, file_type: str, before: list[Measure], parameters: dict[str, Any]
) -> Check:
    both, (limit, limit_told) = agreement + elsewhere, largest_means(file_type)
    measures = [
        *before,
        lower_is_better("mean |log-probability difference|", both.mean, limit, 2e-4, "nats"),
        lower_is_better("the same, over all that is told", both.mean_told, limit_told, 2e-4, "nats"),
        lower_is_better("largest lead of another choice", both.largest_flip, LARGEST_FLIP, 0.0, "nats"),
        Measure(name="largest |log-probability difference|", value=both.largest, unit="nats"),
    ]
    broken = [measure for measure in measures if measure.verdict == "fail"]
    more = f", and {elsewhere.answers} at other addresses," if elsewhere.answers else ""
    message = f"{agreement.answers} answers{more} are those of llama.cpp on the same file"
    if broken:
        message = "; ".join(measure.told() for measure in broken)
        if broken[0].name == "num_predict":
            message += ": the Modelfile's own limit cuts answers"
        else:
            message += ": the server computes another answer from the same file; OLLAMA_KV_CACHE_TYPE should be f16"
    for name, greedy in (("temperature", 0.0), ("repeat_penalty", 1.0)):
        value = float(parameters[name])
        measures.append(Measure(name=name, value=value))
        if value != greedy:
            message += f"; apps that do not say {name} get {value:g}, and these answers are for {greedy:g}"
    return Check.of("answers", measures, message, {"texts": agreement.texts})


@contextlib.contextmanager
def _counting(text: str, total: int) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)
