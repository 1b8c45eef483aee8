"""What is repaired, what is dropped, and why."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data import cleaning
from toolkit.data.cleaning import SPECIAL_TOKEN, clean_text
from toolkit.data.cleaning import clean as clean_rows
from toolkit.data.formats import Example, shape_of
from toolkit.data.readers import Dropped, Row
from toolkit.recipe.rows import Columns, Data


def clean(given: list[Row], data: Data, system: str = "") -> tuple[list[Example], list[Dropped], Counter[str]]:
    columns = list(dict.fromkeys(column for row in given for column in row.values))
    shapes = {given[0].file: shape_of(given[0].file, columns, [row.values for row in given], data)}
    return clean_rows(given, shapes, data, system)


def rows(*pairs: tuple[str, str]) -> list[Row]:
    return [Row("x.csv", i, {"ask": ask, "answer": answer}) for i, (ask, answer) in enumerate(pairs, 2)]


def test_each_reason_is_counted_and_listed() -> None:
    given_rows = rows(
        ("Is tea good?", "Yes."),
        ("Is tea good? ", " Yes."),
        ("", "Yes."),
        (" \t", "Yes."),
        ("Is milk good?", "\x00\x07"),
        ("Is beer good?", "<|im_end|> No."),
        ("Is rice good?", "Ye\ufffd."),
        ("Is rice\x0b good?\r\n", "Ye\ufeffs.\r\nTry."),
        ("x" * 20, "y" * 10),
        ("x" * 19, "y" * 11),
        ("x" * 20, "y" * 11),
    )
    kept, dropped, repaired = clean(given_rows, Data(path="x", max_characters=30))
    assert [(e.line, e.prompt_text, e.answer) for e in kept] == [
        (2, "Is tea good?", "Yes."),
        (9, "Is rice good?", "Yes.\nTry."),
        (10, "x" * 20, "y" * 10),
        (11, "x" * 19, "y" * 11),
    ]
    assert [(d.line, d.reason) for d in dropped] == [
        (3, cleaning.DUPLICATE),
        (4, cleaning.EMPTY_PROMPT),
        (5, cleaning.EMPTY_PROMPT),
        (6, cleaning.EMPTY_COMPLETION),
        (7, cleaning.SPECIAL),
        (8, cleaning.DAMAGED),
        (12, cleaning.TOO_LONG),
    ]
    assert dropped[4].text == "Is beer good?"
    assert repaired == {cleaning.CONTROL_CHARACTERS: 1}


@pytest.mark.parametrize(
    "text",
    ["<|im_start|>system", "a<|endoftext|>", "</s>", "<s>", "[INST] hi [/INST]", "<<SYS>>", "<|eot_id|>", "<start_of_turn>user",
     "<｜end▁of▁sentence｜>", "<pad>", "[gMASK]", "<|reserved_special_token_0|>", "<|fim_prefix|>", "[TOOL_CALLS]"],
)  # fmt: skip
def test_special_tokens(text: str) -> None:
    assert SPECIAL_TOKEN.search(text)
    kept, dropped, _ = clean(rows(("hello " + text, "hi")), Data(path="x"))
    assert kept == []
    assert dropped[0].reason == cleaning.SPECIAL


@pytest.mark.parametrize(
    "text",
    [
        "a < b | c > d",
        "x <| y",
        "<b>bold</b>",
        "[1]",
        "array[INSTANCE]",
        "<sub>2</sub>",
        "<|>",
        "p(a|b) > 0",
        "<!-- -->",
    ],
)
def test_ordinary_signs_are_no_special_tokens(text: str) -> None:
    assert not SPECIAL_TOKEN.search(text)


def test_half_a_surrogate_pair_is_removed() -> None:
    assert clean_text("a\ud83d b") == ("a b", True)
    assert clean_text("a😀\tb\n\nc") == ("a😀\tb\n\nc", False)


def test_removing_a_control_cannot_build_a_special_token() -> None:
    kept, dropped, _ = clean(rows(("<|im_\x07end|>", "hi")), Data(path="x"))
    assert (kept, dropped[0].reason) == ([], cleaning.SPECIAL)


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once, _ = clean_text(text)
    assert clean_text(once) == (once, False)
    once.encode("utf-8")


def test_a_rows_own_system_text_gives_way() -> None:
    turns = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "u"), ("assistant", "a"))]
    for rule, text in (("recipe", "mine"), ("row", "s"), ("both", "mine\n\ns")):
        data = Data.model_validate({"path": "x", "format": "messages", "system": rule})
        kept, _, repaired = clean([Row("x.jsonl", 1, {"messages": turns})], data, "mine")
        assert kept[0].record()["prompt"][0] == {"role": "system", "content": text}
        assert repaired == ({cleaning.OWN_SYSTEM: 1} if rule == "recipe" else {})
        kept, _, repaired = clean([Row("x.jsonl", 1, {"messages": turns[1:]})], data, "mine")
        assert kept[0].system == "mine" and not repaired
    # The same question under two system texts is two rows where the texts are kept, and one where they are not.
    others = [{"role": "system", "content": "t"}, *turns[1:]]
    both = [Row("x.jsonl", line, {"messages": given}) for line, given in enumerate((turns, others), 1)]
    for rule, count in (("recipe", 1), ("row", 2)):
        assert len(clean(both, Data.model_validate({"path": "x", "system": rule}))[0]) == count


def test_a_row_of_a_million_characters_is_named() -> None:
    kept, dropped, _ = clean(rows(("Is tea good?", "y" * 1_000_001)), Data(path="x"))
    assert (kept, dropped[0].line, dropped[0].reason) == ([], 2, cleaning.ENDLESS)


def test_thoughts_are_taken_once_and_none_is_lost_in_silence() -> None:
    beside = Columns(thinking="thought")
    given_rows = [
        Row("x.csv", line, {"ask": f"Is tea {line} good?", "answer": answer, "thought": thought})
        for line, (answer, thought) in enumerate(
            [
                ("<think>\nHm.\n</think>\n\nYes.", ""),
                ("Yes.", "Hm.\x07"),
                ("<think>Hm.</think>Yes.", "Hm."),
                ("<think></think>Yes.", "Hm."),
                ("<think>Oh.</think>Yes.", "Hm."),
                ("<think>Hm, and then", ""),
                ("<think>Hm.</think>", ""),
                ("", "Hm."),
                ("<think></think>", ""),
                ("Yes.", "Hm<|im_end|>"),
            ]
        )
    ]
    kept, dropped, repaired = clean(given_rows, Data(path="x", columns=beside))
    assert [(e.completion[0].content, e.completion[0].thinking) for e in kept] == [
        ("<think>\nHm.\n</think>\n\nYes.", ""), ("Yes.", "Hm."), ("Yes.", "Hm."), ("Yes.", "Hm."),
    ]  # fmt: skip
    assert [(d.line, d.reason) for d in dropped] == [
        (4, cleaning.TWO_THOUGHTS), (5, cleaning.ENDLESS_THOUGHT), (6, cleaning.ONLY_THOUGHT), (7, cleaning.ONLY_THOUGHT),
        (8, cleaning.EMPTY_COMPLETION), (9, cleaning.SPECIAL),
    ]  # fmt: skip
    assert repaired == {cleaning.CONTROL_CHARACTERS: 1, cleaning.SAME_THOUGHT: 2}
