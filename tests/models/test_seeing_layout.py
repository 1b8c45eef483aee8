"""The file that sees is told as the language model's is, by asking the converter: every key and tensor, whatever the family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.faults.seeing_chain import recipe_for
from tests.seeing_models import FAMILIES, seeing_model
from toolkit.export.convert import link_view, run_converter
from toolkit.models.layout import layout_of
from toolkit.models.weights import TrainedWeights
from toolkit.parity.exported import FolderWeights, GGUFWeights
from toolkit.run.artifacts import write_json


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_and_key_of_what_sees_is_the_files(family: str, tmp_path: Path) -> None:
    base = seeing_model(tmp_path / "base", family)
    source, weights = FolderWeights(base), TrainedWeights(base, "float32", None)
    entries = [weights.entry(name) for name in weights.names()]
    link_view(base, tmp_path / "view")
    write_json(tmp_path / "metadata.json", {"general.name": recipe_for(base).name})
    told = []
    for projector in (False, True):
        file = tmp_path / f"{projector}.gguf"
        run_converter(tmp_path / "view", file, "F32", tmp_path / "metadata.json", projector)
        layout = layout_of(base, entries, weights.tied_head, projector)
        export = GGUFWeights(file, layout)
        assert layout.unknown == {} and export.others(layout.tensors) == []
        for name in layout.tensors:
            wanted, found = layout.make(name, source.load), export.load(name)
            if export.type(name) == "F16":  # Gemma 3's projection, whatever is asked for
                wanted = wanted.half().float()
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0, msg=name)
        metadata = export.header.metadata
        differ = {k for k, v in layout.metadata.items() if not k.startswith("general.") and metadata.get(k) != v}
        assert {key for key in differ if not np.allclose(metadata[key], layout.metadata[key])} == set()
        told.append({name for tensor in layout.tensors for name in layout.sources(tensor)})
    language, seeing = told
    assert language and seeing and not language & seeing
    # Nothing is lost between the two files.
    assert language | seeing == set(weights.names())
