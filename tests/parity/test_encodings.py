"""What a projector makes of pictures goes from verify to those that come after it, and to nobody else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import mtmd_cpp

from tests.faults.seeing_chain import SeeingChain, seeing_chain
from toolkit.models.pictures import PictureRules
from toolkit.parity import encodings
from toolkit.parity.candidate import Candidate
from toolkit.parity.encodings import Encodings, Limits
from toolkit.parity.eyes import Eyes
from toolkit.parity.verify import verify
from toolkit.run.artifacts import read_jsonl

LIMITS = (8, 64)


def file(folder: Path, content: bytes = b"a projector") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mmproj.gguf"
    path.write_bytes(content)
    return path


def saved(folder: Path, limits: Limits = LIMITS) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    made = Encodings()
    made.put("picture-0", values)
    made.save(mmproj := file(folder), limits)
    return mmproj, values


def test_what_is_saved_is_found_to_the_last_bit(tmp_path: Path) -> None:
    mmproj, values = saved(tmp_path)
    found = Encodings.beside(mmproj, LIMITS)
    assert found.get("picture-1") is None
    again = found.get("picture-0")
    assert again is not None and again.dtype == np.float32 and np.array_equal(again, values)
    assert found.get("picture-0") is again  # read once


@pytest.mark.parametrize("damage", ["other file", "other limits", "no json", "not an object", "nothing"])
def test_of_another_file_or_other_limits_nothing_is_taken(damage: str, tmp_path: Path) -> None:
    mmproj, _ = saved(tmp_path)
    told = tmp_path / "encoded-pictures" / "of.json"
    if damage == "other file":
        file(tmp_path, b"another one")
    elif damage in ("no json", "not an object"):
        told.write_text("{" if damage == "no json" else "[]", encoding="utf-8")
    elif damage == "nothing":
        told.unlink()
    assert Encodings.beside(mmproj, (8, None) if damage == "other limits" else LIMITS).get("picture-0") is None


def test_memory_holds_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_BYTES_AT_MOST", 200)
    made = Encodings()
    for number in range(4):
        made.put(f"{number}-0", np.full((5, 5), number, dtype=np.float32))  # 100 bytes
    assert [made.get(f"{number}-0") is not None for number in range(4)] == [False, False, True, True]
    made.put("large", np.zeros(1000, dtype=np.float32))
    assert len(made) == 1 and made.get("large") is not None


@pytest.mark.slow
def test_after_the_certificate_no_golden_picture_is_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean: SeeingChain = seeing_chain()
    made, rules = clean.export, clean.adapter.facts.pictures
    assert isinstance(rules, PictureRules)
    monkeypatch.setattr("toolkit.parity.verify.verdict_of", lambda _: ("pass", "", []))  # random answers never end
    verify(clean.recipe, clean.adapter, clean.golden, made.model, made.gguf, made.quantized, tmp_path)
    mmproj = tmp_path / clean.mmproj.name
    known = Encodings.beside(mmproj, (rules.min_tokens, rules.max_tokens))
    eyes = Eyes(mmproj, rules, "<|vision_start|><|image_pad|><|vision_end|>", clean.golden.folder, known)
    anew = Eyes(mmproj, rules, eyes.block, eyes.folder)
    language = clean.export.gguf.folder / clean.export.gguf.facts.files[0].name
    rows = list(read_jsonl(clean.golden.folder / "golden.jsonl"))

    def encoded(eyes: Eyes) -> list[np.ndarray]:
        with Candidate(language) as candidate, eyes.sight(candidate) as sight:
            found = []
            for row in rows:
                with eyes.read(sight, row) as prompt:
                    found += sight.encoded(prompt)
            return found

    wanted = encoded(anew)
    monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", None)
    found = encoded(eyes)
    assert len(found) == len(rows)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
