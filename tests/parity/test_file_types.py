"""A lost or halved adapter is seen in the weights of every file type that can be made, and a whole one in none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.parity_chain import Chain, blend, chain, finished
from toolkit.export.imatrix import CHUNK, collect
from toolkit.export.imatrix_file import IMATRIX_FILE, write_imatrix
from toolkit.export.quantize import quantize
from toolkit.models.adapters import LoraAdapter
from toolkit.parity.checks.weights import Expected, weights_check
from toolkit.parity.comparison import compare_weights
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.limits import largest_rest
from toolkit.parity.tuning import Tuning
from toolkit.recipe.schema import NEED_IMATRIX, QUANTIZED_FILE_TYPES, Export

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


def matrix_of(gguf: Path, out: Path) -> Path:
    sequences = [list(range(start, start + 40)) for start in (100, 700)]
    write_imatrix(collect(gguf, sequences), out / IMATRIX_FILE, "tokens", len(sequences), CHUNK)
    return out / IMATRIX_FILE


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "pass"), (0.0, "fail"), (0.5, "fail")], ids=["whole", "left out", "halved"]
)
def test_how_much_of_the_adapter_a_file_holds(clean: Chain, tmp_path: Path, factor: float, verdict: str) -> None:
    (source,) = clean.export.gguf.facts.files
    path = tmp_path / source.name
    shutil.copy(clean.export.gguf.folder / source.name, path)
    blend(path, clean.without_adapter, factor)
    tuning = Tuning(clean.adapter, "as trained")
    exports = {}
    for file_types, imatrix in (
        ([file_type for file_type in QUANTIZED_FILE_TYPES if file_type not in NEED_IMATRIX], None),
        (NEED_IMATRIX, matrix_of(path, tmp_path)),
    ):
        wanted = Export(file_types=["F16", *file_types], serve="F16", imatrix=imatrix is not None)
        chosen = clean.recipe.model_copy(update={"export": wanted})
        for file in quantize(chosen, finished(tmp_path, clean.export.gguf.facts), tmp_path, imatrix).files:
            exports[file.file_type] = GGUFWeights(tmp_path / file.name, tuning.layout, imatrix)
    assert exports.keys() == set(QUANTIZED_FILE_TYPES)
    expected = Expected.of(LoraAdapter(clean.adapter.folder))
    for file_type, compared in compare_weights(tuning, exports, largest_rest).items():
        check = weights_check(compared, expected)
        assert check.verdict == verdict, f"{file_type}: {check.message}"
        assert check.measures[0].name == "strength in the weights"
        assert check.measures[0].value == pytest.approx(factor, abs=0.02), file_type
