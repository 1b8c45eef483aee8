"""What was changed for a whole family of models is given back behind each test, which compares with the family's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from toolkit.models import rotations


@pytest.fixture(autouse=True)
def own_rotations() -> Iterator[None]:
    yield
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models."):
            rotation = vars(module).get(rotations.NAME)
            if getattr(rotation, "func", None) is rotations._rotated:
                setattr(module, rotations.NAME, rotation.args[0])
