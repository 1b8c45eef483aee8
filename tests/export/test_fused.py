"""The export in one pass writes the very files that merge, converter and quantizer make one after another."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.children import child_environment
from tests.disk import ran_on_a_full_disk
from tests.export.test_merge import trained_by_chance
from tests.llama_quantizer import quantize_with_llama_cpp
from tests.models.test_layout import other_family
from tests.parity_chain import finished
from tests.small_models import adapter_artifact, tiny_adapter, tiny_gemma2, tiny_llama, tiny_qwen2
from toolkit.errors import DataError
from toolkit.export import fused, ggml
from toolkit.export.convert import convert
from toolkit.export.imatrix import CHUNK, collect
from toolkit.export.imatrix_file import write_imatrix
from toolkit.export.merge import merge
from toolkit.export.quantize import quantize
from toolkit.export.straight import Written, convert_straight, export, quantize_straight
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, file_sha256
from toolkit.run.facts import AdapterFacts

Dtype = Literal["float32", "bfloat16", "float16"]


def recipe(*file_types: str, **export: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "tiny-7b-v2",
        "base": "tiny",
        "golden": {"from_test": 1},
        "ollama": {"model": "tiny"},
    }
    tree |= {
        "data": {"path": "rows", "language": "en"},
        "export": {"file_types": [*file_types], "serve": file_types[0], **export},
    }
    return Recipe.model_validate(tree)


def in_one_pass(adapter: Artifact[AdapterFacts], out: Path, *file_types: str) -> Written:
    out.mkdir()
    made = export(recipe(*file_types), adapter, file_types, out)
    assert made is not None
    assert sorted(path.name for path in out.iterdir()) == sorted(file.name for file in made.facts.files)
    return made


def assert_same_files(adapter: Artifact[AdapterFacts], folder: Path, *file_types: str) -> Written:
    """Every file of the export in one pass is that of the chain, byte for byte."""
    made = in_one_pass(adapter, folder / "ours", *file_types)
    chosen = recipe(*file_types)
    for name in ("merge", "convert", "quantize", "llama.cpp"):
        (folder / name).mkdir()
    model = finished(folder / "merge", merge(chosen, adapter, folder / "merge"))
    converted = finished(folder / "convert", convert(chosen, adapter, model, folder / "convert"))
    quantized = quantize(chosen, converted, folder / "quantize")
    assert made.model == model.facts
    files = {file.name: file for file in (*converted.facts.files, *quantized.files)}
    assert [files[file.name] for file in made.facts.files] == made.facts.files
    assert made.facts.template_protected == converted.facts.template_protected
    (source,) = converted.facts.files
    for file in made.facts.files:
        theirs = folder / "convert" / file.name
        if file != source:
            theirs = folder / "llama.cpp" / file.name
            quantize_with_llama_cpp(folder / "convert" / source.name, theirs, file.file_type)
            assert (folder / "quantize" / file.name).read_bytes() == theirs.read_bytes(), file.name
        assert (folder / "ours" / file.name).read_bytes() == theirs.read_bytes(), file.name
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact[AdapterFacts]:
    return adapter_artifact(tiny_adapter(base, tmp_path_factory.mktemp("adapter")), base)


def test_several_types_at_once(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    assert assert_same_files(adapter, tmp_path, "F16", "Q8_0", "Q4_K_M", "IQ4_XS").without_torch


@pytest.mark.slow
def test_a_base_in_16_bits_in_several_shards(tmp_path: Path) -> None:
    whole = tiny_qwen2(tmp_path / "whole", layers=1, dtype=torch.bfloat16)
    base = Path(shutil.copytree(whole, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors")))
    AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16).save_pretrained(base, max_shard_size="1MB")
    adapter = adapter_artifact(tiny_adapter(base, tmp_path / "adapter", use_rslora=True), base, base_dtype="bfloat16")
    made = assert_same_files(adapter, tmp_path, "F16", "Q4_K_M")
    assert (made.without_torch, made.model.dtype) == (True, "bfloat16")


@pytest.mark.slow
def test_a_base_in_nf4(base: Path, tmp_path: Path) -> None:
    adapter = adapter_artifact(tiny_adapter(base, tmp_path / "adapter", "qlora"), base, "qlora", "bfloat16")
    made = assert_same_files(adapter, tmp_path, "F32", "Q6_K")
    assert (made.without_torch, made.model.merged_onto) == (True, "nf4")


@pytest.mark.slow
def test_what_only_peft_can_merge(base: Path, tmp_path: Path) -> None:
    """A trained head parts two tied matrices, DoRA needs whole columns; new tokens resize the vocabulary."""
    config = LoraConfig(
        r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], use_dora=True
    )
    adapter = adapter_artifact(trained_by_chance(base, config, tmp_path / "adapter"), base)
    assert not assert_same_files(adapter, tmp_path, "F16", "Q4_K_M").without_torch


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe"])
def test_values_that_the_converter_changes_and_experts(family: str, tmp_path: Path) -> None:
    base = (
        tiny_gemma2(tmp_path / "base", dtype=torch.float16)
        if family == "gemma2"
        else other_family(tmp_path / "base", family)
    )
    config = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    dtype: Dtype = "float16" if family == "gemma2" else "float32"
    adapter = adapter_artifact(trained_by_chance(base, config, tmp_path / "adapter"), base, base_dtype=dtype)
    assert_same_files(adapter, tmp_path, "F32", "Q4_K_M")


def stages(adapter: Artifact[AdapterFacts], folder: Path, chosen: Recipe, imatrix: Path | None = None) -> list[Path]:
    """The files that a run's two stages leave, in a folder each."""
    for name in ("convert", "quantize"):
        (folder / name).mkdir(parents=True)
    converted = finished(folder / "convert", convert_straight(chosen, adapter, folder / "convert"))
    made = quantize_straight(chosen, adapter, converted, folder / "quantize", imatrix=imatrix)
    told = [
        *(folder / "convert" / f.name for f in converted.facts.files),
        *(folder / "quantize" / f.name for f in made.files),
    ]
    left = {path for name in ("convert", "quantize") for path in (folder / name).iterdir()}
    assert left - {*told} == {folder / "convert" / "artifact.json"} & left
    assert [file.sha256 for file in made.files] == [file_sha256(folder / "quantize" / file.name) for file in made.files]
    return told


