"""Columns that judge answers: which words are understood, and what is said of those that nobody can understand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.formats import read_row
from toolkit.data.inspect import inspect
from toolkit.data.loading import Loaded, for_other_objectives, load
from toolkit.errors import UsageError
from toolkit.recipe.init import recipe_to_look, write_recipe
from toolkit.recipe.rows import Data
from toolkit.recipe.schema import Recipe
from toolkit.run.preflight import preflight


def rows(labels: list[Any], names: tuple[str, str, str] = ("prompt", "completion", "label")) -> list[dict[str, Any]]:
    """Questions and answers with these labels."""
    return [dict(zip(names, (f"Question {i}?", f"Answer {i}.", label))) for i, label in enumerate(labels)]


def read(folder: Path, given: list[dict[str, Any]], **said: Any) -> Loaded:
    """The rows, written as JSONL and read as `said` says."""
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in given)
    (folder / "x.jsonl").write_text(text, encoding="utf-8")
    return load(Data.model_validate({"path": str(folder / "x.jsonl"), **said}))


def judged(loaded: Loaded) -> list[Any]:
    """Of each row: whether its answer is good, or why it is dropped."""
    found = [read_row(row, loaded.shapes[row.file]) for row in loaded.table.rows]
    return [one if isinstance(one, str) else one.good for one in found]


NEITHER = "the label is neither true nor false"


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (True, False), ("True", "FALSE"), (1, 0), ("1.0", "0"), (1, -1), ("+1", "-1"), (1.0, -1.0), ("yes", "no"),
        ("Good", " bad"), ("chosen", "rejected"), ("好", "坏"), ("是", "否"), ("👍", "👎"),
    ],
)  # fmt: skip
def test_words_that_say_good_and_bad(tmp_path: Path, good: Any, bad: Any) -> None:
    loaded = read(tmp_path, rows([good, bad, good]))
    assert judged(loaded) == [True, False, True]
    assert loaded.doubts == {}


def test_rows_with_other_words_are_dropped_and_named(tmp_path: Path) -> None:
    loaded = read(tmp_path, rows([True, False] * 9 + ["maybe", None]))
    assert judged(loaded)[-3:] == [False, NEITHER, NEITHER]
    assert loaded.doubts["x.jsonl"] == (
        "x.jsonl:19: label holds maybe, neither true nor false, in 1 of the first 19 rows: such rows are dropped. To say what it "
        "means: --set 'data.labels={true: true, false: false, maybe: …}'"
    )


def test_beside_plus_and_minus_nothing_is_neither(tmp_path: Path) -> None:
    loaded = read(tmp_path, rows([1, 0, -1, 1]))
    assert judged(loaded) == [True, NEITHER, False, True]
    assert loaded.doubts["x.jsonl"].startswith("x.jsonl:2: label holds 0, neither true nor false")


NO_LABELS: list[tuple[list[Any], tuple[str, str, str], str]] = [
    (["maybe", 3, "gut"], ("prompt", "completion", "label"),
     "label holds maybe, 3, gut, and is not used: every answer is learnt, good or bad. If it judges them: --set "
     "'data.labels={maybe: …, \"3\": …, gut: …}', with true or false for each"),
    ([1, 2, 3, 4, 5], ("question", "answer", "rating"),
     "rating holds 1, 2, 3, 4, 5, and is not used: every answer is learnt, good or bad. If it judges them: --set "
     "data.columns.label=rating --set 'data.labels={\"1\": …"),
    ([0, 1], ("question", "answer", "label"),
     "label holds 0, 1, and is not used: every answer is learnt, good or bad. If it judges them: --set data.columns.label=label"),
    (["差", "l'une"], ("问题", "答案", "评价"), "评价 holds 差, l'une, and is not used"),
    ([f"c{i}" for i in range(9)], ("prompt", "completion", "label"), "label holds c0, c1, c2, c3, c4, c5 and 3 more, and is not"),
    ([0.1 * i for i in range(9)], ("prompt", "completion", "score"), ""),
    ([None] * 3, ("prompt", "completion", "label"), ""),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "names", "said"), NO_LABELS, ids=lambda value: str(value)[:24])
def test_what_may_judge_and_is_not_used_is_said(
    tmp_path: Path, labels: list[Any], names: tuple[str, str, str], said: str
) -> None:
    loaded = read(tmp_path, rows(labels * 2, names))
    assert (loaded.shapes["x.jsonl"].kind, loaded.shapes["x.jsonl"].unused) == ("columns", (names[2],))
    doubt = loaded.doubts.get("x.jsonl", "")
    assert doubt.startswith(f"x.jsonl:1: {said}" if said else "") and bool(doubt) == bool(said)
    assert for_other_objectives(loaded, "sft") == []


def test_the_words_of_a_language_can_be_said(tmp_path: Path) -> None:
    given = rows(["gut", "schlecht", "offen", "offen", "offen"])
    loaded = read(tmp_path, given, labels={"gut": True, "Schlecht": False})
    assert judged(loaded) == [True, False, NEITHER, NEITHER, NEITHER]
    loaded = read(tmp_path, rows([1, 5, 3, 4], ("Frage", "Antwort", "Sterne")), columns={"label": "Sterne"},
                  labels={1: False, 4: True, 5: True})  # fmt: skip
    assert judged(loaded) == [False, True, NEITHER, True]
    # What YAML makes of a bare yes.
    assert judged(read(tmp_path, rows(["yes", "no", "maybe"]), labels={True: True, "maybe": False})) == [
        True,
        NEITHER,
        False,
    ]


def test_labels_by_name_that_are_none_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.jsonl:1: Urteil holds ja, nein: nothing says which") as caught:
        read(tmp_path, rows(["ja", "nein"], ("Frage", "Antwort", "Urteil")), columns={"label": "Urteil"})
    assert "--set 'data.labels={ja: …, nein: …}'" in caught.value.hint
    with pytest.raises(UsageError, match=r"x\.jsonl:1: label holds 2: nothing says"):
        read(tmp_path, rows([2]), format="unpaired")


def test_conversations_with_labels(tmp_path: Path) -> None:
    talks = [[{"role": "user", "content": f"Q {i}"}, {"role": "assistant", "content": "A."}] for i in range(4)]
    loaded = read(tmp_path, [{"messages": talk, "label": i % 2} for i, talk in enumerate(talks)])
    assert judged(loaded) == [False, True] * 2
    (fault,) = for_other_objectives(loaded, "sft")
    assert fault.hint.endswith("to learn all of these answers: --set data.format=messages")
    assert read(tmp_path, [{"messages": talk, "label": "gut"} for talk in talks], format="messages").doubts


def test_a_label_alone_is_the_answer(tmp_path: Path) -> None:
    loaded = read(tmp_path, [{"prompt": f"Is {i} even?", "label": str(i % 2 == 0).lower()} for i in range(4)])
    assert loaded.shapes["x.jsonl"].roles == {"prompt": "prompt", "completion": "label"} and loaded.doubts == {}
    loaded = read(tmp_path, [{"text": f"Mail {i}", "label": ("spam", "ham")[i % 2]} for i in range(4)])
    assert loaded.doubts["x.jsonl"].endswith("--set data.columns.prompt=text --set data.columns.completion=label")


def test_said_by_inspect_by_init_and_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = read(tmp_path, rows(["maybe", "gut"] * 20)).doubts["x.jsonl"]
    look = recipe_to_look("x.jsonl", "embedded:smollm2-135m-instruct", [])
    assert said in inspect(look).notes
    assert said in write_recipe("x.jsonl").told
    recipe = Recipe.model_validate({**look.model_dump(), "golden": {"from_test": 1}})
    assert preflight(recipe, tmp_path, {"prepare"}) == [said]
    read(tmp_path, [{"text": f"Mail {i}", "label": "spam"} for i in range(4)])
    with pytest.raises(UsageError, match="plain text") as caught:
        preflight(recipe, tmp_path, {"prepare"})
    assert "x.jsonl:1: label holds spam, and is not used; to learn it" in caught.value.hint
    assert any("label holds spam" in line for line in write_recipe("x.jsonl", "other").told)
