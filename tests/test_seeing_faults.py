"""Every fault of pictures is refused and called by its name; a right chain passes, whatever its file types."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.seeing_chain import FILE_TYPES, SeeingChain, recipe_for, seeing_chain
from tests.faults.seeing_table import SEEING_FAULTS, SeeingFault
from tests.parity_chain import export
from toolkit.export import straight

pytestmark = pytest.mark.slow


def of_one_file(chain: SeeingChain) -> SeeingChain:
    """Without the quantized file: what is broken before it shows in the converted one, in two thirds of the time."""
    only = chain.recipe.export.model_copy(update={"file_types": FILE_TYPES[:1], "serve": FILE_TYPES[0]})
    none = chain.export.quantized.facts.model_copy(update={"files": []})
    made = replace(chain.export, quantized=replace(chain.export.quantized, facts=none))
    return replace(chain, recipe=chain.recipe.model_copy(update={"export": only}), export=made)


@pytest.mark.parametrize("fault", SEEING_FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_refused_and_named(fault: SeeingFault, tmp_path: Path) -> None:
    certificate = of_one_file(fault.inject(tmp_path / "broken")).certificate(tmp_path / "verify")
    blame = certificate["blame"] or {}
    assert (certificate["verdict"], blame.get("link")) == ("fail", fault.link), certificate["message"]
    assert fault.says in certificate["message"]


def test_a_right_chain_passes_in_every_file_type(tmp_path: Path) -> None:
    clean = seeing_chain()
    chosen = recipe_for(clean.base, ["F16", "Q8_0", "Q4_K_M"])
    certificate = replace(clean, recipe=chosen, export=export(chosen, clean.adapter, tmp_path / "x")).certificate(
        tmp_path / "verify"
    )
    # A random model's answers never end, and four bits cost it more than a trained one: both stay open, and nothing fails.
    verdicts = {subject["name"]: subject["verdict"] for subject in certificate["subjects"]}
    assert verdicts == {
        "adapter": "inconclusive", "merged": "pass", "mmproj": "pass", "F16": "pass", "Q8_0": "pass", "Q4_K_M": "inconclusive",
    }, certificate["message"]  # fmt: skip
    coarse = {check["name"]: check["verdict"] for check in certificate["subjects"][-1]["checks"]}
    assert {name for name, verdict in coarse.items() if verdict != "pass"} == {"logits", "stops"}
    assert (certificate["verdict"], certificate["blame"]) == ("inconclusive", None)


def test_both_files_come_straight_from_base_and_adapter(tmp_path: Path) -> None:
    clean = seeing_chain()
    made = straight.export(clean.recipe, clean.adapter, FILE_TYPES, tmp_path)
    assert made is not None and made.facts.mmproj == clean.export.gguf.facts.mmproj
    assert made.facts.files == [*clean.export.gguf.facts.files, *clean.export.quantized.facts.files]


def test_pictures_are_judged_by_a_file_that_is_not_quantized(tmp_path: Path) -> None:
    clean = seeing_chain()
    made = straight.convert_straight(recipe_for(clean.base, ["Q8_0"]), clean.adapter, tmp_path)
    assert [file.file_type for file in made.files] == ["F16"] and made.mmproj is not None
