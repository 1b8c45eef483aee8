"""Where the goldens do not decide, more positions do; they are read as the goldens were."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.parity_chain import Chain, chain
from toolkit.models.reference import TeacherForced
from toolkit.parity.candidate import Candidate
from toolkit.parity.checks.logits import Positions
from toolkit.parity.checks.strength import strength_check
from toolkit.parity.checks.tokens import encode
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.limits import limits_for
from toolkit.parity.more import ROUNDS, Further, Round, decide, further_texts
from toolkit.parity.subjects import evaluate

NARROW = replace(limits_for("Q4_K_M", 10**10, 0.0)[0], strength_low=0.9, strength_high=1.1)


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
    from toolkit.models.reference import TeacherForced

    return [TeacherForced(row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])) for row in goldens.rows]


class OneLogit:
    """A candidate whose every answer is the base moved by a share of the tuning."""

    def __init__(self, share: float, tuned: np.ndarray, base: np.ndarray) -> None:
        self.rows = iter(base + share * (tuned - base))

    @contextlib.contextmanager
    def slots(self, _sequences: int, _length: int) -> Iterator[OneLogit]:
        yield self

    def logits(self, _slot: int, ids: list[int], first: int) -> np.ndarray:
        return np.array([next(self.rows) for _ in ids[first:]])


@pytest.mark.parametrize(("whole", "verdict"), [(True, "pass"), (False, "fail")])
def test_what_the_weights_showed_still_counts_with_more_positions(whole: bool, verdict: str) -> None:
    # Two positions, 0 and 0.95: too few to tell. Then 0.7, which rounding may well do.
    generator = np.random.default_rng(1)
    tuned, base = (generator.normal(0, 2, (200, 50)).astype(np.float32) for _ in range(2))
    ids = tuned.argmax(-1).tolist()
    positions = Positions()
    for number, share in enumerate((0.0, 0.95)):
        positions.add(number, ids[:1], tuned[:1], base[:1], base[:1] + share * (tuned[:1] - base[:1]))
    at_first = strength_check(positions, NARROW, whole)
    assert at_first.verdict == "inconclusive", at_first.message
    texts = [TeacherForced([0, *ids[i : i + 10]], 1) for i in range(0, 200, 10)]

    class Once:
        def round(self, number: int) -> Round | None:
            return Round(texts, tuned, base) if number == 0 else None

    check = decide(Once(), OneLogit(0.7, tuned, base), positions, NARROW, whole)  # type: ignore[arg-type]
    assert check.verdict == verdict, check.message
    assert 0.65 < check.measures[0].value < 0.75


def test_positions_are_added_until_the_interval_decides(clean: Chain) -> None:
    goldens = few(clean, 2)
    file = clean.export.quantized.facts.files[1]
    assert file.file_type == "Q4_K_M"
    with Candidate(clean.export.quantized.folder / file.name) as candidate:
        positions, _ = evaluate(goldens, candidate, 24)
        before = len(positions.kl)
        at_first = strength_check(positions, NARROW)
        wide = at_first.measures[2].value - at_first.measures[1].value
        # A band as wide as nine tenths of the interval cannot hold it, and is wide enough for a few times as many positions.
        band = replace(NARROW, strength_low=at_first.measures[0].value - wide * 0.45,
                       strength_high=at_first.measures[0].value + wide * 0.45)  # fmt: skip
        assert strength_check(positions, band).verdict == "inconclusive"
        check = decide(Further(clean.adapter, goldens, tokenizer(clean)), candidate, positions, band)
    assert before < check.details["positions"] <= before * (ROUNDS + 1) * 2
    assert check.measures[2].value - check.measures[1].value < wide
    assert len(positions.kl) == before
