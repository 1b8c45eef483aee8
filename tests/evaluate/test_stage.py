"""The stage on a small trained chain: real training, real llama.cpp. A model that got worse is not called helped, and one that
forgot is caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.parity_chain import AFTER, ASKED, BEFORE, SYSTEM, Chain, chain, finished, learn
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama
from toolkit.evaluate.general_texts import read_general
from toolkit.evaluate.held_out import HeldOut
from toolkit.evaluate.readers import FileReader, LayerReader, ModelReader, tuned_and_base
from toolkit.evaluate.seen import look
from toolkit.evaluate.stage import evaluate, figures_json
from toolkit.evaluate.told import forgot_of, sentences
from toolkit.models.ends import end_tokens
from toolkit.models.reference import TeacherForced, reference_of
from toolkit.models.tokenizer import load_tokenizer
from toolkit.run.artifacts import Artifact, read_jsonl, write_jsonl
from toolkit.run.facts import CertificateFacts, DatasetFacts, EvaluationFacts, OllamaFacts
from toolkit.train.rows import TokenizedRow

HELD_OUT = ["a headache", "a fever", "a bruise", "a sting"]


@pytest.fixture(scope="module")
def clean() -> Chain:
    return chain()


def dataset(folder: Path, rows: list[dict[str, Any]]) -> Artifact[DatasetFacts]:
    folder.mkdir(parents=True)
    write_jsonl(folder / "test.jsonl", rows)
    write_jsonl(folder / "validation.jsonl", [])
    write_jsonl(folder / "train.jsonl", [])
    facts = DatasetFacts(
        rows={"test": len(rows)}, read=len(rows), kept=len(rows), dropped={}, repaired={}, encodings={}, language="en"
    )
    return finished(folder, facts)


def answers(style: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked.format(problem)}],
            "completion": [{"role": "assistant", "content": answer.format(problem)}],
            "source": {"file": "rows.jsonl", "line": 1},
        }
        for problem in HELD_OUT
        for asked, answer in zip(ASKED, style)
    ]


def run(
    clean: Chain, out: Path, held_out: list[dict[str, Any]] | None, adapter: Any = None, **settings: Any
) -> tuple[EvaluationFacts, dict[str, Any]]:
    """The stage on these held-out rows; nothing is published."""
    certificate = CertificateFacts(verdict="pass", checks={}, served_file=clean.export.quantized.facts.files[0].name)
    unpublished = OllamaFacts(model="tiny", digest="", server_version="", published=False, remaining=[])
    have: dict[str, Any] = {
        "train": adapter or clean.adapter, "golden": clean.golden, "convert": clean.export.gguf,
        "quantize": clean.export.quantized, "verify": finished(clean.folder, certificate),
        "create": finished(clean.folder, unpublished),
    }  # fmt: skip
    if held_out is not None:
        have["prepare"] = dataset(out / "data", held_out)
    chosen = {"rows": 8, "max_new_tokens": 24, "forgetting": False, **settings}
    recipe = clean.recipe.model_copy(update={"evaluate": clean.recipe.evaluate.model_copy(update=chosen)})
    out.mkdir(parents=True, exist_ok=True)
    facts = evaluate(recipe, have, out)
    return facts, json.loads((out / "evaluation.json").read_text(encoding="utf-8"))


def figure(told: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in told["figures"] if one["name"] == name)


def test_everybody_reads_the_same_tokens_alike(clean: Chain) -> None:
    tokenizer = load_tokenizer(clean.adapter.folder, clean.adapter.facts.base.folder)
    texts = [
        "Question: who?\nAnswer: I",
        "Question: who?\nAnswer: nobody at all",
        "Rest helps against a cold, 多喝水。",
    ]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    asked = [TeacherForced(ids[0], 7), TeacherForced(ids[1], 7), TeacherForced(ids[2], 1)]
    ends = end_tokens(clean.adapter, tokenizer).tokens
    models = tuned_and_base(clean.adapter, ends)
    name, tuned = next(models)
    assert name == "tuned" and isinstance(tuned, ModelReader)
    read = tuned.read(asked)
    # By hand, one at a time and without padding.
    model = reference_of(clean.adapter, whole=True)
    for one, found in zip(asked, read):
        (logits,) = model.logits([one])
        wanted = torch.log_softmax(logits.double(), -1)[range(one.positions), one.ids[one.first :]]
        assert np.abs(found.nats - wanted.numpy()).max() < 1e-4
        assert found.nats.shape == (one.positions,)
    layered = LayerReader(reference_of(clean.adapter, whole=False), "layered").read(asked)
    assert max(np.abs(a.nats - b.nats).max() for a, b in zip(read, layered)) < 1e-4
    file = FileReader(clean.export.gguf.folder / clean.export.gguf.facts.files[0].name)
    exported = file.read(asked)
    assert max(np.abs(a.nats - b.nats).max() for a, b in zip(read, exported)) < 0.02
    # What is shared with the sequence before is not evaluated again, and gives the same.
    assert np.abs(file.read(asked[1:2])[0].nats - exported[1].nats).max() < 1e-4
    base = next(models)[1]
    assert max(np.abs(a.nats - b.nats).max() for a, b in zip(read, base.read(asked))) > 0.1


def test_it_helped_and_the_exports_keep_it(clean: Chain, tmp_path: Path) -> None:
    facts, told = run(clean, tmp_path, answers(AFTER))
    assert facts.helped == "helped" and facts.forgot == "unknown"
    assert facts.subjects == ["base", "tuned", "F16", "Q8_0", "Q4_K_M"] and facts.rows == 16 and facts.questions == 8
    loss = figure(told, "held-out loss")
    base, tuned = loss["subjects"]["base"], loss["subjects"]["tuned"]
    assert tuned["from_base"]["verdict"] == "better" and tuned["value"] < base["value"] - 0.5
    assert tuned["perplexity"] == pytest.approx(np.exp(tuned["value"]))
    assert loss["subjects"]["F16"]["kept"]["value"] == pytest.approx(1.0, abs=0.01)
    assert abs(loss["subjects"]["F16"]["from_tuned"]["value"]) < 0.01
    assert facts.sentences[0].startswith("Helped: held-out loss")
    assert "Q8_0, which is served, keeps" in facts.sentences[-1]
    said = read_jsonl(tmp_path / "answers.jsonl")
    assert len(said) == 8 and set(said[0]["answers"]) == set(facts.subjects)
    assert said[0]["reference"] == AFTER[0].format("a headache"), "without the end of the turn"
    assert all("<|im_end|>" not in answer for row in said for answer in row["answers"].values())


def test_what_got_worse_is_not_called_helped(clean: Chain, tmp_path: Path) -> None:
    facts, told = run(clean, tmp_path, answers(BEFORE), rows=0)
    assert facts.helped == "harmed" and facts.questions == 0
    assert [one["name"] for one in told["figures"]] == ["held-out loss"], "0 rows: only losses"
    assert facts.sentences[0].startswith("Did not help, it did harm: held-out loss")


def test_without_rows_only_forgetting_is_measured(clean: Chain, tmp_path: Path) -> None:
    facts, told = run(clean, tmp_path, None, forgetting=True)
    assert facts.helped == "unknown" and facts.rows == 0 and facts.questions == 0
    assert [(one["name"], one["rows"]) for one in told["figures"]] == [
        ("loss on general text", 40), ("general questions", 40),
    ]  # fmt: skip
    assert facts.subjects == ["base", "tuned", "F16", "Q8_0", "Q4_K_M"]
    assert list(told["figures"][0]["subjects"]) == ["base", "tuned", "Q8_0"], "of the exports, the one that is served"


def test_a_model_that_forgot_is_caught(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    general = read_general(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    model.get_input_embeddings().requires_grad_(False)
    read = [TokenizedRow(one.ids, ((1, len(one.ids)),)) for one in general.paragraphs]
    learn(model, read, 60, 3e-3, 0)
    model.save_pretrained(base)

    def forgot(strength: float) -> list[dict[str, Any]]:
        made = tiny_adapter(base, tmp_path / f"adapter-{strength}", strength=strength)
        models = tuned_and_base(adapter_artifact(made, base), [])
        seen = {name: look(reader, HeldOut(), general, 8, tokenizer, {}) for name, reader in models}
        return figures_json(HeldOut(), general, {"base": seen["base"], "tuned": seen["tuned"]}, {})

    loud = forgot(0.5)
    assert forgot_of(loud) == "forgot"
    assert loud[0]["subjects"]["tuned"]["from_base"]["verdict"] == "worse"
    assert sentences(loud, "")[0].startswith("Forgot: loss on general text")
    same = forgot(0.0)
    assert forgot_of(same) == "nothing seen"
    assert same[0]["subjects"]["tuned"]["from_base"]["value"] == pytest.approx(0.0, abs=1e-5)


def test_pairs_and_labels(clean: Chain, tmp_path: Path) -> None:
    new, old = answers(AFTER), answers(BEFORE)
    pairs = [
        {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"], "source": a["source"]}
        for a, b in zip(new, old)
    ]
    facts, told = run(clean, tmp_path / "pairs", pairs)
    won = figure(told, "pairs won against the base")
    assert won["subjects"]["base"]["value"] == 0.5 and won["subjects"]["tuned"]["value"] == 1.0
    assert facts.helped == "helped" and facts.questions == 0
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    facts, told = run(clean, tmp_path / "turned", turned)
    assert facts.helped == "harmed"
    assert figure(told, "margin of chosen over rejected")["subjects"]["Q8_0"]["from_base"]["verdict"] == "worse"
    labels = [{**row, "label": True} for row in new] + [{**row, "label": False} for row in old]
    facts, told = run(clean, tmp_path / "labels", labels)
    assert facts.helped == "helped"
    assert figure(told, "rows moved as their label says")["subjects"]["tuned"]["value"] == 1.0
    assert figure(told, "loss of all answers")["about"] == "beside"


def test_plain_text_and_rows_that_are_too_long(clean: Chain, tmp_path: Path) -> None:
    texts = [{"text": f"{answer.format(problem)} " * 3} for problem in HELD_OUT for answer in AFTER]
    facts, told = run(clean, tmp_path / "texts", [*texts, {"text": "word " * 3000}])
    assert facts.rows == 16 and facts.questions == 0 and facts.helped in ("helped", "harmed")
    assert told["rows"] == {"kind": "texts", "splits": {"test": 16}, "too_long": 1}
    assert told["remarks"] == ["1 held-out rows do not fit into train.max_length and are left out"]


def test_rewards_lead_where_they_were_trained_for(clean: Chain, tmp_path: Path) -> None:
    from toolkit.evaluate.figures import figures_of
    from toolkit.evaluate.held_out import of_rows
    from toolkit.evaluate.seen import Seen

    tokenizer = load_tokenizer(clean.adapter.folder, clean.adapter.facts.base.folder)
    rows = [
        {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": "steps\n#### 12"}]}
        for row in answers(AFTER)
    ]
    held_out = of_rows(rows, tokenizer, 512, 16)
    losses = [[-10.0] for _ in rows]
    base = Seen(losses, ["I do not know"] * 16, ["I do not know"] * 16, [True] * 16)
    good = "<reasoning>\nsteps\n</reasoning>\n<answer>\n12\n</answer>"
    tuned = Seen(losses, [good] * 16, [good] * 16, [True] * 16)
    from toolkit.train.rewards import named

    found = figures_of(held_out, None, {"base": base, "tuned": tuned}, named(["answer_correct", "strict_format"]))
    assert [one.name for one in found[:4]] == [
        "reward, all together", "reward answer_correct", "reward strict_format", "right answers",
    ]  # fmt: skip
    assert found[0].of("tuned").value == pytest.approx(2.5) and found[0].of("base").value == 0.0
    assert found[3].of("tuned").value == 1.0 and found[3].of("base").value == 0.0
