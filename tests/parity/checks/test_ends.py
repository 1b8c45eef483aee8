"""Where answers end: every kind of end that a file makes and the tuned model has not, and right ones that look odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.small_models import TREE, put_tokenizer
from toolkit.models.embedded import find_gguf
from toolkit.models.gguf_metadata import vocabulary_alone
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check
from toolkit.parity.checks.ends import (
    KNOWS_ITS_END,
    file_ends_check,
    folder_ends_check,
    stop_words_check,
    tuned_ends_check,
)
from toolkit.parity.golden.goldens import Goldens
from toolkit.run.facts import GoldenFacts

END = 2
NAMED = "tokenizer.ggml."


def goldens(
    answers: list[tuple[str, bool]],
    ids: list[list[int]] | None = None,
    ends: list[float] | None = None,
    trained: frozenset[int] = frozenset(),
    **facts: Any,
) -> Goldens:
    """Answers (text, whether it ended by itself) as the golden stage keeps them."""
    known = {"end_tokens": [END], "turn_end": END, "turn_marks": ["<|im_start|>"], **facts}
    told = GoldenFacts(
        prompts=len(answers), positions=0, vocabulary=49_152, forward="whole",
        stopped_by_themselves=sum(stopped for _, stopped in answers), **known,
    )  # fmt: skip
    rows = [
        {
            "completion": text, "stopped": stopped, "end_token": END if stopped else None,
            "completion_ids": [*(ids[number] if ids else [300]), *([END] if stopped else [])],
        }
        for number, (text, stopped) in enumerate(answers)
    ]  # fmt: skip
    none = np.zeros((0, 49_152), dtype=np.float32)
    return Goldens(told, rows, [], none, none, [{"end": end} for end in ends or []], trained)


SAID = goldens([("Rest. See a doctor.", True)] * 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    put_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def check_file(
    tokenizer: Any,
    out: Path,
    keys: dict[str, int | None],
    said: Goldens = SAID,
    expected: dict[str, Any] | None = None,
) -> Check:
    """The check of the embedded model's vocabulary with other special ids."""
    with Candidate(vocabulary_alone(find_gguf(), out / "v.gguf", keys), vocab_only=True) as candidate:
        return file_ends_check(candidate, tokenizer, said, expected)


def measures(check: Check) -> dict[str, float]:
    return {measure.name: measure.value for measure in check.measures}


def test_a_right_file_ends_where_the_tuned_model_does(tokenizer: Any, tmp_path: Path) -> None:
    check = check_file(tokenizer, tmp_path, {})
    assert check.verdict == "pass"
    assert check.message == "answers end at 2 '<|im_end|>', as the tuned model's"
    # llama.cpp ends at these too, in every right file with this vocabulary: by their names.
    assert check.details["ends"] == [0, 2, 4]
    assert measures(check)["other end tokens that no answer holds"] == 2


@pytest.mark.parametrize("key", ["eos_token_id", "eot_token_id", "eom_token_id", "fim_sep_token_id"])
@pytest.mark.parametrize("text", [".", "\n", "Ġdoctor", "7", "ãĢĤ"])
def test_an_ordinary_token_as_an_end_is_named(tokenizer: Any, tmp_path: Path, key: str, text: str) -> None:
    token = tokenizer.encode("\n")[0] if text == "\n" else tokenizer.convert_tokens_to_ids(text)
    check = check_file(tokenizer, tmp_path, {NAMED + key: token})
    assert check.verdict == "fail"
    spelled = tokenizer.decode([token])
    assert f"the file makes an end of {token} {spelled!r}: answers stop there" in check.message
    assert measures(check)["end-of-text id wrong"] == (key == "eos_token_id")


def test_a_special_token_as_an_end_is_named_unless_the_converter_writes_it(tokenizer: Any, tmp_path: Path) -> None:
    key = NAMED + "eot_token_id"
    check = check_file(tokenizer, tmp_path, {key: 1})
    assert check.verdict == "fail"
    assert "the file makes an end of 1 '<|im_start|>'" in check.message
    # As it does of GLM-4's '<|user|>', and of some that no list of ends names.
    assert check_file(tokenizer, tmp_path, {key: 1}, expected={key: 1}).verdict == "pass"
    # But not where answers hold it.
    holding = goldens([("x", True)], [[300, 1, 301]])
    assert check_file(tokenizer, tmp_path, {key: 1}, holding, {key: 1}).verdict == "fail"


