"""certificate.html: what it shows, that nothing in a certificate becomes markup, and that it needs nothing from outside."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import DataError
from toolkit.parity.certificate import (
    LINKS,
    OF_PICTURES,
    SCHEMA,
    Check,
    Measure,
    Subject,
    blame_of,
    chain_of,
    higher_is_better,
    lower_is_better,
    verdict_of,
)
from toolkit.report.drawn import Bar, heat_maps, layers, limit_told, number, strips
from toolkit.report.page import LINKS_ASKED, QUESTIONS, certificate_page, subjects_of, with_served, write_page

HEAT = [
    {"golden": 0, "prompt": "感冒了怎么办？", "tokens": ["多", "休息", "\n", "", "<|im_end|>"],
     "kl": [1e-9, 1e-5, 1e-3, 1.0, 7.5], "flips": {"1": "喝水", "4": "?"}, "left_out": 3},
]  # fmt: skip


def weights(strength: float, layer: float = 1.0) -> Check:
    measures = [
        Measure(name="strength in the weights", value=strength, floor=1.0, limit=0.97,
                verdict="pass" if strength > 0.97 else "fail"),
        Measure(name="its error", value=0.001),
    ]  # fmt: skip
    rows = {"0": {"strength": 1.0, "error": 0.01}, "1": {"strength": layer, "error": 0.01}}
    told = "nothing but rounding" if strength > 0.97 else f"the adapter is there {strength:.3f} times: alpha is wrong"
    return Check.of("weights", measures, told, {"layers": rows}, "merge")


def answers(value: float) -> Check:
    low, high = value - 0.01, value + 0.02
    measures = [
        Measure(name="strength", value=value, verdict="pass" if low > 0.95 else "fail", limit=0.95, floor=1.0),
        Measure(name="strength low", value=low, limit=0.95),
        Measure(name="strength high", value=high, limit=1.05),
    ]
    return Check.of("strength", measures, f"{value}")


def logits(kl: float, limit: float = 0.015) -> Check:
    measures = [
        lower_is_better("mean KL", kl, limit, 0.0059, "nats"),
        Measure(name="top-1 agreement", value=0.939, floor=0.965),
        higher_is_better("top-1 agreement but for near ties", 0.998, 0.94, 1.0),
    ]
    return Check.of("logits", measures, f"mean KL {kl}", {"heat": HEAT})


def chain_subjects(strength: float = 1.0, kl: float = 0.004) -> list[Subject]:
    moved = Check.of("moved", [], "all 2 modules moved", {"layers": {"0": 1.0, "1": 2.0}})
    text = [Check.of(name, [lower_is_better("that differ", 0, 0, 0)], "all equal") for name in ("prompts", "tokens")]
    structure = Check.of("structure", [], "all there")
    merged, served = [*text, structure, weights(strength)], [*text, structure, weights(strength), answers(strength)]
    return [
        Subject(name="adapter", kind="adapter", file="train", file_type="LoRA", counts="everything", checks=[moved]),
        Subject(name="merged", kind="merged", file="merge", file_type="F32", counts="everything", checks=merged),
        Subject(name="Q8_0", kind="quantized", file="health-Q8_0.gguf", file_type="Q8_0", counts="everything", served=True,
                relaxed="a small model", checks=[*served, logits(kl)]),
        Subject(name="Q4_0", kind="quantized", file="health-Q4_0.gguf", file_type="Q4_0", counts="text only",
                checks=[*text, logits(kl, 0.001)]),
    ]  # fmt: skip


def certificate(subjects: list[Subject]) -> dict[str, Any]:
    verdict, message, warnings = verdict_of(subjects)
    blame = blame_of(subjects)
    made = {
        "schema": SCHEMA, "verdict": verdict, "message": message, "blame": blame.model_dump() if blame else None,
        "chain": [link.model_dump() for link in chain_of(subjects)], "served_file": "health-Q8_0.gguf", "warnings": warnings,
        "reference": {"what": "the tuned model", "positions": 571, "forward": "whole"},
        "subjects": [subject.as_json() for subject in subjects],
        "files": {"quantize/health-Q8_0.gguf": {"sha256": "0eeb7f2c", "bytes": 144_811_872}},
        "versions": {"gguf": "0.19.0"}, "made": "2026-10-01T08:00:00+00:00",
    }  # fmt: skip
    return json.loads(json.dumps(made))  # as it is read from a file


class Markup(HTMLParser):
    """Every tag with the names of its attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *sorted(name for name, _ in attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def rows(page: str) -> list[list[str]]:
    """The cells of every table row, as text."""
    cells = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?>(.*?)</tr>", page, re.S)
    ]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells]


