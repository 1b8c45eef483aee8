"""NF4 as bitsandbytes makes it, in every bit: a matrix as a whole, and rows of it."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

from toolkit.models import nf4
from toolkit.models.weights import round_to_nf4, unpacked
from toolkit.run.facts import Quantization

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of what is done without a card")


def by_bitsandbytes(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    packed, state = bnb.quantize_4bit(
        weight, blocksize=quantization.blocksize, compress_statistics=quantization.double_quantization, quant_type="nf4"
    )
    return unpacked(packed, state)


def random_weight(*shape: int, dtype: torch.dtype, seed: int = 3) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "blocksize"),
    [((96, 1600), 64), ((576, 1536), 128), ((7, 100), 64), ((33, 1), 64), ((3, 5, 40), 64), ((1, 4095), 4096)],
)
def test_a_matrix(shape: tuple[int, ...], blocksize: int, dtype: torch.dtype, double: bool) -> None:
    weight = random_weight(*shape, dtype=dtype)
    weight.view(-1)[3:70] = 0
    weight.view(-1)[0] = 40.0  # a block of one large value
    quantization = Quantization(double_quantization=double, blocksize=blocksize)
    assert torch.equal(round_to_nf4(weight, quantization), by_bitsandbytes(weight, quantization))


@pytest.mark.parametrize("double", [True, False])
def test_blocks_of_nothing_and_of_halves(double: bool) -> None:
    told = nf4.values_of_nf4()
    weight = torch.zeros(64, 64)
    weight[1] = torch.from_numpy(told.table).repeat(4)
    weight[2] = torch.cat([torch.ones(1), torch.from_numpy(told.bounds).repeat(5)])[:64]
    weight[3] = 1e-39
    quantization = Quantization(double_quantization=double)
    assert torch.equal(round_to_nf4(weight, quantization), by_bitsandbytes(weight, quantization))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_one(dtype: torch.dtype, double: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE2OLLAMA_HOME", str(tmp_path))
    weight = random_weight(96, 1600, dtype=dtype)
    quantization = Quantization(double_quantization=double)
    values = weight.float().numpy()
    told = nf4.ask(["sum"], ["w"], lambda _: nf4.maxima(values, 64), str(dtype), quantization)
    rows = nf4.NF4Rows(told, lambda _: nf4.maxima(values, 64), 64)
    wanted = by_bitsandbytes(weight, quantization).numpy()
    assert np.array_equal(rows.rows("w", values[10:30], slice(10, 30)), wanted[10:30])
    order = np.array([5, 90, 0], np.int32)
    assert np.array_equal(rows.rows("w", values[order], order), wanted[order])
