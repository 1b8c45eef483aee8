"""Rows that show pictures: their tokens, their batches, the layers that learn from them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.seeing_models import IMAGE_PAD, seeing_model
from tests.small_models import adapter_artifact
from toolkit.errors import DataError, UsageError
from toolkit.models.merged import merged_weights
from toolkit.models.pictures import PictureRules, rules_of
from toolkit.models.seen import Picture, given, seen_rows
from toolkit.models.tokenizer import load_tokenizer, own_tokenizer
from toolkit.models.weights import TrainedWeights
from toolkit.recipe.lora import Lora
from toolkit.train.adapter import put_adapter, save_adapter, targets
from toolkit.train.pictures import PICTURES, Showing
from toolkit.train.rows import NOT_LEARNED, answer_loss, tokenize, tokenized

SIZES = {"images/a.png": (280, 196), "images/b.png": (97, 211)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_model(tmp_path_factory.mktemp("base") / "base", "qwen2_5_vl")


@pytest.fixture
def rules(base: Path) -> PictureRules:
    found = rules_of(base)
    assert found is not None
    return found.model_copy(update={"min_tokens": 8, "max_tokens": 64})


def user(*parts: str) -> dict[str, Any]:
    """A turn; a part that ends in .png is a picture."""
    made = [{"type": "image", "image": p} if p.endswith(".png") else {"type": "text", "text": p} for p in parts]
    return {"role": "user", "content": made}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def folder_of(folder: Path, *rows: dict[str, Any]) -> Path:
    """What the prepare stage leaves."""
    (folder / "images").mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        Image.new("RGB", size, (40 * number, 200, 90)).save(folder / name)
    lines = [json.dumps({"source": {"file": "rows.jsonl", "line": n}, **row}) for n, row in enumerate(rows, 1)]
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_picture_takes_its_tokens_behind_the_text(base: Path, rules: PictureRules, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"prompt": [user("images/a.png", "What is it?")], "completion": [said("Green.")]})
    tokenizer = load_tokenizer(base)
    (row,) = seen_rows(folder, "train", rules)
    (found,) = tokenize(tokenizer, row)
    tokens = rules.tokens(*SIZES["images/a.png"])
    assert found.input_ids.count(IMAGE_PAD) == tokens == 54
    first = found.input_ids.index(IMAGE_PAD)
    assert found.input_ids[first : first + tokens] == [IMAGE_PAD] * tokens
    assert found.pictures == (Picture(folder / "images/a.png", rules, first + tokens),)
    before = tokenizer.decode(found.input_ids[:first])
    assert before == "<|im_start|>user\nWhat is it?<|vision_start|>"  # as /api/chat puts them, whatever the row's order
    assert tokenizer.decode([i for i in found.labels if i != NOT_LEARNED]) == "Green.<|im_end|>\n"


def test_no_picture_is_cut(base: Path, rules: PictureRules, tmp_path: Path) -> None:
    turns = [said("Green."), user("images/b.png", "And this?"), said("Green too.")]
    folder = folder_of(tmp_path, {"prompt": [user("images/a.png", "What is it?")], "completion": turns})
    (row,) = seen_rows(folder, "train", rules)
    (whole,) = tokenize(load_tokenizer(base), row)
    assert [picture.path.name for picture in whole.pictures] == ["a.png", "b.png"] and len(whole.spans) == 2
    for limit in range(1, len(whole.input_ids) + 1):
        cut = whole.up_to(limit)
        count = sum(rules.tokens(*SIZES[f"images/{p.path.name}"]) for p in cut.pictures) if cut else 0
        assert cut is None or cut.input_ids.count(IMAGE_PAD) == count
    assert whole.up_to(len(whole.input_ids) - 1) is not None
    tokenizer, rows = load_tokenizer(base), seen_rows(folder, "train", rules)
    with pytest.raises(DataError, match=r"train\.max_length = 40 tokens; the longest:\n  rows\.jsonl:1"):
        tokenized(tokenizer, rows, 40)


def test_a_batch_is_what_each_row_is(base: Path, rules: PictureRules, tmp_path: Path) -> None:
    answers = [
        {"prompt": [user("images/a.png", "What is it?")], "completion": [said("Green.")]},
        {"prompt": [{"role": "user", "content": "Hello"}], "completion": [said("Hello to you.")]},
        {"prompt": [user("A", "images/b.png", "images/a.png")], "completion": [said("Two of them.")]},
    ]
    tokenizer = own_tokenizer(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()
    rows = [tokenize(tokenizer, row)[0] for row in seen_rows(folder_of(tmp_path, *answers), "train", rules)]
    examples = [{**r.example(), PICTURES: [str(p.path) for p in r.pictures]} for r in rows]
    batch = Showing(tokenizer, rules, answers_alone=False)(examples)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for number, row in enumerate(rows):
            own = torch.tensor([row.input_ids])
            alone = model(input_ids=own, use_cache=False, **given(own, row.pictures)).logits[0]
            assert torch.allclose(logits[number, : len(row.input_ids)], alone, atol=2e-4)
        losses = [
            torch.nn.functional.cross_entropy(logits[n, :-1], labels[n, 1:], reduction="sum").item()
            for n in range(len(rows))
        ]
    alone = Showing(tokenizer, rules, answers_alone=True)(examples)
    with torch.no_grad():
        few = model(**alone, use_cache=False)
    assert few.logits.shape[1] == alone["labels"].shape[1] < logits.shape[1]
    assert few.loss.item() == pytest.approx(sum(losses) / sum(row.learnt for row in rows), rel=1e-4)
    assert answer_loss(model, rows) == pytest.approx(sum(losses) / sum(row.learnt for row in rows), rel=1e-4)


@pytest.mark.parametrize(
    ("off", "wanted", "unwanted"),
    [
        (["vision_layers"], ["q_proj", "gate_proj"], ["qkv", "merger"]),
        (["language_layers"], ["qkv", "merger"], ["self_attn", "language_model"]),
        (["attention_modules"], ["gate_proj", "merger"], ["attn"]),
        (["mlp_modules"], ["qkv", "q_proj"], ["mlp", "merger"]),
    ],
)  # fmt: skip
def test_the_four_switches(base: Path, off: list[str], wanted: list[str], unwanted: list[str]) -> None:
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    switches = {f"finetune_{name}": False for name in off}
    found = targets(model, Lora(target_modules="all-linear", **switches))
    assert all(any(part in name for name in found) for part in wanted)
    assert not any(part in name for name in found for part in unwanted)
    assert "lm_head" not in found
    everything = targets(model, Lora(target_modules="all-linear"))
    assert set(found) < set(everything)
    seven = targets(model, Lora())
    assert seven and all(name.rpartition(".")[2].endswith("_proj") for name in seven)
    with pytest.raises(UsageError, match="no layer of this base is left to train"):
        targets(model, Lora(finetune_vision_layers=False, finetune_language_layers=False))


def test_a_trained_embedding_is_found_under_the_name_that_the_files_have(base: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    before = model.get_input_embeddings().weight.detach().clone()
    tuned, _ = put_adapter(model, Lora(target_modules="all-linear", modules_to_save=["embed_tokens"]), "CAUSAL_LM")
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.5
    save_adapter(tuned, {}, tmp_path / "adapter")
    merged = merged_weights(adapter_artifact(tmp_path / "adapter", base), "as trained")
    (stored,) = (name for name in merged.names() if name.endswith("embed_tokens.weight"))
    assert stored != merged.embedding and merged.tied_head is not None
    assert merged.is_merged(stored) and torch.equal(merged.load(stored), before + 0.5)
    assert TrainedWeights(base, "float32", None, len(before) + 8).load(stored).shape[0] == len(before) + 8


def test_what_cannot_be_is_named(base: Path, rules: PictureRules, tmp_path: Path) -> None:
    asked = user("images/a.png", "What does <|image_pad|> mean?")
    folder = folder_of(tmp_path, {"prompt": [asked], "completion": [said("A mark.")]})
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: the row shows a picture, and the base sees none$"):
        seen_rows(folder, "train", None)
    (row,) = seen_rows(folder, "train", rules)
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: the chat template writes 2 times <\|image_pad\|> for 1 pict"):
        tokenize(load_tokenizer(base), row)
    (folder / "images/a.png").write_bytes(b"\x89PNG")
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text().replace("<|image_pad|>", "it"))
    (row,) = seen_rows(folder, "train", rules)
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: .*a\.png cannot be read as a picture"):
        tokenize(load_tokenizer(base), row)
