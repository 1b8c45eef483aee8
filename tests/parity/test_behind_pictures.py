"""A wrong mmproj beside a right language model: the largest difference of a logit behind pictures tells it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.seeing_chain import NEW_TOKENS, SeeingChain, recipe_for, seeing_artifact, seeing_chain
from tests.parity_chain import export
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check
from toolkit.parity.checks.logits import logits_check
from toolkit.parity.eyes import Eyes
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.limits import BEHIND_PICTURES, limits_for
from toolkit.parity.subjects import evaluate

pytestmark = pytest.mark.slow
NAME = "max |logit difference| behind pictures"


@pytest.fixture(scope="module")
def clean() -> SeeingChain:
    return seeing_chain()


@pytest.fixture(scope="module")
def stale(clean: SeeingChain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base's mmproj, as somebody has it who merged the adapter into the language model alone."""
    assert clean.adapter.facts.pictures is not None
    whole = seeing_artifact(clean.base, clean.base, clean.adapter.facts.pictures)
    whole = replace(whole, facts=whole.facts.model_copy(update={"method": "full"}))
    made = export(recipe_for(clean.base, ["F32"]), whole, tmp_path_factory.mktemp("stale") / "x").gguf
    assert made.facts.mmproj is not None
    return made.folder / made.facts.mmproj.name


def judged(clean: SeeingChain, kind: str, mmproj: Path) -> Check:
    files = {f.file_type: a.folder / f.name for a in (clean.export.gguf, clean.export.quantized) for f in a.facts.files}
    eyes = Eyes.of(mmproj, clean.adapter.facts.pictures, load_tokenizer(clean.base), clean.golden.folder)
    limits, _ = limits_for(kind, 40_000_000, 0.0, pictures=True)
    with Candidate(files[kind]) as candidate:
        positions, _ = evaluate(Goldens.read(clean.golden), candidate, NEW_TOKENS, eyes=eyes)
    return logits_check(positions, limits)


def test_a_right_pair_is_within_the_limit(clean: SeeingChain) -> None:
    (measure,) = (m for m in judged(clean, "F32", clean.mmproj).measures if m.name == NAME)
    assert (measure.limit, measure.verdict) == (BEHIND_PICTURES, "pass")
    assert measure.value < BEHIND_PICTURES / 10


def test_a_stale_mmproj_is_beyond_it(clean: SeeingChain, stale: Path) -> None:
    check = judged(clean, "F32", stale)
    (measure,) = (m for m in check.measures if m.name == NAME)
    assert (measure.limit, measure.verdict, check.verdict) == (BEHIND_PICTURES, "fail", "fail")
    assert f"{NAME} {measure.value:.4g} (limit 1)" in check.message


def test_what_rounding_moves_as_far_is_told_alone(clean: SeeingChain) -> None:
    (measure,) = (m for m in judged(clean, "Q8_0", clean.mmproj).measures if m.name == NAME)
    assert (measure.limit, measure.verdict) == (None, None) and measure.value > 0