def test_no_16_bit_file_is_made_where_none_is_asked_for(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    with_it = stages(adapter, tmp_path / "with", recipe("F16", "Q8_0", "Q4_K_M"))
    without = stages(adapter, tmp_path / "without", recipe("Q8_0", "Q4_K_M"))
    assert [path.name for path in without] == ["tiny-7b-v2-Q8_0.gguf", "tiny-7b-v2-Q4_K_M.gguf"]
    assert [path.read_bytes() for path in without] == [path.read_bytes() for path in with_it[1:]]
    for path, kind in zip(without, ("Q8_0", "Q4_K_M")):
        quantize_with_llama_cpp(with_it[0], tmp_path / "theirs.gguf", kind)
        assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_nor_for_an_importance_matrix_from_a_file(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    (source,) = stages(adapter, tmp_path / "f16", recipe("F16"))
    matrix = tmp_path / "matrix.gguf"
    write_imatrix(collect(source, [[*range(30)], [*range(200, 260)]]), matrix, "rows", 2, CHUNK)
    chosen = recipe("Q4_K_M", "IQ2_M", imatrix=str(matrix))
    for path, kind in zip(stages(adapter, tmp_path / "x", chosen, matrix), ("Q4_K_M", "IQ2_M")):
        quantize_with_llama_cpp(source, tmp_path / "theirs.gguf", kind, matrix)
        assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), kind
    assert recipe("Q4_K_M", imatrix=True).export.makes_converted  # measured with the file


def test_what_the_converter_has_to_make_leaves_its_file(base: Path, tmp_path: Path) -> None:
    (f16, q8) = stages(adapter_artifact(base, base, "full"), tmp_path / "x", recipe("Q8_0"))
    assert (f16.name, q8.name) == ("tiny-7b-v2-F16.gguf", "tiny-7b-v2-Q8_0.gguf")


WITHOUT_TORCH = """
import sys
from pathlib import Path
from toolkit.export.straight import export
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import AdapterFacts
facts, adapter, recipe, out = sys.argv[1:]
artifact = Artifact(Path(adapter), AdapterFacts.model_validate_json(facts), "", {}, Cost())
export(Recipe.model_validate_json(recipe), artifact, ["Q8_0"], Path(out))
print([name for name in ("torch", "transformers", "peft", "bitsandbytes") if name in sys.modules])
"""


def in_a_process(adapter: Artifact[AdapterFacts], out: Path) -> subprocess.CompletedProcess[str]:
    arguments = [adapter.facts.model_dump_json(), str(adapter.folder), recipe("Q8_0").model_dump_json(), str(out)]
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True, env=child_environment()
    )


