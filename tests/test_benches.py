"""Every benchmark can be started: nothing that it imports has moved away."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(__file__).parent / "bench").glob("*.py")))
def test_it_imports(name: str) -> None:
    importlib.import_module(f"tests.bench.{name}")