def test_a_passing_certificate() -> None:
    page = certificate_page(certificate(chain_subjects()))
    text = Markup(page).text
    assert (
        "✓ Passed The export is what was trained. Not compared: conversion, server prompt, server answers, defaults."
        in text
    )
    classes = re.findall(r'<li class="([a-z -]+)">\s*<div class="link"', page)
    assert classes == ["pass"] * 5 + ["not-compared", "pass", *["not-compared"] * 3]
    for link in LINKS:
        if link in OF_PICTURES:  # it sees nothing
            assert f"<strong>{link}</strong>" not in page
            continue
        assert f"<strong>{link}</strong>" in page
        assert LINKS_ASKED[link] in text
    assert "What broke first" not in text
    assert "made 2026-10-01 08:00:00 UTC" in text
    found = rows(page)
    # Value, limit and floor side by side.
    assert ["mean KL", "0.004 nats", "≤ 0.015", "0.0059", "✓ passed"] in found
    assert ["mean KL", "0.004 nats", "≤ 0.001", "0.0059", "✗ failed"] in found
    assert ["top-1 agreement but for near ties", "0.998", "≥ 0.94", "1", "✓ passed"] in found
    assert ["top-1 agreement", "0.939", "", "0.965", ""] in found
    assert [
        "Q8_0 ★ served health-Q8_0.gguf", "✓ passed", "1.000 ± 0.001", "1.000 [0.990, 1.020]", "0.004 ≤ 0.015", "93.9%",
        "99.8%, ≥ 94.0%",
    ] in found  # fmt: skip
    assert ["quantize/health-Q8_0.gguf", "144,811,872", "0eeb7f2c"] in found
    assert "Wider limits a small model" in text
    assert "Do not use Q4_0: logits fails: mean KL 0.004" in text
    assert "positions 571 forward whole" in text
    # What is served, and what fails, is open.
    assert [bool(x) for x in re.findall(r"<details( open)?>", page)] == [False, False, True, True]


def test_a_broken_chain_is_blamed_on_its_first_broken_link() -> None:
    page = certificate_page(certificate(chain_subjects(0.5, 0.8)))
    text = Markup(page).text
    assert "✗ Failed Merge broke, seen in merged: the adapter is there 0.500 times: alpha is wrong." in text
    assert re.findall(r'<li class="([a-z]+) blamed">', page) == ["fail"]
    assert "✗ merge failed: it broke here" in text
    told = "seen in merged check weights measure strength in the weights value 0.5 limit 0.97"
    assert f"What broke first: merge The adapter is there 0.500 times: alpha is wrong. {told}" in text
    assert ["strength in the weights", "0.5", "≥ 0.97", "1", "✗ failed"] in rows(page)


def test_every_verdict_is_told_in_words_and_by_a_sign() -> None:
    undecided = Check(name="strength", verdict="inconclusive", message="too few positions")
    subjects = chain_subjects()
    subjects[2] = subjects[2].model_copy(update={"checks": [*subjects[2].checks, undecided]})
    page = certificate_page(certificate(subjects))
    assert "? Not proved" in Markup(page).text
    assert re.search(r"<strong>quantization</strong>\s*<em>not proved</em>", page)
    for word in ("✓</b> passed", "✗</b> failed", "?</b> not proved", "–</b> not compared"):
        assert word in page


def poisoned(value: Any, poison: str, keep: tuple[str, ...]) -> Any:
    """Every text of a certificate with `poison` behind it, but for empty ones, and words whose list is closed."""
    if isinstance(value, dict):
        return {k if k in KEYS else k + poison: v if k in keep else poisoned(v, poison, keep) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, poison, keep) for v in value]
    return value + poison if value and isinstance(value, str) else value


KEYS = {
    *certificate(chain_subjects(0.5)), *Subject.model_fields, *Check.model_fields, *Measure.model_fields, *HEAT[0], "blame",
    "link", "where", "check", "measure", "layers", "heat", "strength", "error", "sha256", "bytes", "0", "1", "4",
}  # fmt: skip
CLOSED = ("schema", "verdict", "link", "kind", "counts", "suspect")


