"""Several sources in one set: their proportions, their names, and mixes that cannot be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from toolkit.data.loading import load
from toolkit.data.mixing import LEFT_OUT
from toolkit.data.prepare import kept_rows
from toolkit.recipe.rows import Data


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    made = {"own": 60, "general": 500, "more": 20}
    for name, count in made.items():
        rows = [{"question": f"What of {name} {i}?", "answer": f"It is {i}."} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {name: str(tmp_path / f"{name}.jsonl") for name in made}


def mixed(sources: list[dict[str, Any]]) -> tuple[Counter[str], Counter[str], list[dict[str, Any]]]:
    data = Data.model_validate({"sources": sources})
    kept = kept_rows(load(data), data, "")
    return (
        Counter(e.source for e in kept.examples),
        Counter(d.reason for d in kept.dropped),
        [e.record() for e in kept.examples],
    )


def test_by_weight_the_largest_mix_without_one_row_twice(files: dict[str, str]) -> None:
    counts, dropped, rows = mixed([{"path": files["own"], "weight": 3}, {"path": files["general"], "weight": 1}])
    assert counts == {"own": 60, "general": 20}
    assert dropped == {LEFT_OUT: 480}
    assert rows[0]["source"] == {"file": "own/own.jsonl", "line": 1, "name": "own"}
    # The order of sources and rows chooses none.
    again = mixed([{"path": files["general"], "weight": 0.25}, {"path": files["own"], "weight": 0.75}])[2]
    assert sorted(map(json.dumps, again)) == sorted(map(json.dumps, rows))


def test_by_count_and_whole(files: dict[str, str]) -> None:
    counts, _, _ = mixed([{"path": files["own"]}, {"path": files["general"], "count": 45, "name": "talk"}])
    assert counts == {"own": 60, "talk": 45}
    counts, _, _ = mixed([
        {"path": files["own"], "weight": 1}, {"path": files["general"], "weight": 0}, {"path": files["more"], "count": 99},
    ])  # fmt: skip
    assert counts == {"own": 60, "more": 20}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": [{"path": "a.csv", "weight": 0}, {"path": "b.csv", "weight": 0}]}, "weights sum to zero"),
        ({"sources": [{"path": "a.csv", "weight": 1, "count": 2}]}, "a weight or a count, not both"),
        ({"sources": [{"path": "x/a.csv"}, {"path": "y/a.csv"}]}, "two are called 'a'"),
        ({"sources": [{"weight": 1}]}, "a source needs a path"),
        ({"sources": [{"path": "a.csv"}], "path": "b.csv"}, "not both"),
        ({"sources": [{"path": "a.csv"}], "encoding": "gbk"}, "encoding: say it of each of the sources"),
        ({}, "path is missing"),
    ],
)
def test_mixes_that_cannot_be(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Data.model_validate(data)