def test_more_ends_than_one_are_all_named(tokenizer: Any, tmp_path: Path) -> None:
    check = check_file(tokenizer, tmp_path, {NAMED + "eot_token_id": 30, NAMED + "eom_token_id": 28})
    assert measures(check)["tokens that end answers and must not"] == 2
    assert "28 ',', 30 '.'" in check.message


def test_a_token_known_by_name_is_a_fault_where_answers_hold_it(tokenizer: Any, tmp_path: Path) -> None:
    assert check_file(tokenizer, tmp_path, {}, goldens([("x", True)], trained=frozenset({300, 0}))).verdict == "fail"
    in_golden = check_file(tokenizer, tmp_path, {}, goldens([("x", True)], [[300, 4, 301]]))
    assert "answers stop at 4 '<reponame>', which answers of the tuned model hold" in in_golden.message
    # What an answer without an end runs on into is no part of an answer.
    assert check_file(tokenizer, tmp_path, {}, goldens([("x", False)], [[300, 0, 301]])).verdict == "pass"


def test_a_lost_end_is_a_fault_where_answers_need_it(tokenizer: Any, tmp_path: Path) -> None:
    needed = check_file(tokenizer, tmp_path, {}, goldens([("x", True)], end_tokens=[2, 300], turn_end=300))
    assert needed.verdict == "fail"
    assert needed.message.startswith("answers would not end at 300 ")
    # Phi-3 lists <|assistant|> as an end, which no answer ends with and llama.cpp does not know.
    listed = check_file(tokenizer, tmp_path, {}, goldens([("x", True)], end_tokens=[2, 300]))
    assert (listed.verdict, measures(listed)["end tokens lost that no answer needs"]) == ("pass", 1)


def test_another_end_of_text_is_a_fault(tokenizer: Any, tmp_path: Path) -> None:
    check = check_file(tokenizer, tmp_path, {NAMED + "eos_token_id": 0})
    assert check.verdict == "fail"
    assert "the end-of-text id is 0 '<|endoftext|>', wanted 2" in check.message


def test_an_ordinary_token_that_llama_cpp_knows_by_name_is_no_alarm(tmp_path: Path) -> None:
    # Qwen2.5 has '</s>' among its ordinary tokens, and every right file of it ends there.
    put_tokenizer(tmp_path, "qwen2")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    said = goldens([("x", True)], end_tokens=[151_643, 151_645], turn_end=151_645)
    for row in said.rows:
        row["end_token"] = 151_645
    with Candidate(TREE / "models" / "ggml-vocab-qwen2.gguf", vocab_only=True) as candidate:
        assert candidate.end_tokens == {128_247, 151_643, 151_645}
        named = candidate.ends_by_name(151_643)
        check = file_ends_check(candidate, tokenizer, said)
    assert 128_247 in named
    assert measures(check)["tokens that end answers and must not"] == 0


def test_a_folder_that_lists_an_ordinary_token(tokenizer: Any) -> None:
    assert folder_ends_check([0, 2], tokenizer, SAID).verdict == "pass"
    check = folder_ends_check([2, 30], tokenizer, SAID)
    assert (check.verdict, check.message) == (
        "fail",
        "its settings end answers at 30 '.', where the tuned model goes on",
    )


# The tuned model's own ends -----------------------------------------------------------------------------------------


def test_answers_that_end_are_no_alarm() -> None:
    check = tuned_ends_check(SAID, 24)
    assert (check.verdict, check.message) == ("pass", "4 of 4 golden answers end by themselves")
    told = tuned_ends_check(goldens([("x", True)] * 2, ends_told="the template closes a turn with '<|x|>'"), 24)
    assert told.message.endswith("; the template closes a turn with '<|x|>'")


