"""The split: disjoint by content, and rows stay where they are."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.formats import Example, Turn
from toolkit.data.near import is_near, normalize, shingles, signature
from toolkit.data.splitting import TEMPLATE, Side, choose, deal, own_side, resembling
from toolkit.data.splitting import split as split_with_counts
from toolkit.recipe.rows import Data

DATA = Data(path="x", validation=0.2, test=0.2)


def example(prompt: str, completion: str = "See a doctor.", line: int = 1) -> Example:
    return Example("x.csv", line, (Turn("user", prompt),), (Turn("assistant", completion),), prompt)


def split(rows: list[Example], data: Data, golden: Sequence[str] = ()) -> list[Side | None]:
    return split_with_counts(rows, data, golden).sides


def near(one: Example, other: Example) -> bool:
    pairs = [(one.topic, other.topic), (f"{one.topic}\n{one.answer}", f"{other.topic}\n{other.answer}")]
    return any(is_near(a, b) for a, b in pairs)


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def _on(side: str, number: int = 0) -> str:
    found = (text for i in range(10_000) if own_side(text := f"What about illness number {i:05}?", DATA) == side)
    return [next(found) for _ in range(number + 1)][-1]


def test_known_values() -> None:
    assert normalize("Ｗhat, IS　fever_?  高血压！") == "whatisfever高血压"
    assert jaccard("abcdef", "abcdxy") == pytest.approx(2 / 6)
    assert len(shingles("")) == len(shingles("?")) == len(shingles("ab")) == 1
    assert shingles("?") != shingles("!")
    assert own_side("What is fever?", DATA) == own_side(" what is FEVER", DATA)


@settings(max_examples=200, deadline=None)
@given(st.text("abcdefgh高血压病人吃药", min_size=20, max_size=120), st.integers(0, 60), st.text("xyz药", max_size=40))
def test_near_is_a_jaccard_index_of_seven_tenths(text: str, cut: int, added: str) -> None:
    other = text[cut:] + added
    share = (signature(text) == signature(other)).mean()
    assert share == pytest.approx(jaccard(text, other), abs=0.22)  # five standard errors
    assert is_near(text, other) == is_near(other, text) == (share * 126 >= 87.5)


def test_shares_are_met() -> None:
    sides = Counter(own_side(f"question {i}", DATA) for i in range(10_000))
    assert sides["test"] == pytest.approx(2000, abs=150)
    assert sides["validation"] == pytest.approx(2000, abs=150)


def test_a_share_moves_its_own_rows_only() -> None:
    for i in range(300):
        small, large = (own_side(f"question {i}", Data(path="x", validation=v, test=0.2)) for v in (0.1, 0.3))
        assert small == large or (small, large) == ("train", "validation")


def test_near_duplicates_go_together() -> None:
    first = "My father is 68 and has had high blood pressure for ten years; which foods should he avoid at dinner?"
    variants = [first.replace("68", str(age)) for age in range(40, 40 + TEMPLATE - 1)]
    assert len({own_side(text, DATA) for text in variants}) == 3
    assert set(split([example(text, f"{i}") for i, text in enumerate(variants)], DATA)) == {own_side(variants[0], DATA)}


def test_rows_of_a_template_are_told_apart_by_what_differs() -> None:
    rows = [
        example(f"How do I reset device {100 + i}?", f"Hold button {100 + i} for {3 + i % 7} s.") for i in range(80)
    ]
    others = [example(text, text[::-1]) for text in ("What is a fever?", "Who wrote this book?", "Is salt bad for me?")]
    found = split_with_counts(rows + others, DATA)
    assert found.templated == 80
    assert found.sides[80:] == [own_side(row.topic, DATA) for row in others]
    counts = Counter(found.sides)
    assert counts["train"] > 30 and counts["test"] > 6 and counts["validation"] > 6
    by_side = {side: [row for row, its in zip(rows, found.sides) if its == side] for side in ("train", "test")}
    assert resembling(by_side["train"], by_side["test"]) == len(by_side["test"])
    # The same device stays on one side, however it is asked for.
    again = split([*rows, example("how do I RESET device 117", "Hold it.")], DATA)
    assert again[80] in (again[17], None)


def test_a_golden_prompt_of_a_template_does_not_take_all_rows_with_it() -> None:
    rows = [example(f"How do I reset device {100 + i}?", f"{i}") for i in range(80)]
    sides = split(rows, DATA, ["How do I reset device 130?"])
    assert sides[30] == "test"
    assert Counter(sides)["train"] > 30


def test_dealt_sides_are_never_empty_and_part_no_prompt() -> None:
    rows = [example(f"question {i // 2}", f"{i}") for i in range(20)]
    sides = deal(rows, Data(path="x"), {"train": 1, "validation": 1, "test": 3}, ["question 7"])
    assert [sides[i] == sides[i + 1] for i in range(0, 20, 2)] == [True] * 10
    assert sides[14] == "test"
    assert Counter(sides) == {"train": 14, "test": 4, "validation": 2}
    assert deal(rows[::-1], Data(path="x"), {"train": 1, "validation": 1, "test": 3}, ["question 7"]) == sides[::-1]
    assert deal(rows[:2], DATA, {"train": 1, "validation": 1, "test": 1}) == ["train", "train"]


def test_the_same_question_goes_together_whatever_the_answer() -> None:
    sides = split([example("What is a fever?", "x"), example("what is a FEVER", "Something else altogether.")], DATA)
    assert len(set(sides)) == 1


def test_the_same_long_answer_goes_together() -> None:
    answer = (
        "High blood pressure often has no signs; have it measured every year, eat little salt, and walk every day. " * 2
    )
    one, other = _on("train"), "Why measure?"
    assert own_side(other + "!", DATA) == own_side(other, DATA)
    sides = split([example(one, answer), example(other, answer)], DATA)
    assert sides == ["train", "train"]


def test_no_near_pair_is_parted_among_many() -> None:
    words = [f"{a}{b}" for a in ("fe", "co", "sle", "sa", "su") for b in ("ver", "ugh", "ep", "lt", "gar", "ron")]
    chosen = random.Random(1)
    rows = [example(" ".join(chosen.choices(words, k=4)), f"{i}") for i in range(400)]
    sides, templated, _ = split_with_counts(rows, DATA)
    assert templated == 0
    values = [[signature(text) for text in (row.topic, f"{row.topic}\n{row.answer}")] for row in rows]
    pairs = [
        (i, j)
        for i, j in combinations(range(400), 2)
        if any((a == b).sum() >= 88 for a, b in zip(values[i], values[j]))
    ]
    assert len(pairs) > 10
    assert [p for p in pairs if None not in (sides[p[0]], sides[p[1]]) and sides[p[0]] != sides[p[1]]] == []
    lonely = set(range(400)) - {i for pair in pairs for i in pair}
    assert len(lonely) > 50
    assert all(sides[i] == own_side(rows[i].topic, DATA) for i in lonely)


def test_a_row_between_two_sides_is_left_out() -> None:
    one, other = "abcdefghijklmnopqrst" * 1, "uvwxyz0123456789ABCD"
    base = "the common middle part of both texts that makes the third row resemble either of them quite a lot"
    firsts = [(f"{one[i:]}{base}", f"{base}{other[i:]}") for i in range(16)]
    for first, second in firsts:
        third = f"{first[: -len(base)][-4:]}{base}{second[len(base) :][:4]}"
        rows = [example(first, "1"), example(second, "2"), example(third, "3")]
        sides = split(rows, DATA)
        crossing = [(a, b) for (a, s), (b, t) in combinations(zip(rows, sides), 2) if s and t and s != t and near(a, b)]
        assert crossing == []
        if sides[0] != sides[1] and near(rows[0], rows[2]) and near(rows[1], rows[2]):
            assert sides[2] is None
            return
    pytest.fail("no case was found where a third row is near two sides")


def test_golden_prompts_are_not_trained_on() -> None:
    prompt = _on("train")
    assert split([example(prompt)], DATA) == ["train"]
    assert split([example(prompt + "!!")], DATA, golden=[prompt]) == ["test"]


_VOCABULARY = ["fever", "cough", "sleep", "salt", "sugar", "高血压", "糖尿病", "walk", "吃药", "doctor"]
_WORDS = st.lists(st.sampled_from(_VOCABULARY), min_size=2, max_size=6)
_QUESTIONS = st.lists(st.tuples(_WORDS.map(" ".join), st.sampled_from(["Yes.", "No.", "See a doctor."])), max_size=14)


@settings(max_examples=150, deadline=None)
@given(_QUESTIONS, _QUESTIONS)
def test_appended_rows_move_none_and_no_near_pair_is_parted(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    rows = [example(q, a) for q, a in before + after]
    sides = split(rows, DATA)
    assert split(rows[: len(before)], DATA) == sides[: len(before)]
    for (one, side), (other, its) in combinations(zip(rows, sides), 2):
        assert side == its or None in (side, its) or not near(one, other)


@settings(max_examples=75, deadline=None)
@given(_QUESTIONS, _QUESTIONS)
def test_rows_put_in_front_move_only_their_near_duplicates(
    present: list[tuple[str, str]], added: list[tuple[str, str]]
) -> None:
    old, new = [example(q, a) for q, a in present], [example(q, a) for q, a in added]
    linked: list[Example] = list(new)
    while more := [row for row in old if row not in linked and any(near(row, other) for other in linked)]:
        linked += more
    for row, was, now in zip(old, split(old, DATA), split(new + old, DATA)[len(new) :]):
        assert was == now or row in linked


@given(st.permutations(range(30)), st.integers(1, 40))
def test_max_rows_choose_by_content(order: list[int], at_most: int) -> None:
    rows = [example(f"question {i}") for i in range(30)]
    shuffled = [rows[i] for i in order]
    chosen = {rows[i].topic for i in choose(rows, at_most)}
    assert {shuffled[i].topic for i in choose(shuffled, at_most)} == chosen
    assert len(chosen) == min(at_most, 30)
    assert choose(rows, None) == set(range(30))
