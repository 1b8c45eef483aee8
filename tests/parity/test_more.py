"""Where the goldens do not decide, more positions do; they are read as the goldens were."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.parity_chain import Chain, chain
from toolkit.models.reference import TeacherForced
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Verdict
from toolkit.parity.checks.logits import Positions, logits_check
from toolkit.parity.checks.strength import strength_check
from toolkit.parity.checks.tokens import encode
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.limits import limits_for
from toolkit.parity.more import ROUNDS, Further, decide, further_texts, read_rounds
from toolkit.parity.subjects import evaluate

LIMITS, _ = limits_for("Q8_0", 10**10, 0.0)


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


def few(clean: Chain, count: int) -> Goldens:
    """The first so many goldens."""
    whole = Goldens.read(clean.golden)
    positions = sum(len(row["completion_ids"]) for row in whole.rows[:count])
    return replace(whole, rows=whole.rows[:count], tuned=whole.tuned[:positions], base=whole.base[:positions])


def tokenizer(clean: Chain) -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(clean.export.model.folder)


def test_rounds_are_new_texts_over_the_same_prompts(clean: Chain) -> None:
    goldens = few(clean, 3)
    rounds = list(further_texts(goldens, tokenizer(clean)))
    assert len(rounds) == 3
    for row, text in zip(goldens.rows, rounds[0]):
        assert text.ids[: text.first] == row["prompt_ids"]
        assert text.ids[text.first :] == encode(tokenizer(clean), row["base_completion"])
    assert rounds[1][0].ids[rounds[1][0].first :] == goldens.rows[1]["completion_ids"]
    assert rounds[2][2].ids[rounds[2][2].first :] == goldens.rows[1]["completion_ids"]


def test_the_logits_of_a_round_are_those_that_would_be_recorded(clean: Chain) -> None:
    goldens = few(clean, 2)
    further = Further(clean.adapter, goldens, tokenizer(clean))
    # The second prompt with the first one's answer and the other way round: swapped back, they are the goldens themselves.
    further._texts = iter([[text for text in _own(goldens)]])
    found = further.round(0)
    assert found is not None
    assert np.abs(found.tuned - goldens.tuned).max() < 2e-3
    assert np.abs(found.base - goldens.base).max() < 2e-3
    assert further.round(1) is None
    # On the run's own disk, and gone with the object.
    (folder,) = clean.adapter.folder.parent.glob(".more-*")
    assert sorted(path.name for path in folder.iterdir()) == ["base-0.npy", "tuned-0.npy"]
    del further, found
    gc.collect()
    assert not folder.exists()


def _own(goldens: Goldens) -> list[object]:

    return [TeacherForced(row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])) for row in goldens.rows]


def rounds_of(*shares: float) -> list[Positions]:
    """Rounds of ten texts of twenty tokens each, whose every answer is the base moved by a share of the tuning."""
    generator = np.random.default_rng(1)
    tuned, base = (generator.normal(0, 2, (200, 50)).astype(np.float32) for _ in range(2))
    found = []
    for share in shares:
        positions = Positions()
        for text in range(10):
            part = slice(20 * text, 20 * text + 20)
            # Texts differ in how much they show.
            export = base[part] + (share + 0.02 * (text - 4.5)) * (tuned[part] - base[part])
            positions.add(text, tuned[part].argmax(-1).tolist(), tuned[part], base[part], export)
        found.append(positions)
    return found


@pytest.mark.parametrize(("whole", "verdict"), [(True, "pass"), (False, "fail")])
def test_what_the_weights_showed_still_counts_with_more_positions(whole: bool, verdict: str) -> None:
    # Two texts, 0 and 0.95: too few to tell. Then 0.7, which rounding may well do.
    (sure,) = rounds_of(0.7)
    few = Positions()
    for share in (0.0, 0.95):
        (one,) = rounds_of(share)
        one.text = [0] * 20
        for name in ("kl", "kl_base", "margin", "loss_tuned", "loss_export", "together", "alone"):
            setattr(one, name, getattr(one, name)[:20])
        one.flips, one.flipped = [], []
        few.join(one)
    at_first = strength_check(few, LIMITS, whole)
    assert at_first.verdict == "inconclusive" and at_first.details["texts_needed"], at_first.message
    (check,) = decide(lambda so_far: [strength_check(so_far, LIMITS, whole)], few, [sure, sure, sure, sure])
    assert check.verdict == verdict, check.message
    assert 0.6 < check.measures[0].value < 0.75


def test_rounds_are_read_only_while_they_may_decide() -> None:
    taken = []

    def rounds() -> Iterator[Positions]:
        for number, positions in enumerate(rounds_of(*[1.0] * 9)):
            taken.append(number)
            yield positions

    def judged(needed: list[int]) -> Callable[[Positions], list[Check]]:
        def judge(so_far: Positions) -> list[Check]:
            more = needed[min(so_far.texts // 10, len(needed)) - 1]
            verdict: Verdict = "inconclusive" if more else "pass"
            return [Check(name="strength", verdict=verdict, message="", details={"texts_needed": more})]

        return judge

    (first,) = rounds_of(1.0)
    for needed, wanted in (([0], 0), ([20, 0], 1), ([40, 40, 40, 0], 3), ([99], ROUNDS)):
        taken.clear()
        (check,) = decide(judged(needed), first, rounds())
        assert (len(taken), check.verdict) == (wanted, "pass" if needed[-1] == 0 else "inconclusive")
    assert first.texts == 10


def test_positions_are_added_until_the_sample_decides(clean: Chain) -> None:
    goldens = few(clean, 2)
    path = clean.export.gguf.folder / clean.export.gguf.facts.files[0].name
    limits, _ = limits_for("F16", 10**6, 0.0)
    with Candidate(path) as candidate:
        positions, _ = evaluate(goldens, candidate, 24)
        before = len(positions.kl)
        assert logits_check(positions, limits).verdict == "inconclusive"  # two texts
        further = Further(clean.adapter, goldens, tokenizer(clean))
        strength, logits = decide(
            lambda so_far: [strength_check(so_far, limits), logits_check(so_far, limits)], positions,
            read_rounds(further, candidate),
        )  # fmt: skip
    assert (strength.verdict, logits.verdict) == ("pass", "pass"), (strength.message, logits.message)
    assert before < strength.details["positions"] == logits.details["positions"]
    assert strength.details["texts"] in (4, 6)
    assert len(positions.kl) == before