def test_nothing_heavy_is_imported(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    in_one_pass(adapter, tmp_path / "ours", "Q8_0")  # what torch and transformers were asked is kept
    (tmp_path / "again").mkdir()
    done = in_a_process(adapter, tmp_path / "again")
    assert done.stdout.strip() == "[]", done.stderr
    (one,), (two,) = (tmp_path / "ours").iterdir(), (tmp_path / "again").iterdir()
    assert one.read_bytes() == two.read_bytes()


# Faults -----------------------------------------------------------------------------------------------------------


def test_values_that_are_no_numbers(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter.folder, tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    tensors[name][3, 2] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj\.lora_B"):
        in_one_pass(replace(adapter, folder=folder), tmp_path / "out", "Q8_0")
    assert list((tmp_path / "out").iterdir()) == []


def test_values_beyond_a_types_largest(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter.folder, tmp_path / "adapter"))
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"] *= 1e6
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"blk\.0\.attn_q\.weight holds values that F16 cannot"):
        in_one_pass(replace(adapter, folder=folder), tmp_path / "out", "Q8_0")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_adapter_of_another_base(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", layers=1, hidden=512)
    with pytest.raises(DataError, match=r"(does not have|has shape)"):
        in_one_pass(adapter_artifact(adapter.folder, other), tmp_path / "out", "Q8_0")
    assert list((tmp_path / "out").iterdir()) == []


def test_disk_full(adapter: Artifact[AdapterFacts], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    facts, chosen = adapter.facts.model_dump_json(), recipe("Q8_0").model_dump_json()
    answer = ran_on_a_full_disk(WITHOUT_TORCH, facts, adapter.folder, chosen, tmp_path / "out", size=5_000_000)
    assert "toolkit.errors.ResourceError: no space to write" in answer.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_killed_at_any_write_no_file_is_incomplete(
    adapter: Artifact[AdapterFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = in_one_pass(adapter, tmp_path / "whole", "Q8_0", "Q4_K_M")
    write, count = fused._write, itertools.count()

    def counted(descriptor: int, data: memoryview, place: int) -> None:
        next(count)
        write(descriptor, data, place)

    monkeypatch.setattr(fused, "_write", counted)
    out = tmp_path / "out"
    in_one_pass(adapter, out, "Q8_0", "Q4_K_M")
    writes = next(count)  # heads and slabs of both files
    for last in {0, 1, 2, *range(3, writes, writes // 4), writes - 1}:
        shutil.rmtree(out)
        killed_at(last, adapter, out, monkeypatch, write)
        assert all(path.name.endswith(".part") for path in out.iterdir()), last
    monkeypatch.setattr(fused, "_write", write)
    assert (again := export(recipe("Q8_0", "Q4_K_M"), adapter, ["Q8_0", "Q4_K_M"], out)) is not None
    assert again.facts == whole.facts
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def killed_at(
    last: int, adapter: Artifact[AdapterFacts], out: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    """Export in a process that dies at this write, half of which reaches the file."""
    count = itertools.count()

    def deadly(descriptor: int, data: memoryview, place: int) -> None:
        if next(count) == last:
            write(descriptor, data[: len(data) // 2], place)
            os.kill(os.getpid(), signal.SIGKILL)
        write(descriptor, data, place)

    monkeypatch.setattr(fused, "_write", deadly)
    child = os.fork()
    if child == 0:
        in_one_pass(adapter, out, "Q8_0", "Q4_K_M")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


# Parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_is_torchs(dtype: torch.dtype) -> None:
    values = torch.randn(300, 64, generator=torch.Generator().manual_seed(4)) * 10.0 ** torch.arange(-30, 34)
    name = str(dtype).removeprefix("torch.")
    assert np.array_equal(ggml.rounded(values.numpy(), name), values.to(dtype).float().numpy())