def test_answers_that_go_on_into_invented_turns_never_end() -> None:
    endless = goldens([("Rest.\n<|im_start|>user\nAnd now?", False)] * 3 + [("Rest.", True)])
    check = tuned_ends_check(endless, 96)
    assert check.verdict == "fail"
    assert check.message.startswith(
        "3 of 4 golden answers never end: 3 go on into '<|im_start|>', a turn that they invent"
    )
    assert "train longer" in check.message
    # Where templates open turns with text, that is the mark.
    text = goldens([("Rest.\n\n### Instruction:\nAnd", False)] * 4, turn_marks=["### Instruction:"])
    assert "go on into '### Instruction:'" in tuned_ends_check(text, 96).message
    # One of many is what small models do.
    assert tuned_ends_check(goldens([("a <|im_start|>", False)] + [("b", True)] * 9), 96).verdict == "pass"


def test_long_answers_are_not_called_broken() -> None:
    # At the ends of the data's own answers the model says so: it is only cut short.
    cut = goldens([("A long story", False)] * 4, ends=[0.4, 0.7, 0.1], answers_median=300, answers_longest=500)
    check = tuned_ends_check(cut, 96)
    assert check.verdict == "pass"
    assert "answers of up to 500 tokens were trained on" in check.message
    assert "--set golden.max_new_tokens=751" in check.message


def test_a_model_that_has_not_learnt_to_end_is_told_from_one_that_is_cut() -> None:
    never = goldens([("word word", False)] * 4, ends=[1e-6, 1e-4], answers_median=30, answers_longest=50)
    assert "the end token has a probability of" in tuned_ends_check(never, 24).message
    assert tuned_ends_check(never, 24).verdict == "fail"
    room = goldens([("word word", False)] * 4, ends=[KNOWS_ITS_END * 2], answers_median=30, answers_longest=50)
    assert tuned_ends_check(room, 75).verdict == "fail"
    assert (
        "golden.max_new_tokens is 75, the longest answer trained on has 50 tokens" in tuned_ends_check(room, 75).message
    )
    assert tuned_ends_check(room, 60).verdict == "pass"


def test_where_nothing_is_known_nothing_is_proved() -> None:
    unknown = tuned_ends_check(goldens([("word word", False)] * 4), 96)
    assert unknown.verdict == "inconclusive"
    assert "golden.max_new_tokens is 96, and let go on, they do not end within 384 either" in unknown.message
    assert "--set golden.max_new_tokens=1536" in unknown.message
    assert tuned_ends_check(goldens([("word word", False)] * 4), 96, publishing=False).verdict == "not compared"
    assert tuned_ends_check(goldens([("word word", False)] * 3 + [("x", True)]), 96).verdict == "pass"


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}.<|im_end|>\n{% endfor %}<|im_start|>user\n"


# Stop words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [".", "\n", " a", "doctor", "Zebra", "user", "。"])
def test_a_stop_word_that_is_no_end_is_named(word: str) -> None:
    check = stop_words_check(["<|im_end|>", word], SAID.rows, ["<|im_end|>", "<|im_start|>"], TEMPLATE)
    assert check.verdict == "fail"
    assert f"the stop word {word!r} is no end of the tuned model" in check.message
    assert ("it cuts 4 of 4 golden answers" in check.message) == (word in "Rest. See a doctor.")


def test_stop_words_that_are_ends_or_marks_of_the_template_are_right() -> None:
    ends, template = ["<|im_end|>", "<|im_start|>"], "### Instruction:\n{{ text }}\n### Response:\n[INST]"
    words = ["<|im_start|>", "<|im_end|>", "### Instruction:", "### Response:", "[INST]"]
    assert stop_words_check([], SAID.rows, ends, template).verdict == "pass"
    assert stop_words_check(words, SAID.rows, ends, template).verdict == "pass"
    holding = goldens([("As ### Instruction: says.", True)])
    assert stop_words_check(words, holding.rows, ends, template).verdict == "fail"
    assert stop_words_check(["Response"], SAID.rows, ends, template).verdict == "fail"
