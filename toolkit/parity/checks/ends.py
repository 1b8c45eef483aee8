"""Where answers end: the tuned model's own, the tokens at which a file ends them, and the words at which a server does.

An export must end where the tuned model ends, and nowhere else. llama.cpp ends at every token of its `eog` set: those that a file
names (`eos`, `eot`, `eom`), and those that it knows by their names (`<|im_end|>`, `<|eot_id|>`, …), which a right file has too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from toolkit.models.ends import is_mark
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.golden.goldens import GOES_ON, Goldens
from toolkit.parity.metadata import Compared, Difference

_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_KEYS_OF_GAPS = tuple(f"tokenizer.ggml.fim_{name}_token_id" for name in ("pad", "rep", "sep"))
"""llama.cpp ends at these too (src/llama-vocab.cpp, `special_eog_ids`)."""
LONG_ENOUGH = 1.5
"""An answer that may have so many times the tokens of the longest one that was trained on should have come to its end."""
KNOWS_ITS_END = 0.02
"""Median probability of the end token where an answer ends. SmolLM2-135M after 12 steps was measured at 0.47 to 0.80 on rows that
it had not seen; a token that means nothing has the probability of any of thousands."""
TOO_MANY = 0.5
"""Share of the goldens that may come to no end: a small model may well go round in circles now and then."""


def tuned_ends_check(goldens: Goldens, new_tokens: int, publishing: bool = True) -> Check:
    """Do the tuned model's own answers end? A file that is like it in everything runs on where it does.

    Args:
        new_tokens: of a golden answer at most.
        publishing: whether the verdict lets a file go to Ollama; else an export is only compared, and what is not known is told.
    """
    facts, rows = goldens.facts, goldens.rows
    open_ended = [row for row in rows if not row["stopped"]]
    invented = [row for row in open_ended if _mark_in(row["completion"], facts.turn_marks)]
    ends = [row["end"] for row in goldens.forward if row["end"] is not None]
    knows = median(ends) if ends else None
    long_enough = facts.answers_longest is not None and new_tokens >= LONG_ENOUGH * facts.answers_longest
    should_have_ended = open_ended if long_enough or (knows is not None and knows < KNOWS_ITS_END) else invented
    measures = [
        Measure(name="answers that end by themselves", value=len(rows) - len(open_ended)),
        lower_is_better("answers that should have ended", len(should_have_ended), int(TOO_MANY * len(rows)), 0),
        Measure(name="answers that go on into an invented turn", value=len(invented)),
    ]
    if knows is not None:
        measures.append(Measure(name="probability of the end where an answer ends", value=knows))
    if facts.answers_longest is not None:
        measures.append(Measure(name="tokens of the longest answer trained on", value=facts.answers_longest))
    check = Check.of("ends", measures, f"{len(rows) - len(open_ended)} of {len(rows)} golden answers end by themselves")
    room = f"golden.max_new_tokens is {new_tokens}"
    if check.verdict == "fail":
        why = _why_endless(invented, facts.turn_marks, knows, room, facts.answers_longest, long_enough)
        said = f"{len(should_have_ended)} of {len(rows)} golden answers never end: {why}"
        return check.model_copy(update={"message": _with(said, facts.ends_told)})
    message = check.message
    if open_ended and facts.answers_longest is not None and not long_enough:
        message += (
            f"; {room}, and answers of up to {facts.answers_longest} tokens were trained on: to see all of them end, "
        )
        message += f"--set golden.max_new_tokens={round(LONG_ENOUGH * facts.answers_longest + 1)}"
    elif open_ended:
        message += f"; {room}"
    if open_ended and facts.ends_after is not None:
        message += f"; let go on, one of them ended after {facts.ends_after}: --set golden.max_new_tokens={2 * facts.ends_after}"
    elif len(open_ended) == len(rows) and knows is None:
        message += f", and let go on, they do not end within {GOES_ON * new_tokens} either: "
        message += f"--set golden.max_new_tokens={GOES_ON**2 * new_tokens}"
        check = check.model_copy(update={"verdict": "inconclusive" if publishing else "not compared"})
    return check.model_copy(update={"message": _with(message, facts.ends_told)})


def _with(message: str, told: str) -> str:
    return f"{message}; {told}" if told else message


def _mark_in(text: str, marks: Iterable[str]) -> str:
    return next((mark for mark in marks if mark in text), "")


def _why_endless(
    invented: list[dict[str, Any]],
    marks: list[str],
    knows: float | None,
    room: str,
    longest: int | None,
    long_enough: bool,
) -> str:
    said = []
    if invented:
        said.append(
            f"{len(invented)} go on into {_mark_in(invented[0]['completion'], marks)!r}, a turn that they invent"
        )
    if knows is not None and knows < KNOWS_ITS_END:
        said.append(f"where an answer of the data ends, the end token has a probability of {knows:.1g}")
    elif long_enough:
        said.append(f"{room}, the longest answer trained on has {longest} tokens")
    said.append("it has not learnt to end: train longer (train.num_train_epochs, train.max_steps, train.learning_rate)")
    return "; ".join(said)


def folder_ends_check(listed: list[int], tokenizer: Any, goldens: Goldens) -> Check:
    """The tokens that a merged folder's settings list as ends, for whoever generates with them."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = goldens.written()
    foreign = [t for t in listed if t not in goldens.facts.end_tokens and (t not in special or t in written)]
    measure = lower_is_better("tokens that end answers and must not", len(foreign), 0, 0)
    if not foreign:
        return Check.of("ends", [measure], "its settings list no other ends than the tuned model's")
    texts = ", ".join(f"{token} {tokenizer.convert_ids_to_tokens(token)!r}" for token in foreign)
    return Check.of("ends", [measure], f"its settings end answers at {texts}, where the tuned model goes on")


