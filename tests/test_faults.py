"""Each fault, one at a time in an otherwise clean chain, is blamed on the link that broke; clean chains raise no alarm.

All faults, all families with all ways of training, and the measured values: `python -m tests.bench.faults`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults.chains import Clean, clean_chain, family_base, fault_chain, head_chain
from tests.faults.proof import prove
from tests.faults.table import FAULTS, Fault, cut_short
from toolkit.errors import DataError
from toolkit.parity.certificate import LINKS, OF_PICTURES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", [f for f in FAULTS if not f.only_bench], ids=lambda fault: fault.name)
def test_the_broken_link_is_named(fault: Fault, tmp_path: Path) -> None:
    row = prove(fault, tmp_path / "fault", alone=fault.link == "merge")
    told = f"{row.blame.get('link')}: {row.certificate['message']}"
    if row.alone is not None:
        told += f"; of the file alone: {row.alone['blame']} {row.alone['message']}"
    assert row.right, told
    # Nothing before the broken link is accused.
    chain = {link["link"]: link["verdict"] for link in row.certificate["chain"]}
    before = [link for link in LINKS[: LINKS.index(fault.link)] if link not in OF_PICTURES]
    assert all(chain[link] in ("pass", "not compared") for link in before), chain


def test_every_kind_of_link_has_a_fault() -> None:
    assert {fault.link for fault in FAULTS} == set(LINKS) - {
        "server prompt",
        "server answers",
        "defaults",
        *OF_PICTURES,
    }
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30


def test_a_file_that_was_cut_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is truncated: \d+ bytes expected, \d+ found"):
        cut_short(tmp_path / "cut").certificate(tmp_path / "verify")


def assert_clean(certificate: dict[str, Any]) -> None:
    assert certificate["verdict"] == "pass", certificate["message"]
    assert certificate["blame"] is None and certificate["warnings"] == []
    checks = {(s["name"], c["name"]): c["verdict"] for s in certificate["subjects"] for c in s["checks"]}
    assert set(checks.values()) == {"pass"}, checks


@pytest.mark.parametrize("chain", [fault_chain, head_chain], ids=["qlora", "trained head"])
def test_the_chains_that_faults_are_put_into_are_clean(chain: Any, tmp_path: Path) -> None:
    clean: Clean = chain()
    assert_clean(clean.certificate(tmp_path / "verify"))
    alone = clean.certificate_alone()
    assert_clean(alone)
    assert [s["name"] for s in alone["subjects"]] == ["adapter", "Q4_K_M"]


@pytest.mark.parametrize(
    ("family", "method"), [("qwen2", "rslora"), ("gemma2", "dora"), ("phi3", "lora"), ("llama", "full")]
)
def test_clean_chains_are_clean(family: str, method: str, tmp_path: Path) -> None:
    clean = clean_chain(family, method, family_base(family, tmp_path / "base"), tmp_path)
    certificate = clean.certificate(tmp_path / "verify")
    assert_clean(certificate)
    wanted = "tuned model" if method == "full" else "adapter"
    assert [s["name"] for s in certificate["subjects"]] == [wanted, "merged", "F16", "Q8_0", "Q4_K_M"]
