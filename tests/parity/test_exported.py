"""A file that was cut is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.test_layout import converted
from tests.small_models import tiny_llama
from toolkit.errors import DataError
from toolkit.parity.exported import GGUFWeights


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    export = converted(base, tmp_path / "out", layout=False)
    content = export.path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:-1000])
    with pytest.raises(DataError, match=rf"is truncated: {len(content)} bytes expected, {len(content) - 1000} found"):
        GGUFWeights(tmp_path / "cut.gguf")
