"""Rows of every type become floats as the format's own package makes them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from toolkit.errors import DataError
from toolkit.export.ggml import widened

ROWS, BLOCKS = 40, 3


def _bytes(kind: str) -> np.ndarray:
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return np.random.default_rng(7).integers(0, 256, (ROWS, BLOCKS * size), dtype=np.uint8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # bytes drawn by chance hold scales that are no numbers
@pytest.mark.parametrize("kind", sorted(gguf.GGMLQuantizationType.__members__))
def test_bytes_of_any_kind(kind: str) -> None:
    """The same floats to the last bit; a type that neither knows is said to be none."""
    raw = _bytes(kind)
    try:
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    except NotImplementedError:
        wanted = None
    try:
        found = widened(raw, kind)
    except DataError as error:
        assert kind in error.message
        assert wanted is None
        return
    assert found.dtype == np.float32
    if wanted is not None:
        np.testing.assert_array_equal(found, wanted)


def test_rows_that_do_not_lie_side_by_side() -> None:
    raw = _bytes("Q8_0")
    np.testing.assert_array_equal(widened(raw[::3], "Q8_0"), widened(raw, "Q8_0")[::3])


def test_half_a_block() -> None:
    with pytest.raises(DataError, match="whole blocks"):
        widened(_bytes("Q4_K")[:, :-1], "Q4_K")
