"""A file that was quantized from a quantized one is told from a right one, though their errors are alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.files import quantize_again
from tests.llama_quantizer import quantize_with_llama_cpp
from tests.models.test_layout import converted
from tests.small_models import adapter_artifact, tiny_phi3
from toolkit.parity.certificate import Check
from toolkit.parity.checks.source import samples_of_converted, samples_of_tuning, source_check
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.tuning import Tuning


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> GGUFWeights:
    folder = tmp_path_factory.mktemp("requantized")
    return converted(tiny_phi3(folder / "base", layers=1), folder / "out")


def measures(check: Check) -> dict[str, float]:
    return {m.name: m.value for m in check.measures}


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"])
def test_a_right_file_is_what_llama_cpp_makes_of_the_source(source: GGUFWeights, kind: str, tmp_path: Path) -> None:
    quantize_with_llama_cpp(source.path, tmp_path / "made.gguf", kind)
    check = source_check(samples_of_converted(GGUFWeights(tmp_path / "made.gguf"), source))
    assert check.verdict == "pass", check.message
    assert "are what llama.cpp makes of the file in 16 or 32 bits, value for value" in check.message
    assert measures(check)["rounding error beside a fresh one"] == pytest.approx(1, abs=1e-9)
    assert measures(check)["tensors equal to a fresh rounding"] >= 5


@pytest.mark.parametrize(
    ("first", "then"), [("Q8_0", "Q4_K_M"), ("Q4_K_M", "Q8_0"), ("Q6_K", "Q5_K_M"), ("Q8_0", "Q6_K")]
)
def test_a_second_rounding_is_found(source: GGUFWeights, first: str, then: str, tmp_path: Path) -> None:
    quantize_with_llama_cpp(source.path, tmp_path / "first.gguf", first)
    quantize_again(tmp_path / "first.gguf", tmp_path / "then.gguf", then)
    check = source_check(samples_of_converted(GGUFWeights(tmp_path / "then.gguf"), source))
    assert check.verdict == "fail"
    assert measures(check)["tensors rounded twice"] >= 1
    # A Q4_K_M file holds some of its tensors as Q6_K.
    sources = {first.removesuffix("_M"), "Q6_K"} if first.endswith("_M") else {first}
    assert any(f"it was quantized from a file that was {kind} already" in check.message for kind in sources), (
        check.message
    )


def test_where_nothing_can_be_rounded_anew_nothing_was_compared() -> None:
    found = source_check([])
    assert found.verdict == "not compared"
    assert found.message == "no tensor is of a type that can be rounded anew without an importance matrix"


def test_without_the_converted_file_the_tuned_weights_tell(source: GGUFWeights, tmp_path: Path) -> None:
    base = source.path.parent.parent / "base"
    tuning = Tuning(adapter_artifact(base, base, "full"), "as trained")
    quantize_with_llama_cpp(source.path, tmp_path / "made.gguf", "Q4_K_M")
    assert source_check(samples_of_tuning(GGUFWeights(tmp_path / "made.gguf", tuning.layout), tuning)).verdict == "pass"
    quantize_with_llama_cpp(source.path, tmp_path / "first.gguf", "Q8_0")
    quantize_again(tmp_path / "first.gguf", tmp_path / "then.gguf", "Q4_K_M")
    check = source_check(samples_of_tuning(GGUFWeights(tmp_path / "then.gguf", tuning.layout), tuning))
    assert check.verdict == "fail"
    assert "it was quantized from a file that was Q8_0 already" in check.message
