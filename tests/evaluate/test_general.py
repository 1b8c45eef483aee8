"""The general texts that came with the package."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.small_models import EMBEDDED
from toolkit.evaluate.general_texts import read_general, rows_of
from toolkit.models.bases import resolve_base
from toolkit.models.tokenizer import load_tokenizer


def test_there_are_forty_of_each_in_two_languages() -> None:
    paragraphs, questions = rows_of("paragraphs"), rows_of("questions")
    assert len(paragraphs) >= 40 and len(questions) >= 40
    assert len({row["text"] for row in paragraphs}) == len(paragraphs)
    assert len({row["question"] for row in questions}) == len(questions)
    for rows in (paragraphs, questions):
        assert min(Counter(row["language"] for row in rows).values()) >= 16
    assert all(len(set(row["choices"])) == 3 for row in questions)


def test_choices_follow_the_same_prompt_and_the_first_is_right() -> None:
    tokenizer = load_tokenizer(resolve_base(EMBEDDED).folder)
    general = read_general(tokenizer)
    (first, *others) = general.choices[0]
    assert tokenizer.decode(first.ids) == "Question: What is the capital of France?\nAnswer: Paris"
    assert all(other.ids[: other.first] == first.ids[: first.first] for other in others)
    assert general.characters[:3] == [5, 6, 6]
    # That `plan` counts on.
    assert sum(len(one.ids) for one in general.sequences) == pytest.approx(5000, rel=0.3)
