"""What a served model answers, at every address and in every way that apps ask, followed by llama.cpp on the same files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from toolkit.errors import ParityError
from toolkit.models.gguf_file import read_gguf
from toolkit.models.thinking import Marks, marks_of
from toolkit.ollama.calls import Asked, Writing, check_calls
from toolkit.ollama.calls import Shown as Calls
from toolkit.ollama.conversations import (
    opening,
)
from toolkit.ollama.elsewhere import Completed, Order, check_pictures_elsewhere, measures_of
from toolkit.ollama.own_model import OwnModel, server_threads
from toolkit.ollama.served import (
    ELSEWHERE,
    GREEDY,
    LARGEST_FLIP,
    Agreement,
    Question,
    Served,
    check_everywhere,
    largest_means,
)
from toolkit.ollama.served_model import ServedModel
from toolkit.ollama.thoughts import A_LEVEL, check_ways, keeps_to_training, ways_of
from toolkit.ollama.thoughts import Shown as Thoughts
from toolkit.ollama.trained import Trained
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.limits import file_type_of

OTHER_ORDER = 64
"""Tokens by which a prompt may be longer at an address that makes a turn of each part."""


def judge_answers(
    model: ServedModel, wanted: list[Question], trained: Trained, needed: int, measures: list[Measure]
) -> tuple[Check, Agreement]:
    """Every answer at `/api/chat`, a few at the other addresses, each followed by llama.cpp on the same file."""
    own = _own_model(model, trained, needed)
    parameters = model.parameters
    served = Served(model.name, tuple(parameters.get("stop", ())), float(parameters["repeat_penalty"]))
    marks = marks_of(trained.template, trained.fields)
    thinks = marks is not None and "thinking" in model.shown.get("capabilities", ())
    thoughts = called = None
    orders: list[Order] = []
    try:
        with counting(f"answers of {model.name}, compared with llama.cpp", len(wanted) + 2 * ELSEWHERE) as tick:
            agreement, elsewhere = check_everywhere(model.client, served, wanted, own, trained.new_tokens, tick, thinks)
            if thinks and marks is not None:
                thoughts = _ways(model, wanted, trained, own, marks, tick)
            called = _calls(model, wanted, trained, own, tick)
            if not thinks and any(question.pictures for question in wanted):
                seen, orders = _other_orders(model, served, wanted, trained, own, tick)
                elsewhere = elsewhere + seen
    except ParityError as error:
        differ = lower_is_better("answers that differ", 1, 0, 0)  # the first one ends the comparison
        return Check.of("answers", [*measures, differ], error.message), Agreement()
    finally:
        own.close()
    file_type = file_type_of(read_gguf(model.file), model.file)
    check = _agreement_check(agreement, elsewhere, file_type, measures, parameters)
    check = with_orders(check, orders) if orders else check
    check = with_thoughts(check, thoughts) if thoughts else check
    return with_calls(check, called) if called else check, agreement


def _own_model(model: ServedModel, trained: Trained, needed: int) -> OwnModel:
    if trained.pictures is None:
        return OwnModel(model.file, needed)
    threads = int(model.parameters.get("num_thread", 0)) or server_threads()
    return OwnModel(model.file, needed + OTHER_ORDER, model.mmproj, trained.picture_tokens, threads)


def _other_orders(
    model: ServedModel, served: Served, wanted: list[Question], trained: Trained, own: OwnModel, tick: Any
) -> tuple[Agreement, list[Order]]:
    """Questions with pictures, at the addresses that may put these elsewhere."""
    turns = [{"role": turn.role, "content": turn.content} for turn in model.turns]
    completed = Completed(trained.template, str(model.shown.get("system", "")), turns, trained.fields)
    return check_pictures_elsewhere(model.client, served, wanted, own, completed, trained.new_tokens, tick)


def with_orders(check: Check, orders: Sequence[Order]) -> Check:
    """The check, with what the addresses make of a picture's place: a warning where that was not trained."""
    shown = ["/api/chat", *(order.endpoint for order in orders if order.trained)]
    warned = [told for order in orders if (told := order.told())]
    message = f"{check.message}; pictures stand where they were trained at {' and '.join(shown)}"
    details = {**check.details, "warned": [*check.details.get("warned", []), *warned]}
    measures = [*check.measures, *measures_of(orders)]
    return check.model_copy(
        update={
            "measures": measures,
            "details": details,
            "message": message if check.verdict == "pass" else check.message,
        }
    )


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
def counting(text: str, total: int) -> Iterator[Any]:
    """Progress on the error stream."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)
