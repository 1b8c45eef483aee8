"""Did it help, did it forget: figures by hand, intervals that say what few rows cannot, and a planted change that is seen."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from toolkit.evaluate.comparison import Interval, difference, mean, rows_that_decide
from toolkit.evaluate.general import paragraphs, questions
from toolkit.evaluate.texts import chrf, has_result, pieces, right, rouge_l
from toolkit.evaluate.words import sentences
from toolkit.run.facts import Measured


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("the cat sat", "the cat sat on the mat", 2 * 3 / 9),
        ("mat the on sat cat the", "the cat sat on the mat", 2 * 3 / 12),
        ("The CAT, sat!", "the cat sat", 1.0),
        ("", "the cat", 0.0), ("", "", 1.0), ("?!", "...", 1.0),
        ("多喝水", "多喝温水", 2 * 3 / 7),
        ("请多休息", "多休息请", 2 * 3 / 8),
    ],
)  # fmt: skip
def test_rouge_l(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_pieces_are_words_or_characters() -> None:
    assert pieces("Ollama 0.34 运行模型") == ["ollama", "0", "34", "运", "行", "模", "型"]


def test_chrf_is_sacrebleus() -> None:
    assert chrf("the cat", "the cat") == pytest.approx(1.0) and chrf("dog", "the cat") < 0.2
    assert 0.2 < chrf("多喝水，早休息", "多喝温水，早点休息") < 1


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("<reasoning>\na\n</reasoning>\n<answer>\n12\n</answer>", "3 * 4 = 12\n#### 12", 1.0),
        ("<reasoning>\na\n</reasoning>\n<answer>\n13\n</answer>", "3 * 4 = 12\n#### 12", 0.0),
        ("#### 1,000", "#### 1000", 1.0), ("Paris", "paris.", 1.0), ("London", "Paris", 0.0), ("", "Paris", 0.0),
    ],
)  # fmt: skip
def test_right_is_the_same_result(answer: str, reference: str, expected: float) -> None:
    assert has_result(reference) and right(answer, reference) == expected


def test_a_long_reference_is_neither_right_nor_wrong() -> None:
    assert not has_result("Rest, drink a lot, and see a doctor when it lasts longer than three days.")


def test_an_interval_covers_what_the_rows_are_drawn_from() -> None:
    import numpy as np

    drawn = np.random.default_rng(7).normal(1.0, 2.0, (200, 40))
    covered = sum(low <= 1.0 <= high for _, low, high in (mean(list(rows)) for rows in drawn))
    assert 178 <= covered <= 198  # 95 % of 200; the bootstrap's intervals are a little narrow for 40 rows


def test_a_mean_is_weighed_and_one_row_has_no_width() -> None:
    assert mean([1.0, 3.0], [3.0, 1.0]).value == 1.5
    assert mean([2.0]) == Interval(2.0, 2.0, 2.0)
    assert mean([1.0, 1.0, 1.0]) == Interval(1.0, 1.0, 1.0)


def test_differences_are_paired() -> None:
    before = [float(i) for i in range(20)]
    assert difference([one - 0.1 for one in before], before).decided
    noisy = [one + (-1) ** i * 3 for i, one in enumerate(before)]
    assert not difference(noisy, before).decided


def test_how_many_rows_would_decide() -> None:
    assert rows_that_decide(Interval(0.1, -0.1, 0.3), 16) == 64
    assert rows_that_decide(Interval(0.0, -1.0, 1.0), 16) == 16


def test_general_texts_are_many_and_no_two_alike() -> None:
    texts, asked = paragraphs(), questions()
    assert len(texts) >= 40 and len(set(texts)) == len(texts)
    assert len(asked) >= 40 and len({question.text for question in asked}) == len(asked)
    assert all(len(set(question.choices)) == 3 for question in asked)
    scripts = Counter(any(ord(letter) > 0x2E7F for letter in text) for text in texts)
    assert scripts[True] >= 15 and scripts[False] >= 15


def measured(name: str, base: float, tuned: float, width: float, better: str = "lower", **others: float) -> Measured:
    values = {"base": base, "tuned": tuned, **others}
    return Measured(
        name=name, unit="", better=better, rows=16,
        values={who: (value, value - width, value + width) for who, value in values.items()},
        changes={who: (value - base, value - base - width, value - base + width)
                 for who, value in values.items() if who != "base"},
    )  # fmt: skip


def test_helped_and_kept() -> None:
    (helped, kept) = sentences([measured("held-out loss", 2.5, 1.5, 0.2, Q8_0=1.52)], "sft", "Q8_0")
    assert helped == "Helped, by 1.00 (0.80 to 1.20): held-out loss 2.50 → 1.50 over 16 held-out rows."
    assert kept == "Q8_0 keeps 98% of that (1.52)."


def test_what_got_worse_is_not_called_help() -> None:
    assert sentences([measured("held-out loss", 1.5, 2.5, 0.2)], "sft", None)[0].startswith("Made it worse, by 1.00")
    worse = measured("reward all together", 2.0, 1.0, 0.2, "higher")
    assert sentences([worse], "grpo", None)[0].startswith("Made it worse")


def test_too_few_rows_say_how_many_would_decide() -> None:
    (told, kept) = sentences([measured("held-out loss", 2.0, 1.9, 0.4, Q8_0=1.95)], "sft", "Q8_0")
    assert told.startswith("Not shown to help") and "About 256 rows would decide." in told
    assert kept == "Q8_0 has held-out loss 1.95, the tuned model 1.90."


def test_what_was_forgotten_is_said() -> None:
    loss, known = (
        measured("loss of general texts", 3.0, 3.6, 0.1),
        measured("general questions right", 0.9, 0.5, 0.1, "higher"),
    )
    (told,) = sentences([loss, known], "sft", None)
    assert told.startswith("Forgot: perplexity of 16 general texts 20.1 → 36.6, 16 general questions 90% → 50% right.")
    assert f"{math.exp(3.6):.1f}" == "36.6"
    (fine,) = sentences([measured("loss of general texts", 3.0, 3.01, 0.002)], "sft", None)
    assert fine.startswith("Forgot nothing that this can see")
