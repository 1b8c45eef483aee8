"""Greedy answers: rows that have ended are left behind, and what the others say stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.families.table import FAMILIES
from tests.families.zoo import Family
from tests.models.test_packing import of_family
from tests.seeing_models import seeing_model
from toolkit.models import greedy as module
from toolkit.models.greedy import greedy
from toolkit.models.reference import TeacherForced

KEEP_A_STATE = {"qwen35", "lfm2", "granite4", "granite4-h"}
NEW = 24


class Counted:
    """A model's own `generate` that remembers how many rows it was given."""

    def __init__(self, model: Any) -> None:
        self.rows: list[int] = []
        self._usual, model.generate = model.generate, self

    def __call__(self, **named: Any) -> Any:
        self.rows.append(len(named["input_ids"]))
        return self._usual(**named)


def prompts(vocabulary: int) -> list[TeacherForced]:
    """Of different lengths, so that some begin with padding."""
    made = torch.Generator().manual_seed(3)
    found = [torch.randint(5, vocabulary, (4 + 3 * number,), generator=made).tolist() for number in range(6)]
    return [TeacherForced(ids, len(ids)) for ids in found]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_leave_when_they_have_ended(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _rows_of_each_step(of_family(family).eval(), monkeypatch)
    if family.name in KEEP_A_STATE:
        assert counted == [6]
    else:
        assert counted[0] == 6 and len(counted) > 1 and sorted(counted)[::-1] == counted


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_of_a_model_that_sees_none_leaves(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked about texts alone, in one batch."""
    model = AutoModelForImageTextToText.from_pretrained(seeing_model(tmp_path / "base", family), dtype=torch.float32)
    assert _rows_of_each_step(model.eval(), monkeypatch) == [6]


def _rows_of_each_step(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of a model whose answers end at different times, and are what they are when nobody leaves."""
    asked = prompts(4000)
    monkeypatch.setattr(module, "_ENDED", 0)  # nobody leaves
    long = greedy(model, asked, [], NEW, "")
    assert [len(answer) for answer in long] == [NEW] * len(asked)
    # Tokens of some answers, so that these end at different times, and the others go on.
    ends = [long[0][0], long[1][len(set(long[1])) // 2], long[2][-1]]
    wanted = greedy(model, asked, ends, NEW, "")
    assert wanted == [_cut(answer, ends) for answer in long]
    monkeypatch.undo()
    counted = Counted(model)
    assert greedy(model, asked, ends, NEW, "") == wanted
    return counted.rows


def _cut(answer: list[int], ends: list[int]) -> list[int]:
    stop = next((place for place, token in enumerate(answer) if token in ends), len(answer) - 1)
    return answer[: stop + 1]
