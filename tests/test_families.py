"""Families whose shapes a toy configuration would miss, to the certificate: what `tests.bench.families` does for all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.families.chain import take
from tests.families.gemma import GEMMA3
from tests.families.hybrids import LFM2
from tests.families.llama import SMOLLM3
from tests.families.qwen import QWEN3_MOE
from tests.families.tokenizers import Vocabulary
from tests.families.zoo import Family
from tests.parity_chain import GOLDEN

pytestmark = pytest.mark.slow

OF_F16 = 1e-4
"""Mean KL, nats: right files are at 1e-5; a forgotten scale or layer without positions is 5e-2."""
# SmolLM2's 49,152 tokens instead of its own 128,256: a third of the time.
SMALLER = replace(
    SMOLLM3,
    vocabulary=Vocabulary(
        "smollm2", "HuggingFaceTB-SmolLM3-3B", "<|im_end|>", own=False, words=("<think>", "</think>")
    ),
)


@pytest.mark.parametrize("family", [LFM2, GEMMA3, SMALLER, QWEN3_MOE], ids=lambda family: family.name)
def test_a_family_goes_the_whole_way_to_its_certificate(family: Family, tmp_path: Path) -> None:
    row = take(family, tmp_path, ("F16", "Q8_0"), upto="verify", prompts=GOLDEN[:6])
    assert row.reason == ""
    assert row.kl is not None
    assert row.kl < OF_F16
    assert row.verdicts == dict.fromkeys(("adapter", "merged", "F16", "Q8_0"), "pass"), row.measures
