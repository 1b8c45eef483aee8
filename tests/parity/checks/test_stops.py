"""Answers are finished from where teacher forcing left them; ends and leaks are judged. On the embedded model's own GGUF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np
import pytest

from toolkit.models.embedded import find_gguf
from toolkit.parity.candidate import Candidate
from toolkit.parity.checks.logits import Positions
from toolkit.parity.checks.stops import Answer, begin, ends_missed, finish, leaked, least_endings, stops_check
from toolkit.parity.limits import limits_for

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
LIMITS, _ = limits_for("F16", 10**10, 0.0)
END = 2


@pytest.fixture(scope="module")
def candidate() -> Iterator[Candidate]:
    with Candidate(find_gguf()) as opened:
        yield opened


def greedy(candidate: Candidate, tokens: int) -> list[int]:
    """The plain way: the whole sequence again for every token."""
    ids = candidate.tokenize(PROMPT)
    start = len(ids)
    with candidate.slots(1, 128) as slots:
        while len(ids) - start < tokens and not (len(ids) > start and candidate.ends(ids[-1])):
            ids.append(int(slots.logits(0, [*ids, 0], len(ids))[0].argmax()))
    return ids[start:]


def row(candidate: Candidate, completion: list[int]) -> dict[str, Any]:
    ended = completion[-1] == END
    text = candidate.text(completion[:-1] if ended else completion)
    return {
        "prompt_ids": candidate.tokenize(PROMPT), "completion_ids": completion, "completion": text,
        "stopped": ended, "end_token": END if ended else None,
    }  # fmt: skip


def test_an_answer_is_finished_as_if_it_had_been_generated_alone(candidate: Candidate) -> None:
    own = greedy(candidate, 16)
    other = [*own[:3], own[3] + 1, *own[4:]]  # the tuned model said something else at the fourth token
    with candidate.slots(2, 128) as slots:
        answers = []
        for slot, completion in enumerate([own, other]):
            golden = row(candidate, completion)
            ids = golden["prompt_ids"]
            best = slots.logits(slot, ids + completion, len(ids)).argmax(-1).tolist()
            answers.append(begin(golden, best, candidate))
        assert answers[0].tokens == own
        assert answers[1].tokens == own[:4]
        finish(slots, candidate, answers, 16)
    assert answers[0].tokens == own
    assert answers[1].tokens == own
    assert (answers[0].matched, answers[1].matched) == (len(own), 3)


def test_a_cache_that_cannot_be_shortened_is_filled_anew(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    # As recurrent layers have it: a part of a sequence cannot be forgotten.
    remove = llama_cpp.llama_memory_seq_rm

    def all_or_nothing(memory: Any, slot: int, first: int, last: int) -> bool:
        return bool(remove(memory, slot, first, last)) if first <= 0 else False

    own = greedy(candidate, 12)
    monkeypatch.setattr(llama_cpp, "llama_memory_seq_rm", all_or_nothing)
    other = [*own[:3], own[3] + 1, *own[4:]]
    golden = row(candidate, other)
    with candidate.slots(1, 128) as slots:
        ids = golden["prompt_ids"]
        answer = begin(golden, slots.logits(0, ids + other, len(ids)).argmax(-1).tolist(), candidate)
        assert answer.tokens == own[:4]
        finish(slots, candidate, [answer], 12)
        # The next golden in the same slot begins from nothing.
        again = slots.logits(0, ids + other, len(ids)).argmax(-1).tolist()
    assert answer.tokens == own
    assert again[:4] == own[:4]


def check(candidate: Candidate, answers: list[Answer], own: bool = False) -> Any:
    positions = Positions()
    tuned = np.tile(np.array([3.0, 1.0, 0.0, 0.0], dtype=np.float32), (4, 1))
    positions.add(0, [0] * 4, tuned, tuned * 0, tuned)
    return stops_check(candidate, answers, positions, LIMITS, [END], ["<|im_start|>", "<|im_end|>"], own)


def test_verdicts(candidate: Candidate) -> None:
    paris = [*candidate.tokenize("Paris."), END]
    golden = row(candidate, paris)
    assert golden["stopped"]
    assert check(candidate, [Answer(golden, paris)] * 3).verdict == "pass"
    few = check(candidate, [Answer(golden, paris)])
    assert few.verdict == "inconclusive"
    assert "1 golden answers that end by themselves are too few to tell" in few.message
    runs_on = Answer(golden, [*paris[:-1], *paris[:-1]])
    found = check(candidate, [runs_on] * 6)
    assert found.verdict == "fail"
    assert "answers that end by themselves 0" in found.message
    # One that runs on proves nothing: at 4 bits texts part, and one of three may well come to no end.
    assert check(candidate, [runs_on, Answer(golden, paris), Answer(golden, paris)]).verdict == "pass"
    # <|endoftext|> ends generation in llama.cpp too, but it is not how this model ends its answers.
    assert candidate.ends(0)
    other = check(candidate, [Answer(golden, [*paris[:-1], 0])] * 6)
    assert other.verdict == "fail"
    # Where the goldens' answers are the export's own, they say nothing about it.
    told = check(candidate, [runs_on] * 6, own=True)
    assert (told.verdict, [m.verdict for m in told.measures]) == ("pass", ["pass", None, None, None, None])
    assert "the goldens' answers are this file's own" in told.message
    # Where no golden ended, nobody knows how the export ends.
    endless = row(candidate, paris[:-1])
    unknown = check(candidate, [Answer(endless, paris[:-1])] * 6)
    assert unknown.verdict == "not compared"
    assert unknown.message.startswith("no golden answer ended by itself")
    assert "end with another token 6" in other.message


def test_a_leaked_marker_is_found_as_a_token_and_as_text(candidate: Candidate) -> None:
    golden = row(candidate, [*candidate.tokenize("Paris."), END])
    as_token = Answer(golden, [*candidate.tokenize("Paris. <|im_start|>"), END])
    assert leaked(candidate, as_token, ["<|im_start|>"]) == "<|im_start|>"
    spelled = Answer(golden, [*candidate.tokenize("Paris. <|im_"), *candidate.tokenize("start|>"), END])
    assert leaked(candidate, spelled, ["<|im_start|>"]) == "<|im_start|>"
    assert check(candidate, [spelled]).verdict == "fail"
    assert leaked(candidate, Answer(golden, golden["completion_ids"]), ["<|im_start|>"]) == ""
    # What the tuned model says too is no fault of the export.
    assert leaked(candidate, Answer(golden | {"completion": "<|im_start|>"}, as_token.tokens), ["<|im_start|>"]) == ""


def test_how_many_endings_are_enough() -> None:
    # Fewer than these happen to right files in one of 30,000 checks.
    assert [least_endings(n, 0.6) for n in (0, 1, 6, 12, 20)] == [0, 0, 0, 1, 3]
    assert [least_endings(n, 0.9) for n in (0, 1, 6, 12, 20)] == [0, 0, 1, 5, 11]


def test_ends_that_are_missed() -> None:
    """Lost ends lose all; one that is missed decides nothing, and nor do one or two that are there."""

    def verdict(missed: int, ends: int) -> object:
        return ends_missed(list(range(missed)), list(range(ends))).verdict

    assert [verdict(n, n) for n in (4, 12)] == ["fail"] * 2
    assert [verdict(0, n) for n in (1, 2, 3, 12)] == ["inconclusive"] * 2 + ["pass"] * 2
    assert [verdict(n, 12) for n in (1, 2, 7)] == ["pass", "inconclusive", "fail"]
    assert ends_missed([], []).verdict == "pass"
