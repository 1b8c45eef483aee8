"""The KL along two goldens: which are kept, what they hold, and characters of several tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest

from toolkit.parity.checks.logits import Flip, Positions, logits_check
from toolkit.parity.heat import LONGEST, chosen, heat, token_texts
from toolkit.parity.limits import limits_for

PIECES = [b"Tea", " 茶".encode()[:2], " 茶".encode()[2:], b"<|end|>", b"\xff"]
ROWS = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {i}?"}],
     "completion_ids": ids}
    for i, ids in enumerate([[0, 3], [0], [0, 1, 2, 3]])
]  # fmt: skip


def positions(kl: list[float], flips: list[Flip]) -> Positions:
    found = Positions()
    found.kl, found.flips = kl, flips
    return found


def test_the_first_and_the_farthest_golden_are_kept() -> None:
    measured = positions([1.0, 2.0, 0.1, 0.123456, 0.0, 0.25, 1e-7], [Flip(2, 0, 0, 4, 0.5), Flip(1, 0, 0, 3, 0.5)])
    first, second = heat(measured, ROWS, PIECES.__getitem__)
    assert first == {
        "golden": 0, "prompt": "Question 0?", "tokens": ["Tea", "<|end|>"], "kl": [1.0, 2.0], "flips": {}, "left_out": 0,
    }  # fmt: skip
    # Golden 2's mean is 0.093, golden 1's is 0.1.
    assert (second["golden"], second["kl"], second["flips"]) == (1, [0.1], {"0": "<|end|>"})
    measured.kl[4] = 0.1
    second = heat(measured, ROWS, PIECES.__getitem__)[1]
    assert (second["golden"], second["kl"]) == (2, [0.123, 0.1, 0.25, 1e-7])
    assert second["tokens"] == ["Tea", " ", "茶", "<|end|>"]
    assert second["flips"] == {"0": "<FF>"}
    assert json.loads(json.dumps(second)) == second


def test_one_golden_is_shown_once_and_a_long_one_is_cut() -> None:
    assert chosen([[0.1]]) == [0]
    row = {"messages": [{"role": "user", "content": "?"}], "completion_ids": [0] * (LONGEST + 7)}
    found = heat(positions([0.5] * (LONGEST + 7), [Flip(0, LONGEST, 0, 1, 0.1)]), [row], PIECES.__getitem__)
    assert (len(found), len(found[0]["tokens"]), len(found[0]["kl"]), found[0]["left_out"]) == (1, LONGEST, LONGEST, 7)
    assert found[0]["flips"] == {}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_texts_of_tokens_join_to_the_whole_text(size: int) -> None:
    text = "Tea, 喝茶 🍵."
    data = text.encode()
    texts = token_texts([data[i : i + size] for i in range(0, len(data), size)])
    assert "".join(texts) == text
    assert token_texts([b"a", "茶".encode()[:1]]) == ["a", "�"]
    assert token_texts([]) == []


def test_the_check_keeps_it() -> None:
    tuned = np.random.default_rng(0).normal(0, 4, (4, 9)).astype(np.float32)
    measured = Positions()
    measured.add(0, [0, 1, 2, 3], tuned, tuned * 0.5, tuned)
    limits, _ = limits_for("F16", 135_000_000, 0.0)
    assert logits_check(measured, limits).details["heat"] == []
    assert logits_check(measured, limits, [{"golden": 0}]).details["heat"] == [{"golden": 0}]
