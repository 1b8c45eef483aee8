"""Nearness and rightness of answers: values by hand, in English and Chinese."""

from __future__ import annotations

import pytest

from toolkit.evaluate.texts import all_alike, bleu, can_be_right, chrf, is_right, rouge_l, units


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("a b c d", "a c d e", 2 * 3 / 8),  # a c d
        ("Rest, and tea.", "rest and TEA", 1.0),
        ("多喝水", "多喝热水", 2 * 3 / 7),  # by characters
        ("喝 tea", "喝tea", 1.0),
        ("", "rest", 0.0),
        ("rest", "", 0.0),
        ("👍", "👍", 1.0),
        ("👎", "👍", 0.0),
        ("d c b a", "a b c d", 2 * 1 / 8),  # order counts
    ],
)
def test_rouge_l_by_hand(answer: str, reference: str, value: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(value)


def test_words_and_characters() -> None:
    assert units("Ｈello 世界, it's 42!") == ["hello", "世", "界", "it", "s", "42"]
    assert units("カタカナ") == list("カタカナ")


def test_chrf_and_bleu_go_from_0_to_1() -> None:
    for score in (chrf, bleu):
        assert score("The cat sat on the mat.", "The cat sat on the mat.") == pytest.approx(1.0)
        assert score("", "The cat sat.") == score("   ", "The cat sat.") == 0.0
        assert 0.0 < score("A cat sat on the mat.", "The cat sat on the mat.") < 1.0
    assert bleu("多喝热水，注意休息。", "多喝热水，注意休息。") == pytest.approx(1.0)
    # As one word of no spaces it would be wholly wrong.
    assert bleu("多喝热水，好好休息。", "多喝热水，注意休息。") > 0.2
    assert bleu("7", "7") == pytest.approx(1.0), "a reference of one word has no pairs of words"


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("So there are 3 boxes with 4 each, 12 together.", "3*4=12\n#### 12", True),
        ("12 boxes hold 4 each: 48", "3*4=12\n#### 12", False),
        ("It is 1,200.00", "#### 1200", True),
        ("#### 12\nIs that 13?", "x\n#### 12", False),
        ("<reasoning>3*4</reasoning>\n<answer>12</answer> 5", "x\n#### 12", True),
        ("<answer>11</answer> 12", "x\n#### 12", False),
        ("paris!", "Paris", True),
        ("It is Paris, I think", "Paris", False),
        ("是的", "是的。", True),
        ("", "Paris", False),
        ('{"name": "book", "arguments": {"b": 1, "a": "x"}}', '<c>{"name": "book", "arguments": {"a": "x", "b": 1}}</c>', True),
        ('{"name": "book", "arguments": {"a": "y", "b": 1}}', '{"name": "book", "arguments": {"a": "x", "b": 1}}', False),
        ("no call", '{"name": "book", "arguments": {}}', False),
    ],
)  # fmt: skip
def test_right_answers(answer: str, reference: str, right: bool) -> None:
    assert can_be_right(reference)
    assert is_right(answer, reference) is right


@pytest.mark.parametrize(
    "reference",
    ["Drink tea, rest, and see a doctor if it stays.", "a\nb", "", "👍", "多喝热水，注意休息，不行就看医生。"],
)
def test_a_free_text_is_not_right_or_wrong(reference: str) -> None:
    assert not can_be_right(reference)


def test_one_answer_to_everything() -> None:
    assert all_alike(["x"] * 3) and not all_alike(["x", "x", "y"]) and not all_alike(["x", "x"])
