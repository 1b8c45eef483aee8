"""Exported files read rows that show pictures: a language model's GGUF with its projector, against transformers' own model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp import mtmd_cpp

from tests.faults.seeing_chain import ASKED, SeeingChain, seeing_chain
from tests.parity_chain import finished
from tests.seeing_models import IMAGE_PAD
from toolkit.errors import DataError
from toolkit.evaluate.readers import FileReader, tuned_and_base
from toolkit.evaluate.stage import evaluate
from toolkit.models.reference import TeacherForced
from toolkit.models.seen import Picture
from toolkit.parity.golden.export_answers import Asked
from toolkit.parity.showing import Showing
from toolkit.run.artifacts import read_jsonl, write_jsonl
from toolkit.run.facts import CertificateFacts, DatasetFacts, OllamaFacts

pytestmark = pytest.mark.slow
CLOSE = 1e-2
"""Nats; llama.cpp's convolution over the pixels is in 16 bits. Measured: 2.3e-3 at most, of random weights."""


@pytest.fixture(scope="module")
def clean() -> SeeingChain:
    return seeing_chain()


def file_of(clean: SeeingChain, kind: str) -> Path:
    made = {f.file_type: a.folder / f.name for a in (clean.export.gguf, clean.export.quantized) for f in a.facts.files}
    return made[kind]


def showing(clean: SeeingChain) -> Showing:
    rules = clean.adapter.facts.pictures
    assert rules is not None
    return Showing(clean.mmproj, rules)


def forced(clean: SeeingChain) -> tuple[list[TeacherForced], list[dict[str, Any]]]:
    """The goldens, as rows are read."""
    rules, rows = clean.adapter.facts.pictures, read_jsonl(clean.golden.folder / "golden.jsonl")
    assert rules is not None
    found = []
    for row in rows:
        ids = row["prompt_ids"]
        end = len(ids) - ids[::-1].index(IMAGE_PAD)
        picture = Picture(clean.golden.folder / row["pictures"][0]["image"], rules, end)
        found.append(TeacherForced(ids + row["completion_ids"], len(ids), (picture,)))
    return found, rows


