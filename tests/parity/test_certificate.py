"""The verdict: worst of what counts, first broken link to blame, nothing hidden."""

from __future__ import annotations

import json
import math

import pytest

from toolkit.parity.certificate import (
    LINKS,
    OF_PICTURES,
    Check,
    Kind,
    Measure,
    Subject,
    Verdict,
    blame_of,
    certificate_text,
    chain_of,
    higher_is_better,
    lower_is_better,
    verdict_of,
    worst,
)


def subject(name: str, counts: str, kind: Kind = "quantized", **checks: Verdict) -> Subject:
    return Subject(
        name=name, kind=kind, file=name, file_type=name, counts=counts, served=counts == "everything",
        checks=[Check(name=check, verdict=verdict, message="why") for check, verdict in checks.items()],
    )  # type: ignore[arg-type]  # fmt: skip


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
    served = subject("Q8_0", "everything", strength="pass", logits="pass")
    verdict, message, warnings = verdict_of(
        [served, subject("Q2_K", "text only", logits="fail", strength="inconclusive")]
    )
    assert (verdict, message) == ("pass", "the export is what was trained")
    assert warnings == ["Q2_K: logits fails: why", "Q2_K: strength is inconclusive: why"]
    verdict, message, _ = verdict_of([served, subject("Q2_K", "text only", tokens="fail")])
    assert (verdict, message) == ("fail", "tokenizer broke, seen in Q2_K: why")


def test_the_ancestor_fails_what_is_made_from_it_but_its_doubt_is_a_warning() -> None:
    served = subject("Q8_0", "everything", strength="pass")
    assert verdict_of([subject("F16", "ancestor", "converted", logits="fail"), served])[0] == "fail"
    verdict, _, warnings = verdict_of([subject("F16", "ancestor", "converted", strength="inconclusive"), served])
    assert (verdict, len(warnings)) == ("pass", 1)


def test_without_an_export_nothing_was_compared() -> None:
    wanted = ("inconclusive", "nothing was compared with what was trained", [])
    assert verdict_of([]) == wanted
    assert verdict_of([subject("adapter", "everything", "adapter", moved="pass")]) == wanted
    assert verdict_of([subject("adapter", "everything", "adapter", moved="fail")])[0] == "fail"


def test_inconclusive_never_passes() -> None:
    doubtful = subject("Q8_0", "everything", strength="inconclusive", logits="pass")
    verdict, message, _ = verdict_of([doubtful])
    assert (verdict, message) == ("inconclusive", "quantization is not proved, seen in Q8_0: why")
    assert blame_of([doubtful]) is None


def test_the_first_broken_link_is_blamed_whatever_broke_after_it() -> None:
    subjects = [
        subject("Q8_0", "everything", structure="fail", logits="fail"),
        subject("F16", "ancestor", "converted", prompts="pass", weights="fail"),
        subject("merged", "everything", "merged", prompts="pass", weights="pass"),
    ]
    blame = blame_of(subjects)
    assert blame is not None
    assert (blame.link, blame.where, blame.check) == ("structure", "Q8_0", "structure")
    chain = chain_of(subjects)
    assert [link.link for link in chain] == [link for link in LINKS if link not in OF_PICTURES]
    found = {link.link: (link.verdict, link.where) for link in chain}
    assert found["template"] == ("pass", "merged")
    assert found["merge"] == ("pass", "merged")
    assert found["conversion"] == ("fail", "F16")
    assert found["quantization"] == ("fail", "Q8_0")
    assert found["server answers"] == ("not compared", "")


def test_a_suspected_earlier_link_is_blamed_unless_its_product_is_right() -> None:
    lost = Check(name="weights", verdict="fail", message="the adapter is not in it", suspect="merge")
    alone = Subject(name="Q8_0", kind="quantized", file="x", file_type="Q8_0", counts="everything", checks=[lost])
    blame = blame_of([alone])
    assert blame is not None
    assert blame.link == "merge"
    merged = subject("merged", "everything", "merged", weights="pass")
    converted = subject("F16", "ancestor", "converted", tokens="pass").model_copy(update={"made_from": "merged"})
    for source in ([merged], [merged, converted], [converted, merged]):
        blame = blame_of([alone.model_copy(update={"made_from": source[-1].name}), *source])
        assert blame is not None
        assert blame.link == "quantization", [s.name for s in source]


@pytest.mark.parametrize("kind", ["merged", "converted", "quantized"])
@pytest.mark.parametrize("theirs_first", [False, True])
def test_another_ones_right_file_acquits_nobody(kind: Kind, theirs_first: bool) -> None:
    lost = Check(name="weights", verdict="fail", message="the adapter is not in it", suspect="merge")
    theirs = Subject(name="theirs", kind="quantized", file="x", file_type="Q4_K", counts="everything", checks=[lost])
    ours = subject("ours", "everything", kind, weights="pass")
    blame = blame_of([theirs, ours] if theirs_first else [ours, theirs])
    assert blame is not None
    assert (blame.link, blame.where) == ("merge", "theirs")


def test_what_was_not_compared_neither_passes_nor_fails() -> None:
    assert worst(["not compared", "pass"]) == "pass"
    assert worst(["not compared"]) == "not compared"
    found = subject("Q8_0", "everything", tokens="pass", weights="not compared")  # type: ignore[arg-type]
    assert (found.verdict, verdict_of([found])[0], verdict_of([found])[2]) == ("pass", "pass", [])
    assert next(link for link in chain_of([found]) if link.link == "quantization").verdict == "not compared"
    assert verdict_of([found.model_copy(update={"counts": "text only"})])[2] == []


def test_a_value_that_is_no_number_is_null_in_json() -> None:
    measure = Measure(name="x", value=math.nan)
    assert json.loads(measure.model_dump_json())["value"] is None
    assert measure.model_dump()["value"] is None
    assert math.isnan(Measure.model_validate({"name": "x", "value": None}).value)


def test_no_certificate_holds_what_json_does_not_have() -> None:
    details = {"kl": [0.5, math.nan], "layers": {"0": {"strength": math.inf, "error": -math.inf}}, "shape": (2, 3)}
    check = Check(name="logits", verdict="fail", message="why", details=details)
    wanted = {"kl": [0.5, None], "layers": {"0": {"strength": None, "error": None}}, "shape": [2, 3]}
    assert check.model_dump()["details"] == json.loads(check.model_dump_json())["details"] == wanted
    with pytest.raises(ValueError, match="not JSON compliant"):
        certificate_text({"value": math.nan})


def test_the_server_is_named_only_when_it_was_asked() -> None:
    served = subject("medical", "everything", "served", prompts="pass", answers="pass")
    assert verdict_of([subject("Q8_0", "everything", logits="pass"), served])[1] == "what is served is what was trained"


@pytest.mark.parametrize(
    ("value", "limit", "told"),
    [
        (1.0013, 1.001, "ratio 1.0013 (limit 1.001)"),
        (1.001, 1.001, "ratio 1.001 (limit 1.001)"),
        (1.0010000004, 1.001, "ratio 1.0010000004 (limit 1.001)"),
        (0.2, 0.1, "ratio 0.2 (limit 0.1)"),
        (3.0, None, "ratio 3"),
        (math.nan, 0.1, "ratio nan (limit 0.1)"),
        (12346.0, 12345.0, "ratio 1.235e+04 (limit 1.234e+04)"),
    ],
)
def test_a_value_and_a_limit_that_differ_never_look_alike(value: float, limit: float | None, told: str) -> None:
    assert Measure(name="ratio", value=value, limit=limit).told() == told
