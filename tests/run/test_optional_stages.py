"""Stages that only some recipes ask for: measured importance, the better of two bases, a file within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.parity_chain import chain, finished
from tests.run.here import run_here
from tests.run.test_recipes_small import RECIPES, SHORT
from tests.small_models import tiny_llama
from toolkit.export.imatrix_file import read_imatrix
from toolkit.export.onto import choose_base
from toolkit.models.gguf_file import read_gguf
from toolkit.recipe.reading import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import write_jsonl
from toolkit.run.facts import DatasetFacts
from toolkit.run.stages import stages_of


def made(**more: Any) -> Recipe:
    values = {
        "name": "x",
        "base": "b",
        "data": {"path": "d.csv"},
        "golden": {"prompts": ["Why?"]},
        "ollama": {"model": "x"},
    }
    return Recipe.model_validate({**values, **more})


def test_they_are_there_when_they_are_asked_for() -> None:
    usual = {stage.name: stage.inputs for stage in stages_of(made())}
    assert not {"onto", "merge", "imatrix"} & usual.keys()
    both = {stage.name: stage.inputs for stage in stages_of(made(merge={"onto": "auto"}, export={"imatrix": True}))}
    assert [name for name in both if name not in usual] == ["onto", "imatrix"]
    assert {name for name, inputs in both.items() if "imatrix" in inputs} == {"quantize", "verify"}
    assert {name for name, inputs in both.items() if "onto" in inputs} == {
        "golden",
        "convert",
        "quantize",
        "verify",
        "evaluate",
        "report",
    }
    folder = {stage.name: stage.inputs for stage in stages_of(made(merge={"folder": True}))}
    assert {name for name, inputs in folder.items() if "merge" in inputs} == {"verify"}
    with_file = {stage.name for stage in stages_of(made(export={"imatrix": "m.gguf"}))}
    assert with_file == usual.keys()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"merge": {"onto": "auto"}}, "merge.onto: auto reads held-out rows"),
        ({"export": {"imatrix": True}}, "export.imatrix: true reads rows of the training split"),
    ],
)
def test_an_adapter_made_elsewhere_brings_no_rows(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made(adapter="a", data=None, **settings)


def test_the_base_on_which_held_out_rows_fare_better(tmp_path: Path) -> None:
    """An adapter that was trained on NF4 weights fits these; said of rows that it learnt, with both losses."""
    from tests.parity_chain import AFTER, rows

    clean = chain()
    write_jsonl(tmp_path / "validation.jsonl", rows(AFTER))
    facts = DatasetFacts(rows={}, read=40, kept=40, dropped={}, repaired={}, encodings={}, language="en")
    found = choose_base(clean.recipe, finished(tmp_path, facts), clean.adapter)
    assert found.loss_as_trained is not None and found.loss_on_16_bit is not None
    assert found.onto == ("as trained" if found.loss_as_trained <= found.loss_on_16_bit else "16-bit")
    assert abs(found.loss_as_trained - found.loss_on_16_bit) > 1e-6
    (tmp_path / "none").mkdir()
    write_jsonl(tmp_path / "none" / "validation.jsonl", [])
    nobody = choose_base(clean.recipe, finished(tmp_path / "none", facts), clean.adapter)
    assert (nobody.onto, nobody.loss_as_trained) == ("as trained", None)


@pytest.mark.slow
def test_a_run_with_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    base = tiny_llama(tmp_path / "base")
    asked = [
        f"base={base}", *SHORT, "data.max_rows=40", "export.file_types=[F16, Q8_0, Q4_K_M]", "export.serve=auto",
        "export.imatrix=true", "export.max_kl=0.05", "export.min_kept=0.5", "merge.onto=auto",
        "merge.folder=true",
    ]  # fmt: skip
    recipe = load_recipe(RECIPES / "alpaca.yaml", "cpu", asked)
    have = run_here(recipe, tmp_path / "run", "verify")
    assert have["onto"].facts.onto in ("as trained", "16-bit")
    assert have["merge"].facts.merged_onto == {"as trained": "nf4", "16-bit": "16-bit"}[have["onto"].facts.onto]
    matrix = read_imatrix(have["imatrix"].folder / "imatrix.gguf")
    assert matrix.dataset == "alpaca, rows of the training split"
    quantized = have["quantize"].folder / have["quantize"].facts.files[-1].name
    assert read_gguf(quantized).metadata["quantize.imatrix.entries_count"] == len(matrix.means)
    certificate = json.loads((have["verify"].folder / "certificate.json").read_text(encoding="utf-8"))
    served = next(subject for subject in certificate["subjects"] if subject["served"])
    measures = {
        m["name"]: m["value"] for check in served["checks"] if check["name"] == "logits" for m in check["measures"]
    }
    assert measures["mean KL"] <= 0.05 and measures["share of the gain kept"] >= 0.5
