"""What is served must earn what the tuned model earns, as far as the rows can tell."""

from __future__ import annotations

import numpy as np

from toolkit.evaluate.figure import Figure
from toolkit.evaluate.rewards import earns_less, rewards_of
from toolkit.train.rewards import REWARDS

RIGHT = "<reasoning>\n3 * 4 = 12\n</reasoning>\n<answer>\n12\n</answer>"
WRONG = "It is twelve, I think."


def _figures(served: list[str], tuned: list[str] | None = None) -> list[Figure]:
    told = {"base": [WRONG] * 12, "tuned": tuned or [RIGHT] * 12, "served": served}
    return rewards_of(told, ["3 * 4 = 12\n#### 12"] * 12, REWARDS)


def test_a_server_that_loses_the_form_is_named() -> None:
    broken = earns_less(_figures([WRONG] * 12))
    assert broken.startswith(
        "what Ollama answers to 12 held-out questions earns 0.00 (reward, all together), the tuned model 4.00"
    )
    assert earns_less(_figures([RIGHT] * 4 + [WRONG] * 8))


def test_the_same_answers_and_some_others_are_no_alarm() -> None:
    assert earns_less(_figures([RIGHT] * 12)) == ""
    assert earns_less(_figures([RIGHT] * 11 + [WRONG])) == ""
    assert earns_less(_figures([RIGHT] * 12, [WRONG] * 12)) == ""
    assert earns_less([]) == ""


def test_right_exports_that_part_at_near_ties_are_seldom_refused() -> None:
    generator = np.random.default_rng(3)
    refused = 0
    for _ in range(300):
        tuned, served = ([RIGHT if right else WRONG for right in generator.random(12) < 0.5] for _ in range(2))
        refused += bool(earns_less(_figures(served, tuned)))
    assert refused / 300 <= 0.01
