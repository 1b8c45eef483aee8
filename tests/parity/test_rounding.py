"""Rows are rounded as llama.cpp rounds them, byte for byte."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.llama_quantizer import quantize_with_llama_cpp
from toolkit.export.ggml import needs_importance, stored, widened
from toolkit.models.gguf_file import read_gguf
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.rounding import rounded

ROWS = torch.randn(64, 256, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("F32", 0), ("F16", 2.2e-4), ("BF16", 1.7e-3), ("Q8_0", 6e-3), ("Q6_K", 0.02), ("Q5_K", 0.04), ("Q5_1", 0.04),
        ("Q5_0", 0.05), ("Q4_K", 0.08), ("Q4_1", 0.08), ("Q4_0", 0.10), ("IQ4_NL", 0.09), ("IQ4_XS", 0.09),
        ("Q3_K", 0.18), ("Q2_K", 0.33),
    ],
)  # fmt: skip
def test_the_error_of_a_rounding(kind: str, error: float) -> None:
    found = rounded(ROWS, kind)
    share = ((found - ROWS).norm() / ROWS.norm()).item()
    assert error / 3 <= share <= error, share
    assert torch.equal(rounded(ROWS, kind), found)


def test_what_cannot_be_rounded_to_stays() -> None:
    assert [needs_importance(kind) for kind in ("IQ2_XS", "IQ1_S", "IQ4_XS", "BF16")] == [True, True, False, False]
    assert torch.equal(rounded(ROWS, "IQ2_XS"), ROWS)
    assert torch.equal(rounded(ROWS[:, :100], "Q4_K"), ROWS[:, :100])  # no whole blocks
    assert torch.equal(rounded(ROWS[0], "Q8_0"), ROWS[0])


def test_a_16_bit_file_in_between_is_rounded_too() -> None:
    assert torch.equal(rounded(ROWS, "Q4_K", "F16"), rounded(ROWS.half().float(), "Q4_K"))
    assert not torch.equal(rounded(ROWS, "Q8_0", "BF16"), rounded(ROWS, "Q8_0"))
    assert torch.equal(rounded(ROWS, "F16", "BF16"), ROWS.half().float())


def test_bytes_are_those_of_llama_cpps_own_quantizer(small_gguf: Path, tmp_path: Path) -> None:
    # The packaged base is quantized already, so one of its tensors is written anew as F16.
    source = tmp_path / "source.gguf"
    reader = gguf.GGUFReader(small_gguf)
    writer = gguf.GGUFWriter(source, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kinds = field.types
            writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        values = widened(np.array(tensor.data), tensor.tensor_type.name)
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantize_with_llama_cpp(source, tmp_path / "made.gguf", "Q5_1")
    before, after = GGUFWeights(source), GGUFWeights(tmp_path / "made.gguf")
    compared = 0
    for tensor in read_gguf(tmp_path / "made.gguf").tensors:
        if tensor.type == "Q5_1" and tensor.name.startswith("blk.0"):
            rows = before.values(next(t for t in before.header.tensors if t.name == tensor.name))
            assert np.array_equal(after.raw(tensor), stored(rows, "Q5_1")), tensor.name
            compared += 1
    assert compared >= 5
