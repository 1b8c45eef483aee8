"""A lost or halved adapter is seen in the weights of every file type that can be made, and a whole one in none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.parity_chain import Chain, blend, chain, finished, recipe
from toolkit.export.quantize import quantize
from toolkit.models.adapters import LoraAdapter
from toolkit.parity.checks.weights import Expected, weights_check
from toolkit.parity.comparison import compare_weights
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.limits import largest_rest
from toolkit.parity.tuning import Tuning
from toolkit.recipe.schema import QUANTIZED_FILE_TYPES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "pass"), (0.0, "fail"), (0.5, "fail")], ids=["whole", "left out", "halved"]
)
def test_how_much_of_the_adapter_a_file_holds(clean: Chain, tmp_path: Path, factor: float, verdict: str) -> None:
    (source,) = clean.export.gguf.facts.files
    path = tmp_path / source.name
    shutil.copy(clean.export.gguf.folder / source.name, path)
    blend(path, clean.without_adapter, factor)
    chosen = recipe(["F16", *QUANTIZED_FILE_TYPES], "Q8_0", Path(clean.recipe.base))
    made = quantize(chosen, finished(tmp_path, clean.export.gguf.facts), tmp_path)
    tuning = Tuning(clean.adapter, "as trained")
    exports = {file.file_type: GGUFWeights(tmp_path / file.name, tuning.layout) for file in made.files}
    assert tuple(exports) == QUANTIZED_FILE_TYPES
    expected = Expected.of(LoraAdapter(clean.adapter.folder))
    for file_type, compared in compare_weights(tuning, exports, largest_rest).items():
        check = weights_check(compared, expected)
        assert check.verdict == verdict, f"{file_type}: {check.message}"
        assert check.measures[0].name == "strength in the weights"
        assert check.measures[0].value == pytest.approx(factor, abs=0.02), file_type
