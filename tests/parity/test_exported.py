"""Every tensor of a converted file is the one that it was made from, whatever llama.cpp did to it on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity_chain import finished, recipe
from tests.small_models import adapter_artifact, tiny_gemma2, tiny_llama, tiny_phi3, tiny_qwen2
from toolkit.errors import DataError
from toolkit.export.convert import convert
from toolkit.models.safetensors_file import model_files
from toolkit.models.weights import TrainedWeights
from toolkit.parity.exported import FolderWeights, GGUFWeights, unpermuted
from toolkit.run.facts import ModelFacts

FAMILIES: dict[str, Any] = {"llama": tiny_llama, "qwen2": tiny_qwen2, "gemma2": tiny_gemma2, "phi3": tiny_phi3}


def converted(base: Path, out: Path) -> GGUFWeights:
    """A model folder as an F32 GGUF file."""
    out.mkdir(parents=True)
    names = model_files(base)
    parameters = sum(torch.Size(FolderWeights(base).shape(name)).numel() for name in names)
    facts = ModelFacts(
        merged_onto="as trained", dtype="float32", tensors=len(names), merged_tensors=0, parameters=parameters
    )
    chosen = recipe(["F32"], "F32", base)
    made = convert(chosen, adapter_artifact(base, base, "full"), finished(base, facts), out)
    return GGUFWeights(out / made.files[0].name)


@pytest.mark.parametrize(("family", "tensors"), [("llama", 20), ("qwen2", 26), ("gemma2", 24), ("phi3", 15)])
def test_every_tensor_is_the_one_it_was_made_from(family: str, tensors: int, tmp_path: Path) -> None:
    base = FAMILIES[family](tmp_path / "base")
    export, source = converted(base, tmp_path / "out"), FolderWeights(base)
    assert export.architecture == family and export.known
    names = TrainedWeights(base, "float32", None).names()
    assert len(names) == tensors
    for name in names:
        assert export.has(name), name
        assert export.shape(name) == source.shape(name), name
        assert export.type(name) == "F32", name
        wanted, found = source.load(name), export.load(name)
        # Gemma's norms are stored as 1 + weight: what is taken off again has lost its last bits.
        room = 1e-7 if family == "gemma2" and name.endswith("norm.weight") else 0
        torch.testing.assert_close(found, wanted, rtol=0, atol=room, msg=name)
        if wanted.dim() == 2:
            rows = torch.tensor([0, 7, wanted.shape[0] - 1])
            assert torch.equal(export.load(name, rows), wanted[rows]), name
    assert not export.has("model.layers.2.self_attn.q_proj.weight")


def test_the_order_of_query_rows_is_brought_back() -> None:
    # Two heads of four rows: transformers rotates rows 0 and 2 together, llama.cpp keeps such pairs side by side.
    stored = torch.tensor([0, 2, 1, 3, 4, 6, 5, 7])
    assert unpermuted(stored, 2).tolist() == list(range(8))


def test_heads_are_those_of_the_layer_and_a_key_that_is_left_out_has_its_default(tmp_path: Path) -> None:
    export = converted(tiny_llama(tmp_path / "base"), tmp_path / "out")
    name = "model.layers.1.self_attn.k_proj.weight"
    wanted, metadata = export.load(name), export.header.metadata
    metadata["llama.attention.head_count_kv"] = [4, 2]
    assert torch.equal(export.load(name), wanted)
    del metadata["llama.attention.head_count_kv"]
    metadata["llama.attention.head_count"] = 2
    assert torch.equal(export.load(name), wanted)
    for value, said in (
        (None, "0 heads do not fit"),
        (7, "7 heads do not fit"),
        ("4", "head_count is 4, and a whole number"),
    ):
        metadata["llama.attention.head_count"] = value
        with pytest.raises(DataError, match=said):
            export.load(name)


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    export = converted(base, tmp_path / "out")
    content = export.path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:-1000])
    with pytest.raises(DataError, match=rf"is truncated: {len(content)} bytes expected, {len(content) - 1000} found"):
        GGUFWeights(tmp_path / "cut.gguf")
