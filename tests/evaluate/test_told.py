"""What is said in plain words, from figures made by hand."""

from __future__ import annotations

import math
from typing import Any

from toolkit.evaluate.figure import Figure
from toolkit.evaluate.told import forgot_of, sentences, verdict_of

BASE = [3.0, 2.5, 2.0, 3.5, 2.2, 2.8, 3.1, 2.9]
LOWER = [1.5, 1.2, 1.1, 1.6, 1.0, 1.3, 1.5, 1.4]


def _loss(
    tuned: list[float], about: Any = "help", name: str = "held-out loss", **exports: list[float]
) -> dict[str, Any]:
    values = {"base": BASE[: len(tuned)], "tuned": tuned, **exports}
    return Figure(name, "nats a token", False, about, [10.0] * len(tuned), values, perplexity=True).as_json()


def _right(tuned: list[float], about: Any = "help", before: float = 0.0) -> dict[str, Any]:
    values = {"base": [before] * len(tuned), "tuned": tuned}
    return Figure("right answers", "share", True, about, [1.0] * len(tuned), values, share=True).as_json()


def test_helped_and_the_export_keeps_it() -> None:
    figures = [_loss(LOWER, Q8_0=[value + 0.01 for value in LOWER])]
    assert verdict_of(figures) == "helped"
    told = sentences(figures, "Q8_0")
    assert told[0].startswith("Helped: held-out loss 2.750 → 1.325 (-1.425, between -1.6")
    assert told[1].startswith("Q8_0, which is served, keeps 99 % [99, 99] of it (held-out loss).")


def test_a_model_that_got_worse_is_not_called_helped() -> None:
    higher = [value + 0.8 + 0.01 * place for place, value in enumerate(BASE)]
    assert verdict_of([_loss(higher)]) == "harmed"
    assert sentences([_loss(higher)], "")[0].startswith("Did not help, it did harm: held-out loss")
    # Better at one thing and worse at another is said as both.
    mixed = [_right([1.0] * 8), _loss(higher)]
    assert verdict_of(mixed) == "mixed"
    assert sentences(mixed, "")[0].startswith("Helped in part: better is right answers 0 % → 100 %")


def test_a_broken_model_is_called_broken() -> None:
    figures = [_loss([*LOWER[:7], math.nan])]
    assert verdict_of(figures) == "harmed"
    assert "no number any more: the model is broken" in sentences(figures, "Q8_0")[0]
    assert figures[0]["subjects"]["tuned"]["value"] is None


def test_too_few_rows_say_how_many_would_do() -> None:
    figures = [_loss(LOWER[:3])]
    assert verdict_of(figures) == "undecided"
    told = sentences(figures, "")[0]
    assert told.startswith("Whether it helped is open: too few rows are held out: held-out loss")
    assert told.endswith("About 6 held-out rows would decide (by held-out loss; 3 are there).")


def test_all_equal_is_open_and_no_number_of_rows_helps() -> None:
    told = sentences([_loss(list(BASE))], "")[0]
    assert "The differences are so small that no number of rows worth having would decide" in told


def test_forgetting_has_its_own_sentence() -> None:
    same = [value + 0.002 * (-1) ** place for place, value in enumerate(BASE)]
    kept = [_loss(same, "forgetting", "loss on general text"), _right([1.0] * 8, "forgetting", 1.0)]
    assert forgot_of(kept) == "nothing seen" and verdict_of(kept) == "unknown"
    (told,) = sentences(kept, "")
    assert told.startswith("Forgot nothing that this can see: ")
    assert told.endswith("right answers 100 % → 100 % (+0 points, between -37 and +37).")
    little = [_loss([value + 0.04 + 0.001 * place for place, value in enumerate(BASE)], "forgetting")]
    assert forgot_of(little) == "forgot" and sentences(little, "")[0].startswith("Forgot a little: ")
    much = [_loss([value + 1 for value in BASE], "forgetting")]
    assert sentences(much, "")[0].startswith("Forgot: ")
    fewer = [_right([0.0] * 8, "forgetting", 1.0)]
    assert sentences(fewer, "")[0].startswith("Forgot: right answers 100 % → 0 %")


def test_nothing_was_measured() -> None:
    assert verdict_of([]) == forgot_of([]) == "unknown" and sentences([], "Q8_0") == []