@pytest.mark.parametrize(
    "poison", ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "{{ 7*7 }}</style>", "&lt;"]
)
def test_nothing_in_a_certificate_becomes_markup(poison: str) -> None:
    clean = certificate(chain_subjects(0.5, 0.8))
    bad = poisoned(clean, poison, CLOSED)
    assert bad["message"].endswith(poison)
    # Names of checks and measures decide which pictures are drawn: keep them, or there is less to attack.
    for subject, right in zip(bad["subjects"], clean["subjects"]):
        for check, sound in zip(subject["checks"], right["checks"]):
            check["name"] = sound["name"]
            for m, wanted in zip(check["measures"], sound["measures"]):
                m["name"] = wanted["name"]
    before, after = Markup(certificate_page(clean)), Markup(certificate_page(bad))
    assert after.tags == before.tags
    assert after.open == before.open == []
    assert after.text.count(poison) >= 40


def test_the_page_needs_nothing_from_outside() -> None:
    page = certificate_page(certificate(chain_subjects()))
    for word in ("<script", "<link", "<img", "src=", "href=", "url(", "@import", "http:", "https:"):
        assert word not in page, word
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert len(page.encode()) < 60_000
    tags = Markup(page).tags
    assert ("meta", "content", "name") in tags  # the width of a telephone
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_words_of_closed_lists_are_checked() -> None:
    right = certificate(chain_subjects(0.5))
    for change in (
        {"verdict": "pass><b>"},
        {"schema": "tune2ollama.certificate/1"},
        {"made": None, "chain": [{"link": "x"}]},
    ):
        with pytest.raises(DataError):
            certificate_page({**right, **change})
    gone = copy.deepcopy(right)
    del gone["reference"]
    with pytest.raises(DataError, match="damaged"):
        certificate_page(gone)
    kind = copy.deepcopy(right)
    kind["subjects"][0]["kind"] = "adapter'"
    with pytest.raises(DataError, match="damaged"):
        subjects_of(kind)


def test_a_subjects_verdict_is_worked_out_not_believed() -> None:
    forged = certificate(chain_subjects(0.5))
    for subject in forged["subjects"]:
        subject["verdict"] = "pass"
    assert [s.verdict for s in subjects_of(forged)] == ["pass", "fail", "fail", "fail"]
    assert ["merged merge", "✗ failed", "0.500 ± 0.001", "", "", "", ""] in rows(certificate_page(forged))


def test_the_server_joins_the_chain() -> None:
    right = certificate(chain_subjects())
    checks = [Check.of("prompts", [lower_is_better("prompts that differ", 2, 0, 0)], "2 of 16 prompts differ")]
    served = Subject(name="health", kind="served", file="health", file_type="Q8_0", counts="everything", checks=checks)
    whole = with_served(right, json.loads(json.dumps(served.as_json())))
    assert right["verdict"] == "pass"
    assert (whole["verdict"], whole["message"]) == (
        "fail",
        "server prompt broke, seen in health: 2 of 16 prompts differ",
    )
    assert [link["verdict"] for link in whole["chain"]][-3:] == ["fail", "not compared", "not compared"]
    assert whole["blame"]["link"] == "server prompt"
    assert whole["warnings"] == right["warnings"]
    assert "What broke first: server prompt" in certificate_page(whole)
    with pytest.raises(DataError, match="damaged"):
        with_served(right, {"name": "health"})


def test_heat_is_logarithmic_and_flips_say_what_the_export_would_have_said() -> None:
    (golden,) = heat_maps(chain_subjects()[2])
    assert [token.heat for token in golden.tokens] == [0.0, 0.0, 0.4, 1.0, 1.0]
    assert [token.text for token in golden.tokens] == ["多", "休息", "⏎", "·", "<|im_end|>"]
    assert [token.flip for token in golden.tokens] == [None, "喝水", None, None, "?"]
    assert golden.told == (
        "5 tokens, mean KL 1.7 nats, highest 7.5 at “<|im_end|>”, 2 tokens differ; 3 further tokens are not shown"
    )
    page = certificate_page(certificate(chain_subjects()))
    flip = '<ruby class="token flip" style="--t:0.0" title="KL 1e-5 nats; the export would have said &#39;喝水&#39;">'
    assert f"{flip}休息<rt>喝水</rt></ruby>" in page
    assert "&lt;|im_end|&gt;" in page
    assert "Golden 1: 感冒了怎么办？" in page


