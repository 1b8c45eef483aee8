"""The sample data of the recipes that train otherwise than on answers: right, whole and without repetition."""

from __future__ import annotations

import json
import operator
import re
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from toolkit.data.tagged import nothing_else, result_of, tagged

DATA = Path(__file__).parents[2] / "data"
WORKED = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
STEP = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
LESS_ALIKE_THAN = 0.7
"""Jaccard index over trigrams of characters: about where `toolkit.data.near` calls rows near duplicates."""

COUNTS = {
    "r1/problems.jsonl": 255, "r1/problems.zh.jsonl": 66,
    "polite/pairs.en.jsonl": 101, "polite/pairs.zh.jsonl": 42, "polite/first.en.jsonl": 82, "polite/first.zh.jsonl": 42,
    "polite/labelled.en.jsonl": 62, "text/notes.jsonl": 32, "text/questions.jsonl": 46,
}  # fmt: skip
GOLDEN = {
    "r1/golden.txt": 12, "r1/golden.zh.txt": 12, "polite/golden.en.txt": 12, "polite/golden.zh.txt": 10, "text/golden.txt": 8,
}  # fmt: skip


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def lines(name: str) -> list[str]:
    return (DATA / name).read_text(encoding="utf-8").splitlines()


def trigrams(text: str) -> set[str]:
    plain = " ".join(text.lower().split())
    return {plain[at : at + 3] for at in range(len(plain) - 2)}


def alike(texts: list[str]) -> list[tuple[str, str]]:
    found = [(text, trigrams(text)) for text in texts]
    return [
        (left[0], right[0])
        for left, right in combinations(found, 2)
        if len(left[1] & right[1]) >= LESS_ALIKE_THAN * len(left[1] | right[1])
    ]


@pytest.mark.parametrize("name", COUNTS)
def test_every_file_has_as_many_rows_as_the_readme_says_and_no_empty_text(name: str) -> None:
    found = rows(name)
    assert len(found) == COUNTS[name]
    assert f"`{Path(name).name}`" in (DATA / "README.md").read_text(encoding="utf-8")
    for row in found:
        assert row.keys() == found[0].keys()
        assert all(text.strip() == text != "" for text in row.values() if isinstance(text, str))


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_prompts_are_no_rows(name: str) -> None:
    found = lines(name)
    assert len(found) == len(set(found)) == GOLDEN[name] and all(line.strip() == line != "" for line in found)
    beside = [one for one in COUNTS if Path(one).parent == Path(name).parent]
    texts = [text for one in beside for row in rows(one) for text in row.values()]
    assert not set(found) & set(texts)


@pytest.mark.parametrize("name", ["r1/problems.jsonl", "r1/problems.zh.jsonl"])
def test_every_step_of_a_word_problem_is_right_and_leads_to_its_result(name: str) -> None:
    for row in rows(name):
        *steps, last = row["answer"].split("\n")
        worked = [STEP.findall(step) for step in steps]
        assert all(len(found) == 1 for found in worked), row
        values = [int(found[0][3]) for found in worked]
        for ((left, sign, right, value),) in worked:
            assert WORKED[sign](int(left), int(right)) == int(value), row
        assert last == f"#### {values[-1]}" and result_of(row["answer"]) == str(values[-1])
        for at, value in enumerate(values[:-1]):  # every step is needed for a later one
            assert any(str(value) in found[0][::2] for found in worked[at + 1 :]), row
        made = tagged(row["answer"])
        assert made is not None and nothing_else(made)
        assert row["question"].endswith(("?", "？")) and len(row["question"].split()) < 40


def test_no_word_problem_is_another_with_other_numbers() -> None:
    for names in (("r1/problems.jsonl", "r1/golden.txt"), ("r1/problems.zh.jsonl", "r1/golden.zh.txt")):
        problems = [row["question"] for row in rows(names[0])] + lines(names[1])
        assert len({re.sub(r"\d+", "", problem) for problem in problems}) == len(problems)
        assert alike(problems) == []


@pytest.mark.parametrize(
    ("name", "unit", "most"), [("polite/pairs.en.jsonl", str.split, 42), ("polite/pairs.zh.jsonl", list, 60)]
)
def test_chosen_and_rejected_are_of_the_same_length(name: str, unit: Any, most: int) -> None:
    found = rows(name)
    chosen, rejected = [len(unit(row["chosen"])) for row in found], [len(unit(row["rejected"])) for row in found]
    assert abs(mean(chosen) / mean(rejected) - 1) < 0.05
    assert max(chosen + rejected) <= most
    longer = sum(left > right for left, right in zip(chosen, rejected, strict=True))
    assert 0.25 < longer / len(found) < 0.75


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_complaint_is_in_two_files_and_no_answer_twice(language: str) -> None:
    files = [name for name in COUNTS if name.startswith("polite/") and f".{language}." in name]
    found = [row for name in files for row in rows(name)]
    prompts = [row["prompt"] for row in found] + lines(f"polite/golden.{language}.txt")
    assert alike(prompts) == []
    assert alike([row[key] for row in found for key in ("chosen", "rejected", "completion") if key in row]) == []


def test_courteous_answers_say_sorry_and_no_others_do() -> None:
    sorry = re.compile(r"sorry|apolog|excuse|forgive|ashamed|disappointing|歉|对不起|过意不去|谅|对不住", re.IGNORECASE)
    for language in ("en", "zh"):
        for row in rows(f"polite/pairs.{language}.jsonl"):
            assert sorry.search(row["chosen"]) and not sorry.search(row["rejected"]), row
        for row in rows(f"polite/first.{language}.jsonl"):
            assert not sorry.search(row["completion"]), row
    for row in rows("polite/labelled.en.jsonl"):
        assert bool(sorry.search(row["completion"])) == row["label"], row


def test_half_of_the_labelled_answers_are_wanted() -> None:
    found = rows("polite/labelled.en.jsonl")
    assert sum(row["label"] for row in found) * 2 == len(found)
    words = {
        label: mean(len(row["completion"].split()) for row in found if row["label"] == label) for label in (True, False)
    }
    assert abs(words[True] / words[False] - 1) < 0.1


def test_notes_are_short_and_hold_what_the_questions_ask_for() -> None:
    notes = [row["text"] for row in rows("text/notes.jsonl")]
    assert all(60 <= len(note.split()) <= 150 for note in notes) and alike(notes) == []
    everything = " ".join(notes)
    for row in rows("text/questions.jsonl"):
        for number in re.findall(r"\d[\d,]*\b", row["answer"]):
            assert number in everything, row
    assert alike([row["question"] for row in rows("text/questions.jsonl")] + lines("text/golden.txt")) == []
