"""A user's own rewards: what is read from a file, and what each kind of fault says."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from toolkit.errors import DataError, UsageError
from toolkit.train.own_rewards import Reward, guarded, load_own
from toolkit.train.rewards import named
from toolkit.train.time_limit import TooLong, time_limit


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_public_functions_of_two_lists_are_rewards_and_all_else_is_not(written: Callable[[str], Path]) -> None:
    path = written(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from os.path import join\n"
        "@dataclass\n"
        "class Kept:\n    text: str\n"
        "def short(completions, references):\n    return [1.0 if len(one) < WORDS else 0.0 for one in completions]\n"
        "def weighed(completions, references, weight=0.5):\n    return [weight for _ in completions]\n"
        "def _hidden(completions, references): ...\n"
        "def helper(text): ...\n"
        "def other(completions, **columns): ...\n"
        "def rest(*lists): ...\n"
        "def keyed(completions, references, *, must): ...\n"
        "WORDS = 5\n"
    )
    own = load_own(path)
    assert list(own) == ["short", "weighed"]
    assert own["short"](["abc", "abcdef"], ["", ""]) == [1.0, 0.0]
    taken = named(["short", "soft_format"], path)
    assert taken["short"](["abc"], [""]) == [1.0] and taken["soft_format"](["abc"], [""]) == [0.0]
    assert [found.name for found in path.parent.iterdir()] == ["mine.py"]  # nothing is written beside it


def test_a_file_that_was_changed_is_read_again(written: Callable[[str], Path]) -> None:
    for value in ("1.0", "2.0"):
        path = written(f"def mine(completions, references):\n    return [{value} for _ in completions]\n")
        assert load_own(path)["mine"](["x"], ["x"]) == [float(value)]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("x = 1\ndef f(:\n", 2, "invalid syntax"),
        (
            "import math\n\nimport no_such_module_here\n",
            3,
            "ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
        ("def f():\n    return 1 / 0\nf()\n", 2, "ZeroDivisionError: division by zero"),
        ("raise SystemExit\n", 1, "SystemExit"),
        ("x = 1\n  y = 2\n", 2, "unexpected indent"),
        ("assert False\n", 1, "AssertionError"),
    ],
)
def test_a_file_that_does_not_import(written: Callable[[str], Path], text: str, line: int, said: str) -> None:
    path = written(text)
    with pytest.raises(DataError) as caught:
        load_own(path)
    assert caught.value.message.startswith(f"{path}:{line}: ") and said in caught.value.message


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for content in (b"\xff\xfe\x00", b"x = '\xe4'\n", b"a\x00b"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"mine\.py"):
            load_own(path)


def test_a_file_without_rewards(written: Callable[[str], Path], tmp_path: Path) -> None:
    for text, held in (("", ""), ("def f(completions, **columns): ...\n", ", only f(completions, **columns)")):
        with pytest.raises(UsageError) as caught:
            load_own(written(text))
        assert caught.value.message.endswith(f"no reward in it{held}")
    for path in (tmp_path / "none.py", tmp_path, written("").rename(tmp_path / "mine.txt")):
        with pytest.raises(UsageError, match="no Python file"):
            load_own(path)


def test_a_name_that_two_rewards_have(written: Callable[[str], Path]) -> None:
    path = written("def soft_format(completions, references): ...\n")
    with pytest.raises(UsageError, match="has a reward 'soft_format', and so has this tool"):
        named(["soft_format"], path)
    assert list(named(["tag_counts"], path)) == ["tag_counts"]


FAULTS = [
    ("    return [1 / (len(one) - 3) for one in completions]", 2, "fails: ZeroDivisionError: division by zero", "bad"),
    (
        "    return [float('nan') if one == 'bad' else 1.0 for one in completions]",
        1,
        "gives back nan instead of",
        "bad",
    ),
    ("    return [1e999 if one == 'bad' else 1.0 for one in completions]", 1, "gives back inf instead of", "bad"),
    ("    return ['1' if one == 'bad' else 1.0 for one in completions]", 1, "gives back '1' instead of", "bad"),
    ("    return [None if one == 'bad' else 1.0 for one in completions]", 1, "gives back None instead of", "bad"),
    ("    return [10**400 if one == 'bad' else 1.0 for one in completions]", 1, "instead of a finite number", "bad"),
    ("    return [1j if one == 'bad' else 1.0 for one in completions]", 1, "gives back 1j instead of", "bad"),
    ("    return [1.0 for one in completions if one != 'bad']", 1, "gives back 0 numbers for 1 answers", "bad"),
    ("    return [1.0] * 7", 1, "gives back more than 1 numbers for 1 answers", "good"),
    ("    return [1.0] * 3 if len(completions) > 1 else [1.0]", 1, "gives back 3 numbers for 4 answers", "good"),
    ("    return 1.0", 1, "gives back 1.0 instead of a list of numbers", "good"),
    ("    return '1234'", 1, "gives back '1234' instead of a list", "good"),
    ("    return {'a': 1.0}", 1, "instead of a list", "good"),
    ("    pass", 1, "gives back None instead of a list", "good"),
    ("    exit(0)", 2, "fails: SystemExit: 0", "good"),
    (
        "    while 'bad' in completions: pass\n    return [1.0 for _ in completions]",
        2,
        "takes longer than 0.3 seconds",
        "bad",
    ),
    (
        "    import time\n    time.sleep(60 * ('bad' in completions))\n    return [1.0 for _ in completions]",
        3,
        "longer",
        "bad",
    ),
    (
        "    import re\n    return [float(bool(re.match('(a+)+$', 'a' * 40 + '!'))) for _ in completions]",
        3,
        "takes longer than 0.3 seconds",
        "good",
    ),
    ("    while True:\n        yield 1.0", 1, "gives back more than 1 numbers for 1 answers", "good"),
    (
        "    while True:\n        try:\n            pass\n        except Exception:\n            pass",
        0,
        "takes longer",
        "good",
    ),
    (
        "    import time\n    try:\n        time.sleep(60)\n    except BaseException: pass\n    time.sleep(60)",
        6,
        "takes longer",
        "good",
    ),
]


@pytest.mark.parametrize(("body", "line", "said", "answer"), FAULTS)
def test_a_fault_names_reward_file_line_and_answer(
    written: Callable[[str], Path], body: str, line: int, said: str, answer: str
) -> None:
    path = written(f"def mine(completions, references):\n{body}\n")
    reward = guarded("mine", load_own(path)["mine"], seconds=0.3)
    with pytest.raises(DataError) as caught:
        reward(["good", "good", "bad", "good"], ["r"] * 4)
    message = caught.value.message
    assert message.startswith(f"the reward mine ({path}:{line or ''}") and said in message
    assert message.endswith(f'; the answer: "{answer}"')


@pytest.mark.parametrize(
    "given",
    [
        [1, 0.5],
        (1.0, 0.5),
        numpy.array([1.0, 0.5], numpy.float32),
        [True, 0.5],
        (v for v in (1.0, 0.5)),
        numpy.array([1.0, 0.5]),
    ],
)
def test_every_list_of_finite_numbers_is_right(given: object) -> None:
    def mine(completions: list[str], references: list[str]) -> object:
        return given

    earned = guarded("mine", mine)(["a", "b"], ["", ""])  # type: ignore[arg-type]
    assert earned == [1.0, 0.5] and all(type(value) is float for value in earned)


def test_no_answers_earn_nothing() -> None:
    assert guarded("mine", lambda *_: [])([], []) == []
    with pytest.raises(DataError, match="no answer"):
        guarded("mine", lambda *_: [1 / 0])([], [])


def test_a_long_answer_is_cut_in_the_message() -> None:
    def mine(completions: list[str], references: list[str]) -> list[float]:
        raise ValueError

    with pytest.raises(DataError) as caught:
        guarded("mine", mine)(["长\n" * 5000], [""])
    assert "fails: ValueError; the answer" in caught.value.message and len(caught.value.message) < 800
    assert caught.value.message.endswith('" …')


def test_a_reward_cannot_change_the_answers() -> None:
    def mine(completions: list[str], references: list[str]) -> list[float]:
        completions.clear()
        return [1.0, 1.0]

    answers = ["a", "b"]
    assert guarded("mine", mine)(answers, ["", ""]) == [1.0, 1.0] and answers == ["a", "b"]


def test_ctrl_c_is_no_fault_of_a_reward() -> None:
    def mine(completions: list[str], references: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded("mine", mine)(["a"], [""])


def test_a_timer_and_its_handler_are_there_afterwards() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    before = signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        guarded("mine", lambda *_: [1.0])(["a"], [""])
        with pytest.raises(TooLong), time_limit(0.05):
            time.sleep(5)
        assert 490 < signal.getitimer(signal.ITIMER_REAL)[0] < 500
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_in_another_thread_the_time_is_looked_at_afterwards() -> None:
    found: list[Exception] = []

    def mine(completions: list[str], references: list[str]) -> list[float]:
        time.sleep(0.1)
        return [1.0]

    def run(reward: Reward) -> None:
        try:
            reward(["a"], [""])
        except DataError as error:
            found.append(error)

    thread = threading.Thread(target=run, args=(guarded("mine", mine, seconds=0.05),))
    thread.start()
    thread.join()
    assert len(found) == 1 and "takes longer than 0.05 seconds" in str(found[0])
