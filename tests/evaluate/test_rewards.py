"""What is served must earn what the tuned model earns, as far as the rows can tell."""

from __future__ import annotations

from toolkit.evaluate.rewards import earns_less, rewards_of
from toolkit.train.rewards import REWARDS

RIGHT = "<reasoning>\n3 * 4 = 12\n</reasoning>\n<answer>\n12\n</answer>"
WRONG = "It is twelve, I think."


def _figures(served: list[str]) -> list[dict[str, object]]:
    told = {"base": [WRONG] * 12, "tuned": [RIGHT] * 12, "served": served}
    return [figure.as_json() for figure in rewards_of(told, ["3 * 4 = 12\n#### 12"] * 12, REWARDS)]


def test_a_server_that_loses_the_form_is_named() -> None:
    broken = earns_less(_figures([WRONG] * 12))
    assert broken.startswith(
        "what Ollama answers to 12 held-out questions earns 0.00 (reward, all together), the tuned model 4.00"
    )


def test_the_same_answers_and_one_other_are_no_alarm() -> None:
    assert earns_less(_figures([RIGHT] * 12)) == ""
    assert earns_less(_figures([RIGHT] * 11 + [WRONG])) == ""
    assert earns_less([]) == ""
