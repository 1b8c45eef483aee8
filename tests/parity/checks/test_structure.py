"""Hyperparameters of a real conversion agree with config.json, for every RoPE scaling; a changed one is named."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.faults.chains import ROPE, change_json
from tests.faults.files import add_key, change_tensor, set_value
from tests.models.test_layout import converted, layout_of_folder
from tests.small_models import adapter_artifact, tiny_adapter, tiny_gemma2, tiny_llama, tiny_phi3
from toolkit.models.layout import Layout
from toolkit.parity.checks.structure import folder_structure_check, gguf_structure_check
from toolkit.parity.comparison import Comparison, compare_weights
from toolkit.parity.exported import FolderWeights, GGUFWeights
from toolkit.parity.metadata import compare_metadata
from toolkit.parity.tuning import Tuning

pytestmark = pytest.mark.slow

LONG, SHORT = [1.0 + i / 8 for i in range(32)], [1.0] * 32
YARN = {"rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 512}
LINEAR = {"rope_type": "linear", "rope_theta": 1e5, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "long_factor": LONG, "short_factor": SHORT,
    "original_max_position_embeddings": 1024,
}  # fmt: skip
Make = Callable[..., Path]


def _tuning(base: Path) -> Tuning:
    return Tuning(adapter_artifact(base, base, "full"), "as trained")


def _checked(tuning: Tuning, path: Path) -> Any:
    export = GGUFWeights(path, tuning.layout)
    compared = compare_weights(tuning, {"": export}, lambda _: 1.0)[""]
    return gguf_structure_check(compared, compare_metadata(tuning.layout.metadata, export.header))


@dataclass(frozen=True)
class Right:
    """A small Llama and its file, converted once for all tests that only look, or that change a copy."""

    base: Path
    file: Path
    layout: Layout

    def read(self) -> GGUFWeights:
        """The file, with metadata that may be changed."""
        return GGUFWeights(self.file, self.layout)

    def copy(self, out: Path) -> GGUFWeights:
        """A file of one's own."""
        return GGUFWeights(Path(shutil.copy(self.file, out / "copy.gguf")), self.layout)


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Right:
    folder = tmp_path_factory.mktemp("right")
    base = tiny_llama(folder / "base", layers=1)
    return Right(base, converted(base, folder / "out").path, layout_of_folder(base))


def _as_one(values: Any) -> Any:
    return values * 0 + 1


@pytest.mark.parametrize(
    ("make", "rope", "damage", "said"),
    [
        (
            tiny_llama,
            ROPE,
            lambda p: change_tensor(p, "rope_freqs.weight", _as_one),
            "the right rope_freqs.weight is missing",
        ),
        (
            tiny_llama,
            YARN,
            lambda p: set_value(p, "llama.rope.scaling.factor", 2.0),
            "llama.rope.scaling.factor is 2.0, and should be 4.0",
        ),
        (
            tiny_llama,
            LINEAR,
            lambda p: set_value(p, "llama.rope.scaling.factor", 1.0),
            "llama.rope.scaling.factor is 1.0, and should be 2.0",
        ),
        (
            tiny_phi3,
            LONGROPE,
            lambda p: change_tensor(p, "rope_factors_long.weight", _as_one),
            "the right rope_factors_long.weight is missing",
        ),
        (
            tiny_gemma2,
            None,
            lambda p: set_value(p, "gemma2.final_logit_softcapping", 0.0),
            "gemma2.final_logit_softcapping is 0.0, and should be 30.0",
        ),
    ],
    ids=["llama3", "yarn", "linear", "longrope", "gemma2"],
)
def test_a_right_conversion_passes_and_a_changed_value_is_named(
    make: Make, rope: dict[str, Any] | None, damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    base = make(tmp_path / "base", layers=1)
    if rope is not None:
        original = {"original_max_position_embeddings": 1024} if make is tiny_phi3 else {}
        change_json(base / "config.json", rope_parameters=rope, **original)
    export, tuning = converted(base, tmp_path / "out"), _tuning(base)
    right = _checked(tuning, export.path)
    assert (right.verdict, right.message) == ("pass", "hyperparameters, tensors and shapes are equal")
    wrong = tmp_path / "wrong.gguf"
    shutil.copy(export.path, wrong)
    damage(wrong)
    found = _checked(tuning, wrong)
    assert (found.verdict, found.message) == ("fail", said)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("llama.context_length", 512, "llama.context_length is 512, and should be 2048"),
        ("llama.attention.layer_norm_rms_epsilon", 1e-3, "llama.attention.layer_norm_rms_epsilon is 0.001"),
        ("llama.rope.dimension_count", 32, "llama.rope.dimension_count is 32, and should be 64"),
    ],
)
def test_any_number_that_llama_cpp_reads_counts(
    key: str, value: float, said: str, right: Right, tmp_path: Path
) -> None:
    export = right.copy(tmp_path)
    set_value(export.path, key, value)
    found = _checked(_tuning(right.base), export.path)
    assert found.verdict == "fail" and said in found.message


@pytest.mark.parametrize(
    ("key", "value", "verdict"),
    [
        ("llama.attention.scale", 0.5, "fail"),
        ("llama.attention.sliding_window", 64, "fail"),
        ("llama.attention.sliding_window", 0, "pass"),
        ("llama.expert_count", 0, "pass"),
        ("llama.a_key_of_tomorrow", 7, "pass"),
        ("general.author", "somebody", "pass"),
        ("somebody.else", "anything", "pass"),
    ],
)
def test_a_key_that_the_converter_does_not_write(key: str, value: Any, verdict: str, right: Right) -> None:
    export = right.read()
    export.header.metadata[key] = value
    keys = compare_metadata(right.layout.metadata, export.header)
    found = gguf_structure_check(Comparison(), keys)
    assert found.verdict == verdict, found.message
    assert key in str(found.details)


