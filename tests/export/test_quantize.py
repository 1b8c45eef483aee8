"""Quantization: every file type for real, on rows of 256; damaged and already quantized files refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.disk import ran_on_a_full_disk
from tests.export.test_convert import model_artifact, recipe
from tests.llama_quantizer import quantize_with_llama_cpp
from tests.small_models import adapter_artifact, tiny_llama
from toolkit.errors import DataError, ResourceError, UsageError
from toolkit.export import planned
from toolkit.export.convert import convert
from toolkit.export.pieces import pieces_of_file
from toolkit.export.quantize import quantize, quantize_file
from toolkit.models.gguf_file import read_gguf
from toolkit.recipe.schema import NEED_IMATRIX, QUANTIZED_FILE_TYPES
from toolkit.run.artifacts import Artifact, Cost, file_sha256
from toolkit.run.facts import GGUFFacts

# The type that most of a Llama's matrices get.
MAIN_TYPE = {
    "Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q5_1": "Q5_1", "Q5_0": "Q5_0", "Q4_K_M": "Q4_K",
    "Q4_K_S": "Q4_K", "Q4_1": "Q4_1", "Q4_0": "Q4_0", "IQ4_XS": "IQ4_XS", "IQ4_NL": "IQ4_NL", "Q3_K_L": "Q3_K",
    "Q3_K_M": "Q3_K", "Q3_K_S": "Q3_K", "Q2_K": "Q2_K",
}  # fmt: skip


def gguf_of(folder: Path, out: Path) -> Artifact[GGUFFacts]:
    out.mkdir()
    facts = convert(recipe("F16"), adapter_artifact(folder, folder, "full"), model_artifact(folder), out)
    return Artifact(out, facts, "", {}, Cost())


def file_of(gguf: Artifact[GGUFFacts]) -> Path:
    return gguf.folder / gguf.facts.files[0].name


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Artifact[GGUFFacts]:
    place = tmp_path_factory.mktemp("quantize")
    return gguf_of(tiny_llama(place / "model"), place / "convert")


def test_every_type_in_one_go(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    types = [kind for kind in QUANTIZED_FILE_TYPES if kind not in NEED_IMATRIX]  # for these see test_imatrix.py
    source = file_of(converted)
    wanted = recipe(export={"file_types": ["F16", *types], "serve": "Q8_0"})
    facts = quantize(wanted, converted, tmp_path)
    assert [file.file_type for file in facts.files] == types
    assert (facts.architecture, facts.template_protected) == ("llama", True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f.name for f in facts.files)
    sizes = {}
    for file in facts.files:
        path = tmp_path / file.name
        header = read_gguf(path)
        kinds = [t.type for t in header.tensors if len(t.shape) == 2 and t.name.startswith("blk.")]
        assert max(set(kinds), key=kinds.count) == MAIN_TYPE[file.file_type], (file.file_type, kinds)
        assert file.fallback_tensors == 0, file.file_type
        assert file.tensors == 20
        assert (file.bytes, file.sha256) == (path.stat().st_size, file_sha256(path))
        assert header.metadata["general.name"] == "tiny-tale"
        assert header.metadata["general.description"].startswith("Fine-tuned: full fine-tuning. base base sha256 ")
        sizes[file.file_type] = file.bytes
        quantize_with_llama_cpp(source, tmp_path / "theirs.gguf", file.file_type)
        assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), file.file_type
    assert sizes["Q2_K"] < sizes["Q3_K_M"] < sizes["Q4_K_M"] < sizes["Q5_K_M"] < sizes["Q6_K"] < sizes["Q8_0"]


def test_quantized_model_is_near(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    import llama_cpp

    quantize(recipe(export={"file_types": ["F16", "Q8_0"], "serve": "Q8_0"}), converted, tmp_path)
    logits = []
    for path in (converted.folder / converted.facts.files[0].name, tmp_path / "tiny-tale-Q8_0.gguf"):
        model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1)
        model.eval(list(range(100, 130)))
        logits.append(np.array(model.scores[:30]))
        model.close()
    difference = np.abs(logits[0] - logits[1])
    assert 0 < difference.mean() < 0.1 * logits[0].std()


def test_fallbacks_are_counted(tmp_path: Path) -> None:
    narrow = gguf_of(tiny_llama(tmp_path / "model", hidden=192, layers=1), tmp_path / "convert")
    (tmp_path / "out").mkdir()
    facts = quantize(recipe(export={"file_types": ["F16", "Q4_K_M"], "serve": "F16"}), narrow, tmp_path / "out")
    # Rows of 192 in q, k, v, o, gate and up, of 384 in down. The embedding's are 192 too; llama.cpp gives an output matrix
    # with such rows Q8_0 without calling it a fallback.
    assert facts.files[0].fallback_tensors == 7
    assert facts.files[0].tensors == 11


def test_the_plan_knows_every_byte(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    files = quantize_file(file_of(converted), {kind: tmp_path / kind for kind in ("Q4_0", "Q3_K_M")})
    assert {path.name: plan.head.size for path, plan in files.items()} == {
        path.name: path.stat().st_size for path in tmp_path.iterdir()
    }


def test_quiet(converted: Artifact[GGUFFacts], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quantize_file(file_of(converted), {"Q8_0": tmp_path / "x.gguf"})
    assert capfd.readouterr() == ("", "")


def test_already_quantized(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    quantize_file(file_of(converted), {"Q8_0": tmp_path / "once.gguf"})
    with pytest.raises(DataError, match=r"quantized already \(Q8_0\)"):
        quantize_file(tmp_path / "once.gguf", {"Q4_0": tmp_path / "twice.gguf"})
    assert [path.name for path in tmp_path.iterdir()] == ["once.gguf"]


def test_truncated(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    source = file_of(converted)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(DataError) as fault:
        quantize_file(cut, {"Q8_0": tmp_path / "x.gguf"})
    assert f"{cut} is truncated: {source.stat().st_size} bytes expected" in fault.value.message
    assert f"{source.stat().st_size - 1000} found" in fault.value.message


def test_cut_while_it_is_read(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    shutil.copy(file_of(converted), path)
    header = read_gguf(path)
    os.truncate(path, header.data_begin + 100)
    with (
        pieces_of_file(path, header) as pieces,
        pytest.raises(DataError, match=f"ends at byte {header.data_begin + 100}"),
    ):
        for piece in pieces:
            piece.make()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "holds values that F32 cannot: NaN"),
        (1e9, "holds values that Q[48]_0 cannot: .* beyond its largest"),
    ],
)
def test_values_that_are_no_numbers_or_too_large(tmp_path: Path, value: float, said: str) -> None:
    model = tiny_llama(tmp_path / "model", layers=1)
    (tmp_path / "convert").mkdir()
    facts = convert(recipe("F32"), adapter_artifact(model, model, "full"), model_artifact(model), tmp_path / "convert")
    path = tmp_path / "convert" / facts.files[0].name
    header = read_gguf(path)
    tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_up.weight")
    data = np.memmap(path, np.float32, "r+", header.data_begin + tensor.offset, (tensor.bytes // 4,))
    data[777] = value
    data.flush()
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=rf"blk\.0\.ffn_up\.weight {said}"):
        quantize_file(path, {"Q4_0": tmp_path / "out" / "a.gguf", "Q8_0": tmp_path / "out" / "b.gguf"})
    assert list((tmp_path / "out").iterdir()) == []


def test_unknown_type(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean Q5_K_M\?"):
        quantize_file(file_of(converted), {"q5_k_m_": tmp_path / "x.gguf"})


def test_not_enough_disk(converted: Artifact[GGUFFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "free_disk_bytes", lambda _: 10_000_000)
    with pytest.raises(ResourceError, match=r"need 0\.0 GB, .* has 0\.0 GB free"):
        quantize(recipe(export={"file_types": ["F16", "Q8_0"], "serve": "Q8_0"}), converted, tmp_path)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import sys
from pathlib import Path
from toolkit.export.quantize import quantize_file
quantize_file(Path(sys.argv[1]), {"Q8_0": Path(sys.argv[2])})
"""


def test_disk_full(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    answer = ran_on_a_full_disk(FULL_DISK, file_of(converted), tmp_path / "x.gguf", size=5_000_000)
    assert "toolkit.errors.ResourceError: no space to write" in answer.stderr
    assert list(tmp_path.iterdir()) == []
