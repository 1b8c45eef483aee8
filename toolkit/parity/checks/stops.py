"""Does the export end its answers where the tuned model does, with the same token, and without leaking markers?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.parity.candidate import Candidate, Slots
from toolkit.parity.certificate import Check, Measure, higher_is_better, lower_is_better
from toolkit.parity.checks.logits import Positions
from toolkit.parity.limits import Limits
from toolkit.parity.sample import fewest, share

MISSED_ENDS, LOST_ENDS = 0.02, 0.95
"""Share of ends that a right file may miss; share that is not there where ends are lost, which has to be excluded."""


@dataclass
class Answer:
    """A golden answer, and the export's own greedy answer to the same prompt."""

    golden: dict[str, Any]
    """The row of golden.jsonl."""
    tokens: list[int]
    """The export's: begun from its teacher-forced choices up to the first that differs from the tuned model's."""
    behind: int | None = None
    """Position behind a prompt with pictures, which take fewer positions than tokens; None: it has none."""

    @property
    def begins(self) -> int:
        """Position of the first token."""
        return len(self.golden["prompt_ids"]) if self.behind is None else self.behind

    @property
    def matched(self) -> int:
        """How many tokens agree before the first difference."""
        pairs = zip(self.tokens, self.golden["completion_ids"])
        return next(
            (i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(self.golden["completion_ids"]))
        )


def begin(golden: dict[str, Any], best: list[int], candidate: Candidate, behind: int | None = None) -> Answer:
    """The export's answer as far as teacher forcing shows it: up to its first difference, or to where llama.cpp ends it.

    Args:
        best: its most probable token at each position of the golden answer.
        behind: position behind the prompt, where that has pictures.
    """
    wanted = golden["completion_ids"]
    same = next(
        (i for i, (a, b) in enumerate(zip(best, wanted)) if a != b or candidate.ends(a)),
        len(wanted),
    )
    return Answer(golden, best[: same + 1], behind)


def finish(slots: Slots, candidate: Candidate, answers: list[Answer], new_tokens: int) -> None:
    """Generate the rest of each answer greedily, all slots together; slot i holds answer i's golden, teacher-forced."""
    running = []
    for slot, answer in enumerate(answers):
        if len(answer.tokens) < new_tokens and not candidate.ends(answer.tokens[-1]):
            # The cache holds the golden tokens, which are the export's own up to its last one.
            slots.shorten(slot, answer.begins + len(answer.tokens) - 1)
            running.append(slot)
    while running:
        steps = [
            (slot, answers[slot].begins + len(answers[slot].tokens) - 1, answers[slot].tokens[-1]) for slot in running
        ]
        for slot, token in zip(list(running), slots.step(steps).argmax(-1).tolist()):
            answers[slot].tokens.append(token)
            if candidate.ends(token) or len(answers[slot].tokens) >= new_tokens:
                running.remove(slot)


def stops_check(
    candidate: Candidate,
    answers: list[Answer],
    positions: Positions,
    limits: Limits,
    end_tokens: list[int],
    markers: list[str],
    own: bool = False,
) -> Check:
    """Judge the ends.

    - teacher-forced, where the tuned model confidently ends an answer, so does the export;
    - about as many of the export's own greedy answers end by themselves, with the same tokens (their texts may part before,
      so not all need to; see `least_endings`);
    - no marker shows up in an answer where the tuned model shows none.

    Args:
        end_tokens: ids at which the tuned model ends.
        markers: texts of all special tokens.
        own: the goldens' answers are this export's own, so what it answers is only told.
    """
    measures: list[Measure] = []
    missed = [
        flip
        for flip in positions.flips
        if flip.margin > limits.flip_margin and flip.tuned in end_tokens and flip.export not in end_tokens
    ]
    ending = [number for number, answer in enumerate(answers) if answer.golden["stopped"]]
    measures.append(ends_missed([flip.golden for flip in missed], ending))
    wanted = sum(bool(answer.golden["stopped"]) for answer in answers)
    ended = sum(answer.tokens[-1] in end_tokens for answer in answers)
    least = least_endings(wanted, limits.stops)
    measures.append(higher_is_better("answers that end by themselves", ended, least, wanted))
    foreign = [a for a in answers if candidate.ends(a.tokens[-1]) and a.tokens[-1] not in end_tokens]
    measures.append(lower_is_better("answers that end with another token", len(foreign), len(answers) - wanted, 0))
    leaks = [leak for answer in answers if (leak := leaked(candidate, answer, markers))]
    measures.append(lower_is_better("answers that leak a marker", len(leaks), 0, 0))
    matched = [answer.matched / len(answer.golden["completion_ids"]) for answer in answers]
    measures.append(Measure(name="mean matched prefix", value=sum(matched) / len(matched)))
    if own:
        measures = [measures[0], *(measure.model_copy(update={"verdict": None}) for measure in measures[1:])]
    broken = [m.told() for m in measures if m.verdict == "fail"]
    open_still = [m.told() for m in measures if m.verdict == "inconclusive"]
    message = "; ".join(broken or open_still) or _good(ended, wanted)
    if open_still and not broken:
        message += f"; {len(ending)} golden answers that end by themselves are too few to tell: add golden prompts"
    if own:
        message += "; the goldens' answers are this file's own, so how it answers is only told"
    if leaks:
        message += f"; first leak {leaks[0]!r}"
    details = {
        "missed": [flip._asdict() for flip in missed[:10]],
        "leaks": leaks[:10],
        "answers": [candidate.text(answer.tokens, special=False) for answer in answers[:4]],
    }
    check = Check.of("stops", measures, message, details)
    if wanted == 0 and check.verdict == "pass":
        return check.model_copy(update={"verdict": "not compared"})
    return check


def ends_missed(missed: list[int], ends: list[int]) -> Measure:
    """Where the tuned model surely ends and the export goes on: lost ends lose nearly all, a single one is no proof.

    Args:
        missed: the goldens where it was seen.
        ends: the goldens that end by themselves.
    """
    if not ends:
        return lower_is_better("ends missed", len(missed), 0, 0)
    found = share(np.array([float(number in missed) for number in ends]), np.ones(len(ends)))
    return Measure(
        name="ends missed", value=len(missed), low=found.low * len(ends), high=found.high * len(ends),
        limit=max(MISSED_ENDS * len(ends), 1), floor=0, verdict=found.verdict(MISSED_ENDS, LOST_ENDS, 1 / len(ends)),
    )  # fmt: skip


def least_endings(wanted: int, share_of_them: float) -> int:
    """Fewest self-ended answers that are no fault: what chance makes of a share of the tuned model's (`fewest`).

    Texts part after a few dozen tokens at 4 bits and go their own ways, so a few answers say little; lost ends lose all.
    """
    return fewest(wanted, share_of_them)


def _good(ended: int, wanted: int) -> str:
    if wanted == 0:
        return (
            "no golden answer ended by itself, so nobody knows how the export ends its own: raise golden.max_new_tokens"
        )
    return f"{ended} answers end by themselves, the tuned model's {wanted}"


def leaked(candidate: Candidate, answer: Answer, markers: list[str]) -> str:
    """The first marker in the export's answer that the tuned model's does not show; empty when there is none."""
    tokens = answer.tokens[:-1] if candidate.ends(answer.tokens[-1]) else answer.tokens
    shown = candidate.text(tokens, special=True)
    expected = answer.golden["completion"]
    return next((marker for marker in markers if marker in shown and marker not in expected), "")