def test_a_file_reads_what_stands_behind_a_picture(clean: SeeingChain, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, rows = forced(clean)
    read = FileReader(file_of(clean, "F32"), shown := showing(clean)).read(asked)
    tuned = torch.from_numpy(np.load(clean.golden.folder / "tuned.npy")).double().log_softmax(-1)
    for row, one, found in zip(rows, asked, read):
        wanted = tuned[row["first_row"] :][range(one.positions), one.ids[one.first :]].numpy()
        assert np.abs(found.nats - wanted).max() < CLOSE
    assert len(shown.encodings) == len({one.pictures[0].path for one in asked})
    # What was encoded once serves every other file of the language model.
    monkeypatch.setattr(mtmd_cpp, "mtmd_encode_chunk", None)
    coarse = FileReader(file_of(clean, "Q8_0"), shown).read(asked)
    assert 1e-5 < max(np.abs(a.nats - b.nats).max() for a, b in zip(read, coarse)) < 0.5


def test_a_file_answers_about_pictures_as_the_tuned_model_does(clean: SeeingChain) -> None:
    asked, rows = forced(clean)
    prompts = [Asked(one.ids[: one.first], one.pictures) for one in asked]
    new_tokens = max(len(row["completion_ids"]) for row in rows)
    said = FileReader(file_of(clean, "F32"), showing(clean)).say(prompts, new_tokens)
    assert [one.tokens for one in said] == [row["completion_ids"] for row in rows]


def test_pictures_of_later_turns_and_words_among_them_are_read(clean: SeeingChain) -> None:
    """Two pictures in one sequence; what is learnt begins before the second."""
    asked, _ = forced(clean)
    one, other = asked[0], asked[1]
    moved = other.pictures[0]._replace(end=len(one.ids) + other.pictures[0].end)
    both = TeacherForced([*one.ids, *other.ids], one.first, (one.pictures[0], moved))
    model = next(tuned_and_base(clean.adapter, []))[1]
    (wanted,), (found,) = model.read([both]), FileReader(file_of(clean, "F32"), showing(clean)).read([both])
    spoken = np.array([token != IMAGE_PAD for token in both.ids[both.first :]])
    spoken[1:] &= spoken[:-1]  # nobody learns what follows a picture's own token
    assert spoken.sum() > one.positions + other.positions
    assert np.abs(found.nats - wanted.nats)[spoken].max() < CLOSE
    words = TeacherForced(asked[0].ids[:1] * 3 + asked[0].ids[one.first :], 2)
    (alone,) = FileReader(file_of(clean, "F32")).read([words])
    (after, again) = FileReader(file_of(clean, "F32"), showing(clean)).read([both, words])
    assert np.abs(alone.nats - again.nats).max() < 1e-4 and np.abs(after.nats - found.nats)[spoken].max() < 1e-4


def test_pictures_without_their_projector_are_not_read_past(clean: SeeingChain) -> None:
    asked, _ = forced(clean)
    with pytest.raises(DataError, match="is to read pictures without a projector"):
        FileReader(file_of(clean, "F32")).read(asked)
    other = showing(clean)
    larger = Showing(other.mmproj, other.rules.model_copy(update={"min_tokens": 200, "max_tokens": 400}))
    with pytest.raises(DataError, match=r"llama\.cpp makes \d+ tokens of it with .* training made another number"):
        FileReader(file_of(clean, "F32"), larger).read(asked[:1])


def test_the_stage_has_a_figure_of_every_file(clean: SeeingChain, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(clean.golden.folder / "images", data / "images")
    names = [row["pictures"][0]["image"] for row in read_jsonl(clean.golden.folder / "golden.jsonl")]
    rows = [
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": ASKED}, {"type": "image", "image": name}]}],
            "completion": [{"role": "assistant", "content": f"Waves of kind {number}."}],
            "source": {"file": "rows.jsonl", "line": number + 1},
        }
        for number, name in enumerate(names)
    ]  # fmt: skip
    for split, held in (("test", rows), ("validation", []), ("train", [])):
        write_jsonl(data / f"{split}.jsonl", held)
    facts = DatasetFacts(
        rows={"test": len(rows)}, read=len(rows), kept=len(rows), dropped={}, repaired={}, encodings={}, language="en",
        pictures=len(rows),
    )  # fmt: skip
    served = clean.export.quantized.facts.files[0].name
    have: dict[str, Any] = {
        "prepare": finished(data, facts), "train": clean.adapter, "golden": clean.golden, "convert": clean.export.gguf,
        "quantize": clean.export.quantized,
        "verify": finished(tmp_path, CertificateFacts(verdict="pass", checks={}, served_file=served)),
        "create": finished(tmp_path, OllamaFacts(model="x", digest="", server_version="", published=False, remaining=[])),
    }  # fmt: skip
    chosen = clean.recipe.evaluate.model_copy(update={"rows": 4, "forgetting": False})
    (out := tmp_path / "evaluate").mkdir()
    found = evaluate(clean.recipe.model_copy(update={"evaluate": chosen}), have, out)
    assert found.subjects == ["base", "tuned", "F32", "Q8_0"] and (found.rows, found.questions) == (len(rows), 4)
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    loss = next(figure for figure in told["figures"] if figure["name"] == "held-out loss")["subjects"]
    assert abs(loss["F32"]["value"] - loss["tuned"]["value"]) < CLOSE
    assert abs(loss["Q8_0"]["value"] - loss["tuned"]["value"]) < 0.05
    assert abs(loss["base"]["value"] - loss["tuned"]["value"]) > 0.05
    assert all(loss[name]["perplexity"] == pytest.approx(np.exp(loss[name]["value"])) for name in loss)
    assert all(set(row["answers"]) == {"base", "tuned", "F32", "Q8_0"} for row in read_jsonl(out / "answers.jsonl"))
