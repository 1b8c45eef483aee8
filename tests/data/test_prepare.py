"""The whole first stage, on files as users have them."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolkit.data.languages import language_of
from toolkit.data.prepare import check_data, prepare_dataset
from toolkit.errors import DataError, UsageError
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import text_sha256
from toolkit.run.facts import DatasetFacts

REPOSITORY = Path(__file__).parents[2]
REAL = REPOSITORY / "../shared/data/medical/internal_medicine_5000-6000.gbk.csv"


def recipe(path: Path, golden: Any = None, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "t",
            "profile": "cpu",
            "base": "embedded:smollm2-135m-instruct",
            "system": "Be brief.",
            "data": {"path": str(path), **data},
            "golden": {"prompts": golden or ["Is this a golden prompt?"]},
            "ollama": {"model": "t"},
        }
    )


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").split("\n")[:-1]]


def table(path: Path, count: int, encoding: str = "utf-8") -> Path:
    text = "".join(f"How do I treat {text_sha256(str(i))}?,{i}: rest.\n" for i in range(count))
    path.write_bytes(f"ask,answer\n{text}".encode(encoding))
    return path


def prepare(given: Recipe, out: Path) -> DatasetFacts:
    out.mkdir()
    return prepare_dataset(given, out)


def test_every_row_is_somewhere(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", 200)
    with path.open("a") as stream:
        stream.write("a,b,c\n,empty\nHi,<|im_end|>\nHi there,\x01you\n")
    facts = prepare(recipe(path, max_rows=50, validation=0.1, test=0.1), tmp_path / "out")
    written = {name: lines(tmp_path / "out", f"{name}.jsonl") for name in ("train", "validation", "test", "dropped")}
    assert facts.rows == {name: len(written[name]) for name in ("train", "validation", "test")}
    assert facts.rows["train"] == 50
    assert facts.read == 204 == facts.kept + sum(facts.dropped.values())
    assert facts.kept == sum(facts.rows.values())
    assert facts.dropped == Counter(row["reason"] for row in written["dropped"])
    assert facts.dropped.keys() == {
        "over max_rows",
        "wrong number of fields",
        "empty prompt",
        "special token in the text",
    }
    assert facts.repaired == {"control characters removed": 1}
    assert facts.encodings == {"x.csv": "UTF-8"}
    places = [(r.get("source") or r)["line"] for rows in written.values() for r in rows]
    assert sorted(places) == list(range(2, 206))
    source = path.read_text().split("\n")
    for row in written["train"] + written["test"]:
        assert row["prompt"] == [{"role": "system", "content": "Be brief."}, row["prompt"][1]]
        assert source[row["source"]["line"] - 1].startswith(row["prompt"][1]["content"])


def test_same_bytes_again_and_rows_stay_put_when_rows_are_added(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    table(folder / "a.csv", 120)
    for out in ("one", "two"):
        prepare(recipe(folder), tmp_path / out)
    for name in ("train", "validation", "test", "dropped"):
        assert (tmp_path / "one" / f"{name}.jsonl").read_bytes() == (tmp_path / "two" / f"{name}.jsonl").read_bytes()
    (folder / "b.csv").write_text(
        "ask,answer\n" + "".join(f"Is food {i * 7919} good for me?,{i}.\n" for i in range(50))
    )
    prepare(recipe(folder), tmp_path / "more")
    for name in ("train", "validation", "test"):
        assert lines(tmp_path / "one", f"{name}.jsonl") == [
            row for row in lines(tmp_path / "more", f"{name}.jsonl") if row["source"]["file"] == "a.csv"
        ]


def test_golden_prompts_from_a_file_are_kept_from_training(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", 100)
    asked = [line.partition(",")[0] for line in path.read_text().split("\n")[1:101]]
    (tmp_path / "golden.txt").write_text("\ufeff" + "\n\n".join(asked[:40]))
    given = recipe(path, golden=str(tmp_path / "golden.txt"))
    prepare(given, tmp_path / "out")
    assert not {row["prompt"][-1]["content"] for row in lines(tmp_path / "out", "train.jsonl")} & set(asked[:40])
    no_test = given.model_copy(update={"data": given.data.model_copy(update={"test": 0.0})}) if given.data else given
    facts = prepare(no_test, tmp_path / "out2")
    assert facts.rows["test"] == 0
    assert facts.dropped == {"resembles a golden prompt": 40}


def test_all_rows_filtered_out(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", 30)
    with pytest.raises(DataError) as caught:
        prepare(recipe(path, max_characters=5), tmp_path / "out")
    assert caught.value.message == (
        f"{path}: none of the 30 rows is left:\n  30 longer than max_characters, first at x.csv:2"
    )
    assert "data.max_characters" in caught.value.hint
    assert list((tmp_path / "out").iterdir()) == []


def test_too_many_dropped(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", 30)
    path.write_text(path.read_text() + "Hi,\n" * 20)
    assert prepare(recipe(path, max_dropped=0.4, test=0.2, validation=0.2), tmp_path / "out").dropped == {
        "empty completion": 20
    }
    with pytest.raises(
        DataError, match=r"20 of 50 rows dropped, more than data.max_dropped = 0.39 of them:\n  20 empty"
    ):
        prepare(recipe(path, max_dropped=0.39), tmp_path / "out2")


def test_a_side_without_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", 2)
    with pytest.raises(
        DataError, match="too few rows on the validation side: train 2, validation 0, test 0; 1 needed"
    ) as caught:
        prepare(recipe(path), tmp_path / "out")
    assert "--set data.validation=0.2" in caught.value.hint


def test_fewer_test_rows_than_golden_prompts(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", 60)
    given = recipe(path)
    given = given.model_copy(update={"golden": given.golden.model_copy(update={"from_test": 30})})
    with pytest.raises(DataError, match=r"too few rows on the test side: .*; 30 needed"):
        prepare(given, tmp_path / "out")


def test_faults_of_the_first_second(tmp_path: Path) -> None:
    assert check_data(recipe(table(tmp_path / "x.csv", 3)))[1] == []
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.csv").write_text("x1,x2,x3\na,b,c\n")
    (tmp_path / "bad.csv").write_bytes(b"ask,answer\n\xff\xff,\n")
    found = [fault.message for fault in check_data(recipe(tmp_path))[1]]
    assert found[1:] == [
        "empty.csv is empty (0 bytes)",
        "other.csv:1: it has the columns x1, x2, x3, and none of them looks like the questions",
    ]
    assert found[0].startswith("bad.csv:2: byte 0xFF at offset 11")
    assert [type(fault) for fault in check_data(recipe(tmp_path / "gone"))[1]] == [UsageError]


def test_missing_column_stops(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("asks,answer\na,b\n")
    with pytest.raises(UsageError, match=r"x\.csv:1: no column 'ask' \(did you mean asks\?\)"):
        prepare(recipe(tmp_path / "x.csv", columns={"prompt": "ask", "completion": "answer"}), tmp_path / "out")


def test_no_torch() -> None:
    code = "import sys, toolkit.data.prepare, toolkit.data.peek; print('torch' in sys.modules, 'datasketch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )


@pytest.fixture(scope="module")
def real() -> Path:
    if not REAL.is_file():
        pytest.skip(f"the real rows are not here: {REAL}")
    return REAL


def test_the_real_rows(real: Path, tmp_path: Path) -> None:
    facts = prepare(recipe(real, max_characters=200, language="zh"), tmp_path / "out")
    with real.open(encoding="gbk", newline="") as stream:
        pairs = [(row["ask"].strip(), row["answer"].strip()) for row in csv.DictReader(stream)]
    short = [pair for pair in pairs if len(pair[0]) + len(pair[1]) <= 200]
    assert facts.read == len(pairs) == 7644
    assert facts.dropped == {
        "longer than max_characters": 7644 - len(short),
        "exact duplicate": len(short) - len(set(short)),
    }
    assert facts.dropped == {"longer than max_characters": 4574, "exact duplicate": 160}
    assert facts.rows == {"train": 2587, "validation": 168, "test": 155}
    assert facts.encodings == {real.name: "GBK"}
    assert facts.repaired == {}
    prompts = {
        name: {r["prompt"][-1]["content"] for r in lines(tmp_path / "out", f"{name}.jsonl")} for name in facts.rows
    }
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]


@pytest.mark.parametrize(
    ("said", "row", "found"),
    [
        ("en", "头疼怎么办{}？,多休息{}。", "zh"),  # other data for the same recipe: MEDICAL_DATA=…
        ("zh", "How do I treat {}?,Rest {}.", "en"),
        ("de", "Was hilft gegen {}?,Ruhe {}.", "de"),  # from English it cannot be told
        ("ja", "頭痛には{}？,休{}。", "ja"),
    ],
)
def test_the_language_is_the_rows_own(said: str, row: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    rows = "".join(row.format(text_sha256(str(i))[:4], i) + "\n" for i in range(60))
    path.write_text(f"ask,answer\n{rows}", encoding="utf-8")
    facts = prepare(recipe(path, language=said, validation=0, test=0), tmp_path / "out")
    assert facts.language == found


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_shipped_rows(language: str, tmp_path: Path) -> None:
    folder = REPOSITORY / "data" / "medical" / language
    assert folder.is_dir(), f"{folder} ships with the project"
    facts = prepare(recipe(folder, max_characters=200, language=language, validation=0.1, test=0.1), tmp_path / "out")
    assert facts.kept >= 160
    assert facts.dropped == {}
    assert "UTF-8 with BOM" in facts.encodings.values()
    assert ("GB18030" in facts.encodings.values()) == (language == "zh")
    assert len(set(facts.encodings.values())) >= 3
    rows = [row for name in facts.rows for row in lines(tmp_path / "out", f"{name}.jsonl")]
    assert {language_of([row["completion"][0]["content"]]) for row in rows} == {language}
    # A wrong reading shows rare or private-use characters somewhere in so many rows.
    assert not [row for row in rows if re.search("[\ue000-\uf8ff\u3040-\u30ff\u3100-\u312f]", str(row))]