def not_of_ends(keys: Compared) -> list[Difference]:
    """Differences of the tokenizer's keys without the ids of ends, which `file_ends_check` judges by what they do."""
    return [difference for difference in keys.of("tokenizer") if difference.key not in _KEYS]


def file_ends_check(
    candidate: Candidate, tokenizer: Any, goldens: Goldens, expected: Mapping[str, Any] | None = None
) -> Check:
    """The set of tokens at which llama.cpp ends an answer of this file, against the tuned model's.

    A right file has the tuned model's ends, what llama.cpp adds by name, and what the converter names. Any other end is made by
    this file, and a fault; so is one of a right file that answers hold (goldens, or what was trained on): it cuts them.

    Args:
        expected: metadata that the converter writes for the tuned model; see `toolkit.models.layout`.
    """
    wanted, eos = goldens.facts.end_tokens, tokenizer.eos_token_id
    found, written = candidate.end_tokens, goldens.written()
    used = {row["end_token"] for row in goldens.rows if row["stopped"]} | {goldens.facts.turn_end, eos}
    lost = [token for token in wanted if token not in found]
    needed = [token for token in lost if token in used]
    others = sorted(found - set(wanted))
    by_name = candidate.ends_by_name(wanted[0] if eos is None else eos) if others and wanted else frozenset(others)
    right = by_name.union(value for key, value in (expected or {}).items() if key in (*_KEYS, *_KEYS_OF_GAPS))
    made = [token for token in others if token not in right]
    cutting = [token for token in others if token in written and token not in made]
    wrong_eos = 0 if eos is None or candidate.eos == eos else 1
    measures = [
        lower_is_better("end tokens lost", len(needed), 0, 0),
        lower_is_better("end-of-text id wrong", wrong_eos, 0, 0),
        lower_is_better("tokens that end answers and must not", len(made) + len(cutting), 0, 0),
        Measure(name="end tokens lost that no answer needs", value=len(lost) - len(needed)),
        Measure(name="other end tokens that no answer holds", value=len(others) - len(made) - len(cutting)),
    ]
    said = []
    if needed:
        said.append(f"answers would not end at {_named(candidate, needed)}")
    if wrong_eos:
        said.append(f"the end-of-text id is {candidate.eos} {candidate.token_text(candidate.eos)!r}, wanted {eos}")
    if made:
        said.append(
            f"the file makes an end of {_named(candidate, made)}: answers stop there, where the tuned model goes on"
        )
    if cutting:
        said.append(f"answers stop at {_named(candidate, cutting)}, which answers of the tuned model hold")
    message = (
        "; ".join(said)
        or f"answers end at {_named(candidate, [t for t in wanted if t in found])}, as the tuned model's"
    )
    details = {"ends": sorted(found), "wanted": wanted, "foreign": made + cutting}
    return Check.of("ends", measures, message, details)


def _named(candidate: Candidate, tokens: Sequence[int]) -> str:
    """'13 ".", 198 "\\n"', as the text reads."""
    texts = [candidate.piece(token).decode(errors="replace") or candidate.token_text(token) for token in tokens]
    return ", ".join(f"{token} {text!r}" for token, text in list(zip(tokens, texts))[:5])


def stop_words_check(stops: Sequence[str], goldens: list[dict[str, Any]], ends: list[str], template: str) -> Check:
    """The words at which a server cuts answers, against the tuned model's ends.

    Harmless are the texts of end tokens, and the marks of the chat template, such as '### Instruction:' (Ollama brings them along
    for templates that it knows), where no answer that ended by itself holds them.

    Args:
        goldens: rows of golden.jsonl.
        ends: texts of tokens that end an answer or that no answer holds.
        template: the chat template that was trained with.
    """
    answers = [row["completion"] for row in goldens if row["stopped"]]
    foreign = [
        stop
        for stop in stops
        if stop not in ends and (not is_mark(stop, template) or any(stop in answer for answer in answers))
    ]
    measure = lower_is_better("stop words that are no end", len(foreign), 0, 0)
    if not foreign:
        return Check.of("ends", [measure], "its stop words are ends of the tuned model")
    said = f"the stop word {foreign[0]!r} is no end of the tuned model"
    cut = [number for number, row in enumerate(goldens, 1) if foreign[0] in row["completion"]]
    if cut:
        at = goldens[cut[0] - 1]["completion"].index(foreign[0])
        said += f": it cuts {len(cut)} of {len(goldens)} golden answers, number {cut[0]} after {at} characters"
    if len(foreign) > 1:
        said += f"; so are {', '.join(map(repr, foreign[1:5]))}"
    return Check.of("ends", [measure], f"{said}; take PARAMETER stop out of the Modelfile", {"stop_words": foreign})
