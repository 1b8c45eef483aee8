"""KL, top-1, flips and perplexity against values worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toolkit.errors import DataError
from toolkit.models.gguf_file import GGUFHeader, GGUFTensor
from toolkit.parity.certificate import Check
from toolkit.parity.checks.logits import Flip, Positions, logits_check
from toolkit.parity.checks.strength import strength_check
from toolkit.parity.limits import file_type_of, limits_for
from toolkit.recipe.schema import FILE_TYPES


def rows(*probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities, dtype=np.float32))


def test_values_by_hand() -> None:
    tuned, base = rows([0.7, 0.2, 0.1], [0.5, 0.4, 0.1]), rows([0.1, 0.8, 0.1], [0.5, 0.4, 0.1])
    export = rows([0.7, 0.2, 0.1], [0.4, 0.5, 0.1]) + 3  # a shift of all logits says nothing
    found = Positions()
    assert found.add(4, [0, 0], tuned, base, export) == [0, 1]
    assert found.kl == pytest.approx([0.0, 0.1 * math.log(1.25)], abs=1e-6)
    assert found.kl_base == pytest.approx([0.7 * math.log(7) + 0.2 * math.log(0.25), 0.0], abs=1e-6)
    assert found.top1 == 0.5
    assert found.flips == [Flip(4, 1, 0, 1, pytest.approx(0.1, abs=1e-6))]
    assert found.perplexity_ratio == pytest.approx(math.sqrt(0.5 / 0.4), abs=1e-6)


def texts_of(tuned: np.ndarray, base: np.ndarray, export: np.ndarray, each: int) -> Positions:
    """Positions of texts of so many tokens each."""
    found = Positions()
    for text, start in enumerate(range(0, len(tuned), each)):
        part = slice(start, start + each)
        found.add(text, tuned[part].argmax(-1).tolist(), tuned[part], base[part], export[part])
    return found


def measure(check: Check, name: str) -> float:
    return next(m.value for m in check.measures if m.name == name)


def test_a_difference_behind_pictures_is_judged_where_rounding_lets_it() -> None:
    name = "max |logit difference| behind pictures"
    tuned = np.random.default_rng(2).normal(0, 4, (40, 60)).astype(np.float32)
    moved = tuned.copy()
    moved[7, np.argmin(tuned[7])] += 1.5  # of a token that nobody says: neither KL nor the favourites notice
    told = {}
    for kind, shown in (("F16", True), ("F16", False), ("Q8_0", True)):
        found = Positions()
        for text in range(0, 40, 10):
            part = slice(text, text + 10)
            found.add(text, [0] * 10, tuned[part], tuned[part] * 0.5, moved[part], behind_pictures=shown)
        check = logits_check(found, limits_for(kind, 7_000_000_000, 0.0)[0])
        told[kind, shown] = [(m.limit, m.verdict) for m in check.measures if m.name == name]
        assert (check.verdict == "fail") == (told[kind, shown] == [(1.0, "fail")]), check.message
    assert told == {("F16", True): [(1.0, "fail")], ("F16", False): [], ("Q8_0", True): [(None, None)]}
    both, further = Positions(), Positions()
    both.add(0, [0] * 10, tuned[:10], tuned[:10], tuned[:10], behind_pictures=True)
    # Of texts that were put together anew: a model is unsure there, and single logits move much farther in right files.
    further.add(0, [0] * 10, tuned[:10], tuned[:10], moved[:10], behind_pictures=True)
    both.join(further)
    assert both.largest_behind_pictures == pytest.approx(0, abs=1e-5) and both.largest_difference > 1


def test_gates() -> None:
    limits, relaxed = limits_for("Q8_0", 7_000_000_000, 0.0)
    assert relaxed == ""
    generator = np.random.default_rng(0)
    tuned = generator.normal(0, 4, (200, 60)).astype(np.float32)
    near = texts_of(tuned, tuned * 0.5, tuned + generator.normal(0, 0.01, tuned.shape).astype(np.float32), 10)
    assert logits_check(near, limits).verdict == "pass"
    check = logits_check(texts_of(tuned, tuned * 0.5, tuned * 0.5, 10), limits)
    assert check.verdict == "fail"
    assert "mean KL" in check.message
    assert measure(check, "top-1 agreement") == 1.0
    check = logits_check(texts_of(tuned, tuned * 0.5, -tuned, 10), limits)
    assert measure(check, "confident flips") > 100
    assert check.details["flips"][0]["margin"] >= check.details["flips"][-1]["margin"]


def test_logits_that_are_no_numbers_fail() -> None:
    tuned = np.tile(rows([0.6, 0.3, 0.1]), (40, 1))
    base, export = tuned[:, ::-1].copy(), tuned.copy()
    export[3, 1] = math.nan
    limits = limits_for("Q2_K", 10**10, 0.0)[0]
    of_export, of_tuned = Positions(), Positions()
    of_export.add(0, [0] * 40, tuned, base, export)
    of_tuned.add(0, [0] * 40, export, base, tuned)
    for found in (of_export, of_tuned):
        assert (found.broken, len(found.kl)) == (1, 40)
        assert math.isnan(found.largest_difference)
        for check in (logits_check(found, limits), strength_check(found, limits, whole_in_weights=True)):
            assert check.verdict == "fail"
            assert check.message == "at 1 of 40 positions the probabilities are no numbers"
            assert json.loads(check.model_dump_json())


def test_few_texts_decide_less_than_many() -> None:
    """Twice the limit: of six short answers that may be chance, of thirty it is not; and nothing beyond a limit passes."""
    limits, _ = limits_for("Q8_0", 10**10, 0.0)
    generator = np.random.default_rng(2)
    tuned = generator.normal(0, 4, (300, 60)).astype(np.float32)
    export = tuned + generator.normal(0, 0.17, tuned.shape).astype(np.float32)
    checks = [logits_check(texts_of(tuned[:n], tuned[:n] * 0.5, export[:n], 10), limits) for n in (10, 60, 300)]
    assert [check.verdict for check in checks] == ["inconclusive", "inconclusive", "fail"], [c.message for c in checks]
    kl = [next(m for m in check.measures if m.name == "mean KL") for check in checks]
    assert all(m.value > 1.5 * limits.mean_kl and m.limit == limits.mean_kl for m in kl)
    assert kl[0].high is None and kl[1].low is not None and kl[1].low < limits.mean_kl < (kl[2].low or 0)
    assert f"about {checks[1].details['texts_needed']} would decide (now 6): add golden prompts" in checks[1].message
    assert 6 < checks[1].details["texts_needed"] <= 60


def test_further_texts_are_joined_as_if_they_had_been_added() -> None:
    generator = np.random.default_rng(3)
    tuned, base, export = (generator.normal(0, 2, (40, 30)).astype(np.float32) for _ in range(3))
    both = texts_of(tuned, base, export, 10)
    first, second = (texts_of(tuned[part], base[part], export[part], 10) for part in (slice(0, 20), slice(20, 40)))
    first.join(second)
    assert first == both
    assert [first.margin[at] for at in first.flipped] == [flip.margin for flip in first.flips]


def test_one_near_tie_is_no_failure_among_few_positions() -> None:
    tuned = np.tile(rows([0.6, 0.3, 0.1]), (80, 1))
    tuned[3] = rows([0.4002, 0.3998, 0.2])[0]
    export = tuned.copy()
    export[3] = rows([0.3998, 0.4002, 0.2])[0]
    found = texts_of(tuned, tuned[::-1] * 0.2, export, 10)
    assert found.top1 == 1 - 1 / 80
    assert logits_check(found, limits_for("F16", 10**10, 0.0)[0]).verdict == "pass"


def test_near_ties_say_nothing_and_real_differences_do() -> None:
    limits, _ = limits_for("Q8_0", 10**10, 0.0)  # margin 0.1, so near ties are below 0.025
    for margin, verdict in ((0.01, "pass"), (0.06, "fail")):
        tuned = np.tile(rows([0.4 + margin, 0.4, 0.2 - margin]), (200, 1))
        export = tuned.copy()
        export[::10, :2] = tuned[::10, 1::-1]  # one of ten positions has its two best tokens swapped
        check = logits_check(texts_of(tuned, tuned * 0.5, export, 10), limits)
        assert measure(check, "top-1 agreement") == 0.9
        assert measure(check, "confident flips") == 0
        gate = next(m for m in check.measures if m.name == "top-1 agreement but for near ties")
        assert gate.verdict == verdict


@pytest.mark.parametrize(
    ("number", "stored", "found"),
    [
        (15, "Q4_K", "Q4_K_M"),
        (None, "Q3_K", "Q3_K_M"),
        ("15", "Q5_K", "Q5_K_M"),
        ([15], "F16", "F16"),
        (99, "Q8_0", "Q8_0"),
    ],
)
def test_a_file_type_is_told_by_its_number_or_else_by_its_tensors(number: object, stored: str, found: str) -> None:
    tensors = [GGUFTensor("a", (256, 2), stored, 0, 0), GGUFTensor("norm", (256,), "F32", 0, 0)]
    metadata = {} if number is None else {"general.file_type": number}
    assert file_type_of(GGUFHeader(metadata, tensors, 0), Path("x.gguf")) == found
    with pytest.raises(DataError, match=r"x\.gguf holds no matrix"):
        file_type_of(GGUFHeader(metadata, tensors[1:], 0), Path("x.gguf"))


def test_limits_widen_for_small_models_and_many_fallbacks_only() -> None:
    strict, _ = limits_for("Q4_K_M", 7_000_000_000, 0.1)
    wide, why = limits_for("Q4_K_M", 135_000_000, 0.9)
    assert (strict.mean_kl, wide.mean_kl) == (0.05, 0.25)
    assert wide.top1 == pytest.approx(0.8)
    assert wide.perplexity_ratio == pytest.approx(1.12)
    assert wide.strength_low == strict.strength_low
    assert "135 M" in why
    assert "90%" in why
    shown, why = limits_for("F16", 135_000_000, 0.0, pictures=True)
    assert (shown.mean_kl, shown.p99_kl, shown.strength_low) == (1e-3, 1e-2, 0.99) and "pictures" in why
    same = replace(limits_for("F16", 135_000_000, 0.0)[0], floor=None)
    assert same == replace(limits_for("F16", 10**10, 0.0)[0], floor=None)


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize(("parameters", "on"), [(135_000_000, "SmolLM2-135M"), (10**10, "256 wide")])
def test_every_floor_is_below_its_limit(file_type: str, parameters: int, on: str) -> None:
    limits, _ = limits_for(file_type, parameters, 0.0)
    assert limits.floor is not None and on in limits.floor.measured_on
    assert 0 < limits.floor.mean_kl < limits.mean_kl
    assert limits.floor.mean_kl < limits.floor.p99_kl < limits.p99_kl
    assert limits.floor.top1 > 0.5
