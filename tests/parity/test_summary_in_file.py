"""The summary inside a certified file: it says what was found, of this very file and of no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.parity_chain import Chain, blend, chain, damaged
from toolkit.models.gguf_file import read_gguf
from toolkit.models.gguf_metadata import copy_with_texts
from toolkit.parity.candidate import Candidate
from toolkit.parity.summary_in_file import KEYS, read_summary
from toolkit.parity.verify import verify
from toolkit.run.artifacts import file_sha256


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


@pytest.fixture(scope="module")
def verified(clean: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("certified") / "verify"
    out.mkdir()
    verify(
        clean.recipe, clean.adapter, clean.golden, clean.export.model, clean.export.gguf, clean.export.quantized, out
    )
    return out


def certificate_in(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "certificate.json").read_text(encoding="utf-8")))


def test_the_certified_file_is_the_judged_one_and_its_summary(clean: Chain, verified: Path) -> None:
    judged = clean.export.quantized.folder / clean.export.quantized.facts.files[0].name
    certified = verified / judged.name
    certificate = certificate_in(verified)
    assert certificate["certified"] == {
        "file": f"verify/{judged.name}", "sha256": file_sha256(certified), "bytes": certified.stat().st_size,
    }  # fmt: skip
    before, after = read_gguf(judged), read_gguf(certified)
    assert {k: v for k, v in after.metadata.items() if k not in KEYS} == before.metadata
    assert after.tensors == before.tensors
    assert judged.read_bytes()[before.data_begin :] == certified.read_bytes()[after.data_begin :]
    assert read_summary(judged) is None
    summary = read_summary(certified)
    assert summary is not None
    assert (summary.verdict, summary.fits) == ("pass", True)
    assert after.metadata["tune2ollama.certificate.sha256"] == clean.export.quantized.facts.files[0].sha256
    for told in (
        "the export is what was trained",
        "strength in the weights 1",
        "mean KL",
        "(limit 0.015)",
        "12 goldens",
    ):
        assert told in summary.found, summary.found
    with Candidate(certified, vocab_only=True) as model:
        assert model.metadata("tune2ollama.certificate.verdict") == "pass"


def test_a_summary_does_not_fit_another_file(clean: Chain, verified: Path, tmp_path: Path) -> None:
    (certified,) = verified.glob("*.gguf")
    told = {key: read_gguf(certified).metadata[key] for key in KEYS}
    forged = read_summary(copy_with_texts(clean.without_adapter, tmp_path / "forged.gguf", told))
    assert forged is not None and (forged.verdict, forged.fits) == ("pass", False)
    touched = tmp_path / "touched.gguf"
    shutil.copy(certified, touched)
    with touched.open("r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    changed = read_summary(touched)
    assert changed is not None and not changed.fits


def test_a_file_that_fails_gets_none(clean: Chain, tmp_path: Path) -> None:
    broken = damaged(clean, lambda path: blend(path, clean.without_adapter, 0.0), tmp_path / "x")
    out = tmp_path / "verify"
    out.mkdir()
    facts = verify(clean.recipe, clean.adapter, clean.golden, broken.model, broken.gguf, broken.quantized, out)
    assert facts.verdict == "fail"
    assert certificate_in(out)["certified"] is None
    assert list(out.glob("*.gguf")) == []
