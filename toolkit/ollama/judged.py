"""A model that an Ollama serves, judged as a link of the chain: what it renders, and what it answers."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import ParityError
from toolkit.models.gguf_file import read_gguf
from toolkit.ollama.answers import counting, judge_answers
from toolkit.ollama.conversations import (
    Outcome,
    check_conversations,
    differing,
    expected_texts,
    further_conversations,
)
from toolkit.ollama.defaults import judge_defaults
from toolkit.ollama.files import MISSING
from toolkit.ollama.modelfile import stored_files
from toolkit.ollama.own_model import Vocabulary
from toolkit.ollama.predict import abilities
from toolkit.ollama.served import (
    Agreement,
    Question,
    as_asked_today,
    check_rendering,
    read_questions,
)
from toolkit.ollama.served_model import ServedModel
from toolkit.ollama.strength import served_strength_check
from toolkit.ollama.trained import Trained
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Measure, Subject, higher_is_better, lower_is_better
from toolkit.parity.checks.ends import stop_words_check
from toolkit.parity.encodings import Encodings
from toolkit.parity.limits import file_type_of, limits_for
from toolkit.parity.subjects import Tuned
from toolkit.run.artifacts import read_jsonl


@dataclass
class Shown:
    """What a server showed, and whether it is what was trained."""

    checks: list[Check]
    rendered: int = 0
    """Golden prompts that were equal, byte for byte."""
    outcomes: list[Outcome] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)
    """Over the answers at `/api/chat`."""


def judge_served(model: ServedModel, tuned: Tuned, golden: Path, system: str, whole: bool) -> Subject:
    """Have the server render and answer the goldens, and compare both with the tuned model.

    Args:
        golden: the golden stage's folder.
        whole: whether the served file's weights show the adapter whole; see `toolkit.parity.checks.strength.WHOLE_LOW`.
    """
    started = time.monotonic()
    template, day = str(tuned.tokenizer.get_chat_template()), tuned.goldens.facts.day
    facts = tuned.goldens.facts
    trained = Trained(
        golden, system, template, day, tuned.new_tokens, tuple(facts.end_tokens), facts.chat_template_kwargs,
        tuned.trained.pictures,
    )  # fmt: skip
    shown = what_is_shown(model, trained)
    if trained.pictures is not None and sees_nothing(model):
        return subject_of(model, shown)
    limits, _ = limits_for(file_type_of(read_gguf(model.file), model.file), tuned.parameters, 0.0)
    subject = subject_of(model, shown)
    vocabulary = Vocabulary(model.file)
    try:
        block = trained.block(vocabulary)
        strength = served_strength_check(model.client, model.name, golden, vocabulary, limits, whole, block)
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
    if trained.pictures is not None and (blind := sees_nothing(model)):
        return Shown([blind])
    vocabulary = Vocabulary(model.file)
    try:
        questions = read_questions(trained.golden / "golden.jsonl", trained.system, trained.block(vocabulary))
        wanted = as_asked_today(
            questions, model.turns, trained.system, trained.template, vocabulary, trained.day, trained.fields
        )
        needed = max(question.tokens for question in wanted) + trained.new_tokens
        stops = _stop_words(model, trained, rows, vocabulary)
        room = higher_is_better("num_ctx", int(model.parameters["num_ctx"]), needed)
        if room.verdict == "fail":  # it cuts the prompts too, which would then be blamed
            seen = ", pictures included" if trained.pictures else ""
            told = f"num_ctx is {room.value:.0f}, but golden prompts and answers need {needed} tokens{seen}"
            return Shown([stops, Check.of("answers", [room], told)])
        model.client.unload(model.name)
        shown = _prompts(model, trained, vocabulary, wanted)
    except ParityError as error:
        return Shown([Check(name="prompts", verdict="fail", message=error.message)])
    finally:
        vocabulary.close()
    longest = max((len(row.get("completion_ids", ())) for row in rows), default=0)
    measures = [room, *_cut(model, longest)]
    check, shown.agreement = judge_answers(model, wanted, trained, needed, measures)
    shown.checks += [stops, check, _defaults(model, trained, rows)]
    return shown


def sees_nothing(model: ServedModel) -> Check | None:
    """A failed check where a model that was trained on pictures is served without eyes; None where it sees."""
    told = "the model was trained on pictures, and Ollama lists no vision"
    if "vision" in model.shown.get("capabilities", ()):
        if model.mmproj is not None:
            return None
        told = "the projector that Ollama serves it with cannot be read here; name the file that was given to it: --mmproj FILE"
        return Check(name="prompts", verdict="inconclusive", message=told)
    count = len(stored_files(model.shown))
    told += f": it was created from {count} file{'s' * (count != 1)}, and its projector (mmproj) is none of them"
    told += "; every picture is answered with an error. Create it from both files: a FROM line for each"
    seen = lower_is_better(MISSING, 1, 0, 0)
    return Check.of("prompts", [seen], told)


def _stop_words(model: ServedModel, trained: Trained, rows: list[dict[str, Any]], vocabulary: Vocabulary) -> Check:
    held = {token for row in rows if row["stopped"] for token in row["completion_ids"][:-1]}
    silent = [token for token in vocabulary.control if token not in held]
    ends = [vocabulary.piece(token, special=True).decode(errors="replace") for token in (*trained.ends, *silent)]
    return stop_words_check(list(model.parameters.get("stop", ())), rows, ends, trained.template)


def _defaults(model: ServedModel, trained: Trained, rows: list[dict[str, Any]]) -> Check:
    """As an app meets the model that sends no options."""
    vocabulary = Vocabulary(model.file)
    try:
        questions = read_questions(trained.golden / "golden.jsonl", trained.system, trained.block(vocabulary))
        told = trained.fields
        without_turns = as_asked_today(questions, (), trained.system, trained.template, vocabulary, trained.day, told)
        with Candidate(model.file) as candidate, contextlib.ExitStack() as closing:
            sight = None
            if model.mmproj is not None and trained.pictures is not None:
                limits = trained.picture_tokens
                known = Encodings.beside(model.mmproj, limits)
                sight = closing.enter_context(candidate.sight(model.mmproj, *limits, known))
            return judge_defaults(
                model.client, model.name, model.shown, model.parameters, candidate, vocabulary, without_turns, rows,
                trained.system, trained.new_tokens, sight,
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
    with counting(f"prompts of {model.name}", len(wanted)) as tick:
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
