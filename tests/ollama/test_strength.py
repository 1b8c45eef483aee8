"""The adapter's strength through a server's top twenty: whole, halved and lost exports of a small trained chain."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Server
from tests.parity_chain import blend, chain
from toolkit.errors import DataError
from toolkit.ollama.client import Client
from toolkit.ollama.own_model import OwnModel, Vocabulary
from toolkit.ollama.strength import ServedStrength, served_strength, served_strength_check
from toolkit.parity.limits import limits_for
from toolkit.parity.strength import Strength, moments, strength
from toolkit.run.artifacts import read_jsonl


def exports(folder: Path) -> dict[str, Path]:
    """Right ones, one at half its alpha, one without the adapter."""
    clean = chain()
    files = {"F16": clean.export.gguf.folder / clean.export.gguf.facts.files[0].name, "lost": clean.without_adapter}
    files |= {file.file_type: clean.export.quantized.folder / file.name for file in clean.export.quantized.facts.files}
    files["half"] = folder / "half.gguf"
    shutil.copy(files["F16"], files["half"])
    blend(files["half"], clean.without_adapter, 0.5)
    return files


def whole_vocabulary(gguf: Path, golden: Path) -> float:
    """The slope over the whole vocabulary, with llama.cpp in this process."""
    tuned, base = (np.load(golden / f"{name}.npy", mmap_mode="r") for name in ("tuned", "base"))
    own = OwnModel(gguf, 1024)
    together: list[float] = []
    alone: list[float] = []
    for row in read_jsonl(golden / "golden.jsonl"):
        export = own.start(row["prompt_ids"])
        for at, token in enumerate(row["completion_ids"]):
            place = row["first_row"] + at
            rows = [torch.from_numpy(x.astype(np.float64))[None] for x in (tuned[place], base[place], export)]
            both, one = moments(*rows)
            together.append(float(both[0]))
            alone.append(float(one[0]))
            export = own.step([token])
    own.close()
    found = strength(np.array(together), np.array(alone))
    assert found is not None
    return found.value


@pytest.mark.ollama
@pytest.mark.slow
def test_whole_half_and_lost_adapters_are_told_apart(ollama_server: Server, tmp_path: Path) -> None:
    golden, client, files = chain().golden.folder, ollama_server.client, exports(tmp_path)
    own = OwnModel(files["F16"], 1024)
    found: dict[str, ServedStrength] = {}
    for name, path in files.items():
        parameters = {"num_ctx": 1024, "stop": ["."]}  # a stop word of the model's must not hide positions
        client.create("strength", {"files": {"m.gguf": client.upload(path)}, "parameters": parameters})
        found[name] = served_strength(client, "strength", golden, own, most_forced=300)
        client.delete("strength")
    own.close()
    values = {name: one.strength for name, one in found.items()}
    assert all(value is not None for value in values.values())
    slopes = {name: value.value for name, value in values.items() if value is not None}
    assert slopes["F16"] == pytest.approx(1, abs=0.005)
    assert slopes["Q8_0"] == pytest.approx(1, abs=0.02)
    assert slopes["Q4_K_M"] == pytest.approx(1, abs=0.06)
    assert slopes["half"] == pytest.approx(0.58, abs=0.1)
    assert slopes["lost"] == pytest.approx(0, abs=0.03)
    positions = sum(len(row["completion_ids"]) for row in read_jsonl(golden / "golden.jsonl"))
    assert all(one.positions + one.skipped >= 0.9 * positions for one in found.values())
    # The window's own bias, against the slope over the whole vocabulary: small where it matters most, at 1 and at 0. In between,
    # this tiny model answers half an adapter with more than half the change, the more so among tokens outside the window.
    for name, bias in (("F16", 0.01), ("Q4_K_M", 0.03), ("lost", 0.01), ("half", 0.15)):
        assert slopes[name] == pytest.approx(whole_vocabulary(files[name], golden), abs=bias), name


@pytest.mark.ollama
@pytest.mark.slow
def test_a_sample_of_all_goldens_tells_what_all_positions_tell(ollama_server: Server, tmp_path: Path) -> None:
    golden, client, files = chain().golden.folder, ollama_server.client, exports(tmp_path)
    vocabulary = Vocabulary(files["F16"])
    positions = sum(len(row["completion_ids"]) for row in read_jsonl(golden / "golden.jsonl"))
    client.create("strength", {"files": {"m.gguf": client.upload(files["half"])}, "parameters": {"num_ctx": 1024}})
    every = served_strength(client, "strength", golden, vocabulary, most_forced=1000)
    some = served_strength(client, "strength", golden, vocabulary, most_forced=60)
    stopped = served_strength(client, "strength", golden, vocabulary, decided=lambda found: found.high < 0.9)
    lenient = limits_for("F16", 0, 0.0)[0]
    check = served_strength_check(client, "strength", golden, vocabulary, lenient, whole=False)
    client.delete("strength")
    vocabulary.close()
    assert every.strength is not None and some.strength is not None and stopped.strength is not None
    assert (every.left, every.positions + every.skipped) == (0, positions)
    assert (some.asked, some.positions + some.skipped + some.left) == (12 + 60, positions)
    assert some.left > 60  # it is a sample, from all goldens and not from the first
    assert some.strength.value == pytest.approx(every.strength.value, abs=0.06)
    assert stopped.asked == some.asked  # the first round decided
    assert stopped.strength == pytest.approx(some.strength, abs=1e-4)
    told = {measure.name: measure.value for measure in check.measures}
    assert check.verdict == "fail" and told["strength"] == pytest.approx(every.strength.value, abs=0.06)
    assert told["requests"] < every.asked  # it asks on until its limits are decided, and no longer
    assert some.skipped <= told["positions that could not be compared"] <= every.skipped


RIGHT = Strength(0.835, 0.005, 16)
"""In the answers of a right Q4_K_M after a short training; 1.000 in its weights (see `WHOLE_LOW`)."""


@pytest.mark.parametrize(
    ("found", "whole", "verdict", "said"),
    [
        (RIGHT, True, "pass", "the weights show the adapter whole, and rounding moves the answers"),
        (RIGHT, False, "inconclusive", "of F16, BF16 and Q8_0 it can be told"),
        (Strength(0.6, 0.02, 16), False, "fail", "wanted within [0.8, 1.2]"),
        (Strength(0.3, 0.03, 16), True, "fail", "wanted within [0.5, 1.5]"),
        (Strength(0.78, 0.02, 16), False, "inconclusive", "texts would decide (now 16)"),
        (Strength(1.0, 0.002, 16), False, "inconclusive", "of F16, BF16 and Q8_0 it can be told"),
    ],
)
def test_what_the_weights_show_counts_for_the_answers(
    found: Strength, whole: bool, verdict: str, said: str, monkeypatch: pytest.MonkeyPatch, smollm2_gguf: Path
) -> None:
    told = ServedStrength(found, 100, 112, 0.9, 3, 0)
    monkeypatch.setattr("toolkit.ollama.strength.served_strength", lambda *_, **__: told)
    limits, _ = limits_for("Q4_K_M", 135_000_000, 0.0)
    vocabulary = Vocabulary(smollm2_gguf)
    with Client("http://127.0.0.1:9") as client:
        check = served_strength_check(client, "m", Path("unused"), vocabulary, limits, whole)
    vocabulary.close()
    assert (check.verdict, said in check.message) == (verdict, True), check.message


@pytest.mark.ollama
def test_goldens_without_logits_are_refused(ollama_server: Server, small_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "golden.jsonl").write_text("")
    own = OwnModel(small_gguf, 64)
    with pytest.raises(DataError, match="has no reference logits"):
        served_strength(ollama_server.client, "any", tmp_path, own)
    own.close()
