"""An adapter's tokenizer is read as its base's configuration has it read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.small_models import put_tokenizer, tiny_qwen2
from toolkit.models.tokenizer import load_tokenizer

TEXT = "Tag 12  und\n\n  zwei, 你好 🙂 don't"


@pytest.mark.parametrize(
    "name", ["LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast"]
)
def test_a_class_that_an_older_library_wrote_splits_no_text_otherwise(name: str, tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base")
    adapter = tmp_path / "adapter"
    put_tokenizer(adapter, "qwen2")
    settings = json.loads((adapter / "tokenizer_config.json").read_text(encoding="utf-8"))
    for folder in (base, adapter):  # as DeepSeek's distillates of Qwen say it, in both
        (folder / "tokenizer_config.json").write_text(
            json.dumps(settings | {"tokenizer_class": name}), encoding="utf-8"
        )
    wanted = AutoTokenizer.from_pretrained(base)(TEXT)["input_ids"]
    assert load_tokenizer(adapter, base)(TEXT)["input_ids"] == wanted
    if name == "LlamaTokenizerFast":  # what the folder alone would give
        assert load_tokenizer(adapter)(TEXT)["input_ids"] != wanted
