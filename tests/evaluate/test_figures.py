"""Which figures are made of what was seen."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from toolkit.evaluate.figures import figures_of
from toolkit.evaluate.held_out import HeldOut, Question
from toolkit.evaluate.seen import Seen, plain
from toolkit.evaluate.stage import remarks
from toolkit.models.thinking import Marks
from toolkit.train.rows import TokenizedRow

CALL = '<tool_call>\n{"name": "book", "arguments": {"room": "Oak"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "book", "parameters": {"type": "object", "properties": {}}}}]


def held_out(references: list[str], tools: bool = False) -> HeldOut:
    questions = [Question("?", [1], [], TOOLS if tools else None, reference, reference) for reference in references]
    rows = [TokenizedRow([1, 2, 3], ((1, 3),)) for _ in references]
    return HeldOut("answers", [{} for _ in references], [[[row]] for row in rows], questions)


def seen(answers: list[str], whole: bool = True) -> Seen:
    return Seen([[-2.0] for _ in answers], answers, answers, [whole] * len(answers))


def test_a_model_that_calls_too_readily_is_seen() -> None:
    references = [
        CALL,
        "Good morning!",
        "Once a week is enough for that.",
        "Press the key, then paste it where you like.",
    ]
    told = {"base": seen([*references[1:], "no"]), "tuned": seen([CALL] * 4)}
    found = {one.name: one for one in figures_of(held_out(references, tools=True), None, told, {})}
    assert found["right calls"].values == {"base": [0.0, 1.0, 1.0, 1.0], "tuned": [1.0, 0.0, 0.0, 0.0]}
    without = figures_of(held_out(references[1:], tools=True), None, {"base": seen(references[1:])}, {})
    assert "right calls" not in [one.name for one in without], "no row calls anything"


def test_a_few_short_answers_among_long_ones_are_no_examination() -> None:
    long = "Drink tea, and see a doctor if it stays for a week."
    for references, made in (([long, long, "Yes."], False), ([long, "No.", "Yes."], True)):
        found = [one.name for one in figures_of(held_out(references), None, {"tuned": seen(references)}, {})]
        assert ("right answers" in found) is made
        assert found[-3:] == ["ROUGE-L", "chrF", "BLEU"]


def test_who_was_not_asked_has_losses_only() -> None:
    unasked = Seen([[-2.0]] * 3)
    found = {
        one.name: list(one.values)
        for one in figures_of(held_out(["a b c d e f"] * 3), None, {"tuned": unasked, "F16": seen(["x"] * 3)}, {})
    }
    assert found["held-out loss"] == ["tuned", "F16"] and found["ROUGE-L"] == ["F16"]


def test_remarks_tell_of_collapse_of_silence_and_of_cuts() -> None:
    rows = held_out(["a b c d e f"] * 3)
    assert remarks(rows, {"tuned": seen(["x"] * 3)}) == ["tuned gives one and the same answer to all 3 questions"]
    assert remarks(rows, {"tuned": seen(["", "x", "y"], whole=False)}) == [
        "1 of 3 answers of tuned are empty", "3 of 3 answers of tuned were cut: they had not ended",
    ]  # fmt: skip
    assert remarks(rows, {"tuned": Seen()}) == [
        "tuned does not fit into memory, so it was read a layer at a time and not asked"
    ]


class _Tokenizer:
    def __init__(self) -> None:
        self.added_tokens_decoder = {7: SimpleNamespace(content="<|end|>", special=True)}


def test_answers_are_compared_without_thoughts_special_tokens_and_half_characters() -> None:
    marks = Marks("<think>\n", "\n</think>\n\n")
    question = held_out(["x"]).questions[0]
    assert plain(question, "<think>\nhm\n</think>\n\nTea<|end|> and rest\ufffd", marks, _Tokenizer()) == "Tea and rest"
    assert plain(question, "<think>\nhm, never", marks, _Tokenizer()) == "", "cut within the thought"
    assert plain(question, "<think>\nhm\n</think>\n\nTea", None, _Tokenizer()).startswith("<think>"), (
        "as rewards are given it"
    )


def test_pairs_that_are_all_won_leave_open_how_many_of_others_are_lost() -> None:
    rows = [{"prompt": [], "chosen": [], "rejected": []} for _ in range(8)]
    pairs = HeldOut("pairs", rows, [[[TokenizedRow([1, 2], ((1, 2),))]] * 2 for _ in rows])
    told = {"base": Seen([[-2.0, -2.0]] * 8), "tuned": Seen([[-1.0, -9.0]] * 8)}
    won = figures_of(pairs, None, told, {})[0].as_json()["subjects"]
    change = won["tuned"]["from_base"]
    assert won["tuned"]["value"] == 1.0 and change["verdict"] == "better" and change["value"] == 0.5
    # Of eight that were won, 37 in a hundred others may be lost.
    assert change["low"] == pytest.approx(0.5 - 0.369, abs=1e-3) and won["tuned"]["high"] == 1.0
    assert won["base"]["value"] == won["base"]["low"] == won["base"]["high"] == 0.5