def test_a_key_that_is_missing_counts_unless_llama_cpp_does_the_same_without_it(right: Right) -> None:
    layout, export = right.layout, right.read()
    metadata = export.header.metadata
    for key in (
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.dimension_count",
        "llama.vocab_size",
    ):
        del metadata[key]
    assert compare_metadata(layout.metadata, export.header).different == []
    del metadata["llama.attention.head_count_kv"]
    (found,) = compare_metadata(layout.metadata, export.header).different
    assert found.told() == "llama.attention.head_count_kv is missing, it should be 2"


def test_tables_of_the_tokenizer_are_compared_entry_by_entry(right: Right) -> None:
    layout, export = right.layout, right.read()
    metadata = export.header.metadata
    assert compare_metadata(layout.metadata, export.header).of("tokenizer") == []
    metadata["tokenizer.ggml.token_type"][2] = 1
    metadata["tokenizer.ggml.merges"][3:5] = metadata["tokenizer.ggml.merges"][4:2:-1]
    told = [difference.told() for difference in compare_metadata(layout.metadata, export.header).of("tokenizer")]
    assert len(told) == 2 and "token_type [2] is 1, and should be 3" in told[0] and "merges [3] is" in told[1]


def test_another_architecture_is_named_first(right: Right, tmp_path: Path) -> None:
    export = converted(tiny_phi3(tmp_path / "phi3", layers=1), tmp_path / "out")
    keys = compare_metadata(right.layout.metadata, export.header)
    found = gguf_structure_check(Comparison(missing=["everything"]), keys)
    wanted = "general.architecture is phi3, and the base converts to llama: name a file that was made from this base"
    assert (found.verdict, found.message) == ("fail", wanted)


def test_rope_factors_that_the_model_does_not_have(right: Right, tmp_path: Path) -> None:
    rotated = tmp_path / "rotated"
    shutil.copytree(right.base, rotated)
    change_json(rotated / "config.json", rope_parameters=ROPE)
    tuning, export = _tuning(right.base), converted(rotated, tmp_path / "out")
    set_value(export.path, "llama.rope.freq_base", 100_000.0)

    assert _checked(tuning, export.path).message == "rope_freqs.weight is there, and the model has no such tensor"
    change_tensor(export.path, "rope_freqs.weight", _as_one)
    assert _checked(tuning, export.path).verdict == "pass"


def test_a_folder_of_peft_from_an_old_configuration_is_the_same_structure(tmp_path: Path) -> None:
    # As transformers 4 wrote it; save_pretrained of transformers 5 spells it anew, and fills it up.
    base = tiny_llama(tmp_path / "base", layers=1)
    change_json(
        base / "config.json", rope_parameters=None, head_dim=None, attention_bias=None, mlp_bias=None, dtype=None,
        rope_theta=100_000.0, rope_scaling=None, torch_dtype="float32",
    )  # fmt: skip
    adapter = tiny_adapter(base, tmp_path / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    raw = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (base, tmp_path / "merged")]
    assert "rope_parameters" in raw[1] and "rope_parameters" not in raw[0]
    tuning = Tuning(adapter_artifact(adapter, base), "as trained")
    compared = compare_weights(tuning, {"merged": FolderWeights(tmp_path / "merged")}, lambda _: 1e-5)["merged"]
    found = folder_structure_check(tuning, tmp_path / "merged", compared)
    assert (found.verdict, found.message) == ("pass", "hyperparameters, tensors and shapes are equal")
    change_json(tmp_path / "merged" / "config.json", rope_parameters={"rope_theta": 2e5, "rope_type": "default"})
    found = folder_structure_check(tuning, tmp_path / "merged", compared)
    assert found.verdict == "fail"
    assert found.message.startswith("rope_parameters is")


def test_a_merged_folder_is_compared_with_its_base(right: Right, tmp_path: Path) -> None:
    base, tuning = right.base, _tuning(right.base)
    same = compare_weights(tuning, {"base": FolderWeights(base)}, lambda _: 1.0)["base"]
    assert folder_structure_check(tuning, base, same).verdict == "pass"
    other = tmp_path / "other"
    shutil.copytree(base, other)
    change_json(other / "config.json", rms_norm_eps=1e-3, tie_word_embeddings=False)
    found = folder_structure_check(
        tuning, other, Comparison(missing=["lm_head.weight"], shapes=[("a", (2, 3), (3, 2))])
    )
    assert found.verdict == "fail"
    assert found.message == (
        "rms_norm_eps is 0.001, the base's config.json is 1e-05; tie_word_embeddings is False, the adapter is True; "
        "lm_head.weight is missing; a has shape [3, 2], not [2, 3]"
    )
    assert [m.value for m in found.measures] == [2, 1, 1, 0]


def test_settings_of_sampling_in_a_file_are_warned_of(right: Right, tmp_path: Path) -> None:
    tuning, file = _tuning(right.base), right.copy(tmp_path).path
    assert _checked(tuning, file).details["warned"] == []
    add_key(file, "general.sampling.temp", struct.pack("<If", 6, 5.0))
    check = _checked(tuning, file)
    assert check.verdict == "pass"
    assert check.details["warned"] == [
        "general.sampling.temp is 5.0, and a right file has no such key: llama.cpp's own programs draw with it, Ollama does not"
    ]