def test_heat_that_is_not_as_expected_is_left_out() -> None:
    for heat in (None, "x", [1], [{"golden": 0}], [{**HEAT[0], "kl": [1.0]}], [{**HEAT[0], "tokens": [], "kl": []}]):
        check = Check(name="logits", verdict="pass", message="", details={"heat": heat})
        subject = chain_subjects()[2].model_copy(update={"checks": [check]})
        assert heat_maps(subject) == []


def test_strengths_lie_on_a_line_from_lost_to_twice() -> None:
    found = strips(chain_subjects(0.5)[1:3])
    assert [(s.subject, s.source, s.verdict) for s in found] == [
        ("merged", "weights", "fail"), ("Q8_0", "weights", "fail"), ("Q8_0", "answers", "fail"),
    ]  # fmt: skip
    assert (found[0].place, found[0].low, found[0].high, found[0].band) == (25.0, 24.95, 25.05, (48.5, 51.5))
    assert (found[2].place, found[2].band, found[2].told) == (25.0, (47.5, 52.5), "0.500 [0.490, 0.520]")
    beyond = strips([chain_subjects()[2].model_copy(update={"checks": [weights(4.0), weights(float("nan"))]})])
    assert [(s.place, s.told) for s in beyond] == [(100.0, "4.000 ± 0.001")]


def test_a_layer_with_another_strength_is_marked() -> None:
    subject = chain_subjects()[1].model_copy(update={"checks": [weights(0.98, 0.0)]})
    found = layers(subject)
    assert found is not None
    assert found.bars == [
        Bar("0", "layer 0: 1.000 ± 0.020", 50.0, False),
        Bar("1", "layer 1: 0.000 ± 0.020", 0.0, True),
    ]
    assert found.line == 50.0
    moved = layers(chain_subjects()[0])
    assert moved is not None
    assert [(bar.height, bar.marked) for bar in moved.bars] == [(50.0, False), (100.0, False)]
    subject = subject.model_copy(
        update={"checks": [Check(name="weights", verdict="pass", message="", details={"layers": {"0": 1}})]}
    )
    assert layers(subject) is None


def test_numbers_and_limits() -> None:
    told = [
        number(v) for v in (None, 20.0, 0.0, 0.99546, 4.17e-6, 49152.0, 521850.66, float("nan"), float("inf"), 1.0018)
    ]
    assert told == ["", "20", "0", "0.9955", "4.17e-6", "49,152", "521,851", "nan", "inf", "1.002"]
    assert limit_told(lower_is_better("", 2, 1)) == limit_told(lower_is_better("", 0, 1)) == "≤ 1"
    assert limit_told(higher_is_better("", 2, 1)) == limit_told(higher_is_better("", 0, 1)) == "≥ 1"
    assert limit_told(lower_is_better("", 1, 1)) == limit_told(Measure(name="", value=3, limit=1)) == "1"
    assert limit_told(lower_is_better("", float("nan"), 1)) == "1"


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    right = certificate(chain_subjects())
    assert write_page(right, tmp_path) == tmp_path / "certificate.html"
    assert [p.name for p in tmp_path.iterdir()] == ["certificate.html"]
    assert (tmp_path / "certificate.html").read_text(encoding="utf-8") == certificate_page(right)


def test_a_wheel_holds_the_templates() -> None:
    root = Path(__file__).parents[2]
    patterns = re.findall(r'"(report/[^"]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"))
    held = {path for pattern in patterns for path in (root / "toolkit").glob(pattern)}
    others = {p for p in (root / "toolkit" / "report").iterdir() if p.is_file() and p.suffix != ".py"}
    names = {"certificate.html.jinja", "certificate.css", "inspected.html.jinja", "pictured.html.jinja"}
    assert {p.name for p in held} == names
    assert held == others


def test_every_check_that_the_toolkit_makes_has_its_question() -> None:
    made = set()
    for source in (Path(__file__).parents[2] / "toolkit").rglob("*.py"):
        made |= set(re.findall(r'Check(?:\.of)?\(\s*(?:name=)?"([a-z]+)"', source.read_text(encoding="utf-8")))
    assert {"moved", "strength", "logits"} <= made
    assert {*made, "weights", "vision"} <= set(QUESTIONS)  # these two are one check, by its part's name
