"""The five rewards against texts that were scored by hand."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.data.tagged import TAGS, tagged
from toolkit.errors import UsageError
from toolkit.train.rewards import REWARDS, named, number, same_result

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "train.jsonl"

R, RE, A, AE = TAGS
FULL = f"{R}\nx\n{RE}\n{A}\n12\n{AE}"

HAND_SCORED = [
    # answer, reference, correct, integer, strict, soft, counts
    (FULL, "x\n#### 12", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}12{AE}", "12", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"\n {FULL} \n", "12", 2.0, 0.5, 0.5, 0.5, 0.5),
    (FULL, FULL, 2.0, 0.5, 0.5, 0.5, 0.5),
    (FULL, "13", 0.0, 0.5, 0.5, 0.5, 0.5),
    ("", "12", 0.0, 0.0, 0.0, 0.0, 0.0),
    ("12", "12", 0.0, 0.0, 0.0, 0.0, 0.0),
    ("x\n#### 12", "12", 0.0, 0.0, 0.0, 0.0, 0.0),
    (f"Well: {FULL}", "12", 2.0, 0.5, 0.0, 0.5, 0.5),
    (f"{FULL} So it is", "12", 2.0, 0.5, 0.0, 0.5, 0.492),  # 8 characters after it
    (FULL + "!" * 125, "12", 2.0, 0.5, 0.0, 0.5, 0.375),
    (FULL + "!" * 5000, "12", 2.0, 0.5, 0.0, 0.5, 0.375),  # never more than the closing tag's own worth
    (f"{R}x{RE}\n\n{A}12{AE}", "12", 2.0, 0.5, 0.0, 0.5, 0.5),  # an empty line between
    (f"{R}x{RE} {A}12{AE}", "12", 2.0, 0.5, 0.0, 0.5, 0.5),
    (f"{R}x{RE} so {A}12{AE}", "12", 2.0, 0.5, 0.0, 0.5, 0.5),
    (f"{A}12{AE}", "12", 2.0, 0.5, 0.0, 0.0, 0.25),
    (f"{R}x{RE}12", "12", 0.0, 0.0, 0.0, 0.0, 0.25),
    (f"{R}x{RE}{A}12", "12", 0.0, 0.0, 0.0, 0.0, 0.375),  # cut before its end
    (f"{R}x{A}12{AE}", "12", 2.0, 0.5, 0.0, 0.0, 0.375),
    (f"x{RE}{A}12{AE}", "12", 2.0, 0.5, 0.0, 0.0, 0.375),
    (f"{A}12{AE}{R}x{RE}", "12", 2.0, 0.5, 0.0, 0.0, 0.476),  # the wrong order; 24 characters after
    (f"{RE}x{R}{AE}12{A}", "12", 0.0, 0.0, 0.0, 0.0, 0.49),  # ends before starts; 10 characters after
    (f"{R}x{A}12{AE}{RE}", "12", 2.0, 0.5, 0.0, 0.0, 0.488),  # nested; 12 characters after
    (f"{R}{R}x{RE}{RE}{A}12{AE}", "12", 2.0, 0.5, 0.0, 0.5, 0.25),  # doubled
    (f"{R}x{RE}{A}11{AE}{A}12{AE}", "12", 2.0, 0.5, 0.0, 0.5, 0.25),  # the last of two answers counts
    (f"{R}x{RE}{A}12{AE}{A}11{AE}", "12", 0.0, 0.5, 0.0, 0.5, 0.25),
    (f"{FULL}\n{FULL}", "12", 2.0, 0.5, 0.0, 0.5, 0.0),
    (f"{R}x{RE}{A}{A}12{AE}{AE}", "12", 0.0, 0.0, 0.0, 0.5, 0.25),
    (f"{R}x{RE}{A}{AE}", "12", 0.0, 0.0, 0.0, 0.0, 0.5),  # an empty answer
    (f"{R}x{RE}{A} \n {AE}", "", 0.0, 0.0, 0.0, 0.0, 0.5),
    (f"{R}{RE}{A}12{AE}", "12", 2.0, 0.5, 0.0, 0.0, 0.5),  # an empty reasoning
    (FULL.upper(), "12", 0.0, 0.0, 0.0, 0.0, 0.0),  # capital letters
    (FULL.replace("<answer>", "<Answer>"), "12", 0.0, 0.0, 0.0, 0.0, 0.375),
    (FULL.replace("<answer>", "< answer >"), "12", 0.0, 0.0, 0.0, 0.0, 0.375),
    (FULL.replace("reasoning", "think"), "12", 2.0, 0.5, 0.0, 0.0, 0.25),
    (f"{R}x{RE}{A}12.0{AE}", "12", 2.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}12.{AE}", "12", 2.0, 0.5, 0.5, 0.5, 0.5),  # a full stop
    (f"{R}x{RE}{A}12.5{AE}", "12", 0.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}0.50{AE}", "x\n#### .5", 2.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}-5{AE}", "x\n#### -5", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}−5{AE}", "-5", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}5{AE}", "-5", 0.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}$12{AE}", "12", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}-$1,200.00{AE}", "-1200", 2.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}12 €{AE}", "$12", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}1,000{AE}", "1000", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}10,00{AE}", "1000", 0.0, 0.0, 0.5, 0.5, 0.5),  # no thousands
    (f"{R}x{RE}{A}12 apples{AE}", "12", 0.0, 0.0, 0.5, 0.5, 0.5),  # a unit
    (f"{R}x{RE}{A}12 cm{AE}", "x\n#### 12  CM", 2.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}x = 12{AE}", "12", 0.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}Paris.{AE}", "paris", 2.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}先算 3 + 4。{RE}{A}７{AE}", "所以是 7。\n#### 7", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}先算{RE}{A}１，０００{AE}", "1000", 2.0, 0.5, 0.5, 0.5, 0.5),
    (f"{R}先算{RE}{A}七{AE}", "7", 0.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}先算{RE}{A}北京。{AE}", "北京", 2.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}5²{AE}", "52", 0.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}1\n2{AE}", "12", 0.0, 0.0, 0.5, 0.5, 0.5),
    (f"{R}x{RE}{A}<b>12</b>{AE}", "12", 0.0, 0.0, 0.5, 0.5, 0.5),
]


@pytest.mark.parametrize(("answer", "reference", "correct", "integer", "strict", "soft", "counts"), HAND_SCORED)
def test_hand_scored(
    answer: str, reference: str, correct: float, integer: float, strict: float, soft: float, counts: float
) -> None:
    earned = [reward([answer], [reference]) for reward in REWARDS.values()]
    assert earned == [[correct], [integer], [strict], [soft], [pytest.approx(counts)]]


def test_each_answer_of_a_batch_is_scored_alone_and_with_its_own_reference() -> None:
    answers, references = [row[0] for row in HAND_SCORED], [row[1] for row in HAND_SCORED]
    for column, reward in enumerate(REWARDS.values(), 2):
        assert reward(answers, references) == pytest.approx([row[column] for row in HAND_SCORED])
        assert reward([], []) == []


@pytest.mark.parametrize(
    "text",
    ["-", "$", ".", ",", "1,2", "1,0000", ",100", "--5", "-$-5", "$5$", "1.2.3", "1e5", "½", "①", "5 5", "nan", "0x1F"],
)
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("007", "7"), ("+5", "5"), ("$-5", "-5"), ("-0", "0"), (".5", "0.5"), ("1,234,567.8", "1234567.8"), ("￥３", "3")],
)
def test_what_is_a_number(text: str, value: str) -> None:
    assert number(text) == Decimal(value)


@given(st.integers(), st.sampled_from(["{}", "{:,}", "${}", " {}. ", "{}.0", "{}.00", "{} €"]))
def test_a_whole_number_is_the_same_however_it_is_written(value: int, form: str) -> None:
    assert same_result(form.format(value), str(value))
    assert not same_result(form.format(value), str(value + 1))


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=3),
    st.decimals(allow_nan=False, allow_infinity=False, places=3),
)
def test_numbers_are_compared_exactly(left: Decimal, right: Decimal) -> None:
    assert same_result(f"{left:f}", f"{right:f}") == (left == right)


@given(st.lists(st.sampled_from([*TAGS, "\n", "x", "12", "-", "$"]), max_size=30).map("".join), st.text(max_size=20))
def test_every_reward_is_within_its_range_for_any_text(answer: str, reference: str) -> None:
    earned = {name: reward([answer], [reference])[0] for name, reward in REWARDS.items()}
    assert earned["answer_correct"] in {0.0, 2.0} and 0 <= earned["tag_counts"] <= 0.5
    assert {earned[name] for name in ("answer_integer", "strict_format", "soft_format")} <= {0.0, 0.5}
    assert earned["strict_format"] <= earned["soft_format"] and earned["strict_format"] <= earned["tag_counts"]


@given(st.text(max_size=60))
def test_a_text_is_the_same_result_as_itself(text: str) -> None:
    assert same_result(text, text) == bool(text.strip().strip(".。").strip()) or text.strip() in {".", "。", ".。"}


def test_ten_thousand_characters_of_anything_take_no_time() -> None:
    texts = [
        *(part * (10_000 // len(part)) for part in (*TAGS, R + RE, R + RE + A + AE, R + A, "9", "1,", "$", "9.", "-", " ", "\n")),
        f"{R}{RE * 2000}{A * 2000}{AE}", f"{R}x{RE}{A}{'9' * 10_000}{AE}", f"{R}x{RE}{A}{'1,111' * 2000}{AE}",
    ]  # fmt: skip
    started = time.monotonic()
    for reward in REWARDS.values():
        assert len(reward(texts, texts)) == len(texts)
    assert time.monotonic() - started < 10


def test_all_of_gsm8k_earns_everything() -> None:
    if not GSM8K.is_file():
        pytest.skip("the real GSM8K is not beside this checkout")
    references = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    answers = [tagged(reference) or "" for reference in references]
    for name, most in {"answer_correct": 2.0, "answer_integer": 0.5, "strict_format": 0.5, "soft_format": 0.5}.items():
        assert set(REWARDS[name](answers, references)) == {most}
    assert set(REWARDS["tag_counts"](answers, references)) == {0.5}


def test_rewards_are_taken_by_name_in_the_order_of_the_list() -> None:
    taken = named(["tag_counts", "answer_correct"])
    assert list(taken) == ["tag_counts", "answer_correct"]
    assert taken["answer_correct"]([FULL, ""], ["12", "12"]) == [2.0, 0.0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["answer_corect"], "no reward 'answer_corect' (did you mean answer_correct?)"),
        (["soft_format", "soft_format"], "'soft_format' is listed twice"),
    ],
)
def test_a_name_that_cannot_be_taken(names: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        named(names)
    assert message in caught.value.message
