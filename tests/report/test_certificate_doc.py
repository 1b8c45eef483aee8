"""docs/certificate.md names every key, measure and limit of certificates that a real chain leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.parity_chain import blend, chain, damaged
from toolkit.parity.certificate import LINKS, SCHEMA
from toolkit.parity.checks.weights import LARGEST_ORIGINAL_SHARE, STRENGTH_ROOM, STRENGTH_ROOM_ELSE
from toolkit.parity.comparison import LARGEST, LARGEST_QUANTIZED
from toolkit.parity.floors import floor_of
from toolkit.parity.limits import _TABLE
from toolkit.parity.verify import verify
from toolkit.report.page import certificate_page

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "certificate.md").read_text(encoding="utf-8")
NAMED = {name.replace("\\|", "|") for name in re.findall(r"`([^`\n]+)`", DOC)}
BY_NAME = {"files", "versions", "flips", "others"}
"""Dictionaries whose keys are names or numbers of the run's own."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A clean chain's and a damaged one's."""
    clean, place = chain(), tmp_path_factory.mktemp("doc")
    half = damaged(clean, lambda path: blend(path, clean.without_adapter, 0.5), place / "half")
    found = []
    for name, export in (("clean", clean.export), ("half", half)):
        out = place / f"{name}-verify"
        out.mkdir()
        verify(clean.recipe, clean.adapter, clean.golden, export.model, export.gguf, export.quantized, out)
        found.append(json.loads((out / "certificate.json").read_text(encoding="utf-8")))
    return found


def keys(value: Any, under: str = "") -> set[str]:
    """Every key of a certificate that its schema gives a meaning."""
    if isinstance(value, list):
        return set().union(*(keys(v, under) for v in value))
    if not isinstance(value, dict):
        return set()
    own = under in BY_NAME or (under in ("layers", "tensors") and bool(value))
    return (set() if own else set(value)) | set().union(*(keys(v, k) for k, v in value.items()))


def test_every_key_is_named(certificates: list[dict[str, Any]]) -> None:
    passed, failed = certificates
    assert (passed["verdict"], failed["verdict"]) == ("pass", "fail")
    found = keys(passed) | keys(failed)
    assert {"blame", "heat", "left_out", "effect_kl", "still", "sha256", "suspect"} <= found
    assert found <= NAMED, sorted(found - NAMED)


def test_every_check_and_measure_is_named(certificates: list[dict[str, Any]]) -> None:
    checks = [c for certificate in certificates for s in certificate["subjects"] for c in s["checks"]]
    assert {c["name"] for c in checks} <= NAMED
    measures = {m["name"] for c in checks for m in c["measures"]}
    assert len(measures) > 30
    assert measures <= NAMED, sorted(measures - NAMED)
    assert set(LINKS) <= NAMED


def test_the_pages_of_real_certificates(certificates: list[dict[str, Any]]) -> None:
    clean, half = (certificate_page(certificate) for certificate in certificates)
    assert "✓</span> Passed" in clean
    assert "✗</span> Failed" in half
    assert "What broke first: conversion" in half
    # Two goldens of each of three files.
    assert clean.count('<figure class="heat">') == half.count('<figure class="heat">') == 6
    assert len(clean.encode()) < 200_000
    logits = next(check for check in certificates[0]["subjects"][-1]["checks"] if check["name"] == "logits")
    golden = (chain().golden.folder / "golden.jsonl").read_text(encoding="utf-8").splitlines()
    for row in logits["details"]["heat"]:
        wanted = json.loads(golden[row["golden"]])
        assert len(row["tokens"]) == len(row["kl"]) == len(wanted["completion_ids"])
        assert "".join(row["tokens"]).startswith(wanted["completion"][:20])


def test_the_example_is_a_certificate() -> None:
    (example,) = re.findall(r"```json\n(.*?)\n```", DOC, re.S)
    certificate = json.loads(example)
    assert certificate["schema"] == SCHEMA
    assert "How can I ease a sore throat?" in certificate_page(certificate)


def test_every_limit_is_told() -> None:
    for file_type, limits in _TABLE.items():
        numbers = (limits.mean_kl, limits.p99_kl, limits.top1, limits.flip_margin, limits.perplexity_ratio)
        told = " | ".join(f"{value:g}" for value in numbers)
        row = f"| {file_type} | {told} | {limits.strength_low:g} … {limits.strength_high:g} | {limits.stops:g} |"
        assert row in DOC, row


def test_every_floor_is_told() -> None:
    for file_type in _TABLE:
        told = [file_type]
        for small in (True, False):
            floor = floor_of(file_type, small)
            told += [f"{floor.mean_kl:.1e}", f"{floor.p99_kl:.1e}", f"{floor.top1:.3f}"]
        assert f"| {' | '.join(told)} |" in DOC, told


def test_the_limits_of_the_weights_are_told() -> None:
    assert f"| `share of the original base` | {LARGEST_ORIGINAL_SHARE:g}," in DOC
    for room in {STRENGTH_ROOM_ELSE, *STRENGTH_ROOM.values()}:
        assert f"{1 - room:g} to {1 + room:g}" in DOC, room
    assert f"{LARGEST // 10**6} million weights, or {LARGEST_QUANTIZED:,}" in DOC


def test_the_picture_is_there_and_small() -> None:
    picture = ROOT / "docs" / "certificate.png"
    assert "](certificate.png)" in DOC
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size <= 300_000
