"""Quantization: every file type for real, on rows of 256; damaged and already quantized files refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.disk import ran_on_a_full_disk
from tests.export.test_convert import model_artifact, recipe
from tests.small_models import adapter_artifact, tiny_llama
from toolkit.errors import DataError, ResourceError, UsageError
from toolkit.export import quantize as stage
from toolkit.export.convert import convert
from toolkit.export.llama_cpp import captured_log, quantize_file
from toolkit.export.quantize import quantize
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


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Artifact[GGUFFacts]:
    place = tmp_path_factory.mktemp("quantize")
    return gguf_of(tiny_llama(place / "model"), place / "convert")


def test_every_type_in_one_go(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    types = [kind for kind in QUANTIZED_FILE_TYPES if kind not in NEED_IMATRIX]  # for these see test_imatrix.py
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
    assert sizes["Q2_K"] < sizes["Q3_K_M"] < sizes["Q4_K_M"] < sizes["Q5_K_M"] < sizes["Q6_K"] < sizes["Q8_0"]


def test_quantized_model_is_near(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    import llama_cpp
    import numpy as np

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


def test_progress_and_plan(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    source = converted.folder / converted.facts.files[0].name
    seen: list[tuple[int, int]] = []
    planned = quantize_file(source, tmp_path / "x.gguf", "Q4_0", plan=True)
    assert list(tmp_path.iterdir()) == []
    quantize_file(source, tmp_path / "x.gguf", "Q4_0", lambda done, total: seen.append((done, total)))
    assert seen == [(i, 20) for i in range(1, 21)]
    header = read_gguf(tmp_path / "x.gguf")
    assert abs(planned.bytes - sum(t.bytes for t in header.tensors)) < 2**14


def test_quiet(converted: Artifact[GGUFFacts], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = converted.folder / converted.facts.files[0].name
    with captured_log() as problems:
        assert problems == []
    quantize_file(source, tmp_path / "x.gguf", "Q8_0")
    assert capfd.readouterr() == ("", "")


def test_already_quantized(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    source = converted.folder / converted.facts.files[0].name
    quantize_file(source, tmp_path / "once.gguf", "Q8_0")
    with pytest.raises(DataError, match=r"quantized already \(Q8_0\)"):
        quantize_file(tmp_path / "once.gguf", tmp_path / "twice.gguf", "Q4_0")
    assert not (tmp_path / "twice.gguf").exists()


def test_truncated(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    source = converted.folder / converted.facts.files[0].name
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(DataError) as fault:
        quantize_file(cut, tmp_path / "x.gguf", "Q8_0")
    assert f"{cut} is truncated: {source.stat().st_size} bytes expected" in fault.value.message
    assert f"{source.stat().st_size - 1000} found" in fault.value.message


def test_unknown_type(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    source = converted.folder / converted.facts.files[0].name
    with pytest.raises(UsageError, match=r"did you mean Q5_K_M\?"):
        quantize_file(source, tmp_path / "x.gguf", "q5_k_m_")


def test_not_enough_disk(converted: Artifact[GGUFFacts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "free_disk_bytes", lambda _: 10_000_000)
    with pytest.raises(ResourceError, match=r"need 0\.0 GB, .* has 0\.0 GB free"):
        quantize(recipe(export={"file_types": ["F16", "Q8_0"], "serve": "Q8_0"}), converted, tmp_path)
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import sys
from pathlib import Path
from toolkit.export.llama_cpp import quantize_file
quantize_file(Path(sys.argv[1]), Path(sys.argv[2]), "Q8_0")
"""


def test_disk_full(converted: Artifact[GGUFFacts], tmp_path: Path) -> None:
    source = converted.folder / converted.facts.files[0].name
    answer = ran_on_a_full_disk(FULL_DISK, source, tmp_path / "x.gguf", size=5_000_000)
    assert "toolkit.errors.ResourceError: no space to write" in answer.stderr
    assert list(tmp_path.iterdir()) == []
