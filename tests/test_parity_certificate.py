"""The verdict: worst of what counts, first broken link to blame, nothing hidden."""

from __future__ import annotations

import math

import pytest

from toolkit.parity.certificate import Check, Link, Verdict, higher_is_better, lower_is_better, verdict_of, worst


def link(name: str, counts: str, **checks: Verdict) -> Link:
    return Link(
        name=name, kind="quantized", file=name, file_type=name, counts=counts, served=counts == "everything",
        checks=[Check(name=check, verdict=verdict, message="why") for check, verdict in checks.items()],
    )  # fmt: skip


def test_worst() -> None:
    assert worst([]) == "pass"
    assert worst(["pass", "inconclusive"]) == "inconclusive"
    assert worst(["fail", "pass", "inconclusive"]) == "fail"


@pytest.mark.parametrize("value", [math.nan, 2.0])
def test_measures_fail_on_nan_and_beyond(value: float) -> None:
    assert lower_is_better("x", value, 1.0).verdict == "fail"
    assert higher_is_better("x", -value, 1.0).verdict == "fail"
    assert lower_is_better("x", 1.0, 1.0).verdict == higher_is_better("x", 1.0, 1.0).verdict == "pass"


def test_the_served_file_decides_and_others_warn() -> None:
    served = link("Q8_0", "everything", strength="pass", logits="pass")
    verdict, message, warnings = verdict_of([served, link("Q2_K", "text only", logits="fail", strength="inconclusive")])
    assert (verdict, message) == ("pass", "what is served is what was trained")
    assert warnings == ["Q2_K: logits fails: why", "Q2_K: strength is inconclusive: why"]
    verdict, message, _ = verdict_of([served, link("Q2_K", "text only", tokens="fail")])
    assert (verdict, message) == ("fail", "Q2_K: tokens fails: why")


def test_the_ancestor_fails_what_is_made_from_it_but_its_doubt_is_a_warning() -> None:
    served = link("Q8_0", "everything", strength="pass")
    assert verdict_of([link("F16", "ancestor", logits="fail"), served])[0] == "fail"
    verdict, _, warnings = verdict_of([link("F16", "ancestor", strength="inconclusive"), served])
    assert (verdict, len(warnings)) == ("pass", 1)


def test_inconclusive_never_passes_and_the_first_broken_link_is_blamed() -> None:
    doubtful = link("Q8_0", "everything", strength="inconclusive", logits="pass")
    assert verdict_of([doubtful])[0] == "inconclusive"
    verdict, message, _ = verdict_of(
        [link("merged", "everything", prompts="pass"), link("F16", "ancestor", tokens="fail"), doubtful]
    )
    assert (verdict, message) == ("fail", "F16: tokens fails: why")
