"""A 4-bit copy is known by its name or its config.json, and answered with its 16-bit original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.errors import DataError
from toolkit.models.bases import check_base, check_folder, is_here
from toolkit.models.four_bit import four_bit_copy
from toolkit.recipe.adopted import base_of, was_quantized


@pytest.mark.parametrize(
    ("name", "original", "certain", "nf4"),
    [
        ("unsloth/Qwen3-8B-unsloth-bnb-4bit", "unsloth/Qwen3-8B", True, True),
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", "unsloth/Llama-3.2-1B-Instruct", True, True),
        ("Unsloth/gemma-3-4b-it-qat-bnb-4bit", "Unsloth/gemma-3-4b-it-qat", True, True),
        ("someone/Phi-4-bnb-4bit", "someone/Phi-4", False, True),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "Qwen/Qwen2.5-7B-Instruct", False, False),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct", False, False),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", "mlx-community/Llama-3.2-1B-Instruct", False, False),
        ("x/y-4-bit", "x/y", False, False),
        ("RedHat/Model-7B-FP8-dynamic", "RedHat/Model-7B", False, False),
        ("ModelCloud/Model-gptq-4bit-g128", "ModelCloud/Model", False, False),
    ],
)
def test_known_by_name(name: str, original: str, certain: bool, nf4: bool) -> None:
    assert four_bit_copy(name) == (original, certain, nf4)


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen2.5-0.5B-Instruct", "unsloth/Qwen3-8B", "microsoft/bitnet-b1.58-2B-4T-bf16", "org/awqish-7B", "4bit/model",
        "embedded:smollm2-135m-instruct", "org/16bit-tales", "", "org/model-4bits-of-wisdom",
    ],
)  # fmt: skip
def test_ordinary_names(name: str) -> None:
    assert four_bit_copy(name) is None


def folder_with(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_known_by_the_config_of_a_folder(tmp_path: Path) -> None:
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}
    named = folder_with(tmp_path / "a", {"quantization_config": nf4, "_name_or_path": "org/Model-bnb-4bit"})
    assert four_bit_copy(str(named)) == ("org/Model", False, True)
    other = folder_with(tmp_path / "b-4bit", {"quantization_config": {"quant_method": "awq", "bits": 4}})
    assert four_bit_copy(str(other)) == ("", False, False)
    # A folder is what its files are, whatever it is called.
    assert four_bit_copy(str(folder_with(tmp_path / "c-bnb-4bit", {"model_type": "llama"}))) is None
    with pytest.raises(DataError, match="quantized already") as found:
        check_folder(named)
    assert "org/Model" in found.value.hint and "--load-in-4bit" in found.value.hint


def test_as_a_base_it_is_refused_with_its_original() -> None:
    with pytest.raises(DataError, match="quantized already") as found:
        check_base("unsloth/Qwen3-8B-bnb-4bit")
    assert "unsloth/Qwen3-8B." in found.value.hint
    assert not is_here("unsloth/Qwen3-8B-bnb-4bit")


def test_what_is_trained_on_nf4(tmp_path: Path) -> None:
    assert was_quantized(tmp_path, "unsloth/X-1B-unsloth-bnb-4bit")
    assert not was_quantized(tmp_path, "org/X-1B-AWQ")
    assert not was_quantized(tmp_path, "org/X-1B")
    nf4 = folder_with(tmp_path / "local", {"quantization_config": {"load_in_4bit": True}})
    assert was_quantized(tmp_path, str(nf4))


def test_the_original_of_unsloth_s_is_taken_or_said_to_be_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.small_models import tiny_llama

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    named = "unsloth/tiny-llama-unsloth-bnb-4bit"
    with pytest.raises(Exception, match=r"16-bit original unsloth/tiny-llama cannot be had") as found:
        base_of(tmp_path / "adapter", named)
    assert f"tune2ollama export {tmp_path / 'adapter'} --base" in found.value.hint  # type: ignore[attr-defined]
    snapshot = tmp_path / "hub" / "hub" / "models--unsloth--tiny-llama" / "snapshots" / ("a" * 40)
    tiny_llama(snapshot, hidden=64)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    assert base_of(tmp_path / "adapter", named) == "unsloth/tiny-llama"
    assert "its 16-bit original, is taken as base" in " ".join(capsys.readouterr().err.split())
    # Others' originals are a guess: taken where they are here, else asked for.
    with pytest.raises(DataError, match="16-bit original is needed") as asked:
        base_of(tmp_path / "adapter", "org/tiny-llama-AWQ")
    assert "--base org/tiny-llama" in asked.value.hint
