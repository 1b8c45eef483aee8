"""A turn's end that the base does not list: the merged folder lists it, and the GGUF file ends at it whatever it is called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.parity_chain import finished
from tests.small_models import adapter_artifact, tiny_adapter, tiny_llama
from toolkit.export.convert import convert
from toolkit.export.merge import merge
from toolkit.models.ends import ends_of
from toolkit.models.gguf_file import read_gguf
from toolkit.parity.candidate import Candidate
from toolkit.recipe.schema import Recipe

UNKNOWN = "<empty_output>"
"""A special token of SmolLM2's vocabulary that llama.cpp ends at for no name."""


def other_end(folder: Path, turn_end: str) -> Path:
    """A base as those that are not instruct models: its end token ends a document, its template closes turns with another."""
    tiny_llama(folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        path = folder / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if name.endswith(".jinja"):
            path.write_text(text.replace("<|im_end|>", turn_end), encoding="utf-8")
        else:
            path.write_text(json.dumps({**json.loads(text), "eos_token": "<|endoftext|>"}), encoding="utf-8")
    for name in ("generation_config.json", "config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**settings, "eos_token_id": 0}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("turn_end", [UNKNOWN, "<|im_end|>"])
def test_a_turns_end_reaches_every_file(tmp_path: Path, turn_end: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = other_end(tmp_path / "base", turn_end)
    tokenizer = AutoTokenizer.from_pretrained(base)
    token = tokenizer.convert_tokens_to_ids(turn_end)
    assert ends_of(base, tokenizer).listed == [0]
    adapter = adapter_artifact(tiny_adapter(base, tmp_path / "adapter"), base)
    chosen = Recipe.model_validate({
        "name": "tiny", "base": str(base), "adapter": "unused", "golden": {"prompts": ["a"]}, "ollama": {"model": "tiny"},
        "export": {"file_types": ["F16"], "serve": "F16"},
    })  # fmt: skip
    for name in ("merge", "convert"):
        (tmp_path / name).mkdir()
    model = finished(tmp_path / "merge", merge(chosen, adapter, tmp_path / "merge"))
    told = " ".join(capsys.readouterr().err.split())
    assert f"closes a turn with {turn_end!r} (token {token})" in told
    settings = json.loads((tmp_path / "merge" / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["eos_token_id"] == sorted([0, token])
    facts = convert(chosen, adapter, model, tmp_path / "convert")
    file = tmp_path / "convert" / facts.files[0].name
    assert facts.files[0].bytes == file.stat().st_size
    known = read_gguf(file).metadata
    assert known["tokenizer.ggml.eos_token_id"] == 0
    # What llama.cpp knows by its name is not written: the file stays as the converter makes it.
    assert known.get("tokenizer.ggml.eot_token_id") == (token if turn_end == UNKNOWN else None)
    with Candidate(file) as candidate:
        assert candidate.end_tokens >= {0, token}
        assert 30 not in candidate.end_tokens
