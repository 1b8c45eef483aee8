"""Hyperparameters of a real conversion agree with config.json, for every RoPE scaling; a changed one is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.faults.chains import ROPE, change_json
from tests.faults.files import change_tensor, set_value
from tests.models import adapter_artifact, tiny_gemma2, tiny_llama, tiny_phi3
from tests.test_parity_exported import converted
from toolkit.parity.exported import FolderWeights, GGUFWeights
from toolkit.parity.structure import Wanted, folder_structure_check, gguf_structure_check, wanted_settings
from toolkit.parity.weights import Comparison, Tuning, compare_weights

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
            "llama.rope.scaling.factor is 2.0, rope factor is 4.0",
        ),
        (
            tiny_llama,
            LINEAR,
            lambda p: set_value(p, "llama.rope.scaling.factor", 1.0),
            "llama.rope.scaling.factor is 1.0, rope factor is 2.0",
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
            "gemma2.final_logit_softcapping is 0.0, final_logit_softcapping is 30.0",
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
    right = gguf_structure_check(tuning, export, None)
    assert (right.verdict, right.message) == ("pass", "hyperparameters, tensors and shapes are equal")
    wrong = tmp_path / "wrong.gguf"
    shutil.copy(export.path, wrong)
    damage(wrong)
    found = gguf_structure_check(tuning, GGUFWeights(wrong), None)
    assert (found.verdict, found.message) == ("fail", said)


def test_settings_of_a_configuration(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_gemma2(tmp_path / "base", layers=1, hidden=512))
    config.head_dim = 64
    found = list(wanted_settings(config, "gemma2"))
    assert found == [
        Wanted("block_count", 1, "num_hidden_layers"),
        Wanted("embedding_length", 512, "hidden_size"),
        Wanted("feed_forward_length", 1024, "intermediate_size"),
        Wanted("attention.head_count", 4, "num_attention_heads"),
        Wanted("attention.head_count_kv", 2, "num_key_value_heads"),
        Wanted("attention.layer_norm_rms_epsilon", 1e-6, "rms_norm_eps"),
        Wanted("attn_logit_softcapping", 50.0, "attn_logit_softcapping"),
        Wanted("final_logit_softcapping", 30.0, "final_logit_softcapping"),
        Wanted("attention.key_length", 64, "head_dim"),
        Wanted("attention.sliding_window", 512, "sliding_window"),
        Wanted("rope.freq_base", 10000.0, "rope_theta"),
        Wanted("rope.scaling.type", "none", "rope_type"),
    ]


def test_a_merged_folder_is_compared_with_its_base(tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base", layers=1)
    tuning = _tuning(base)
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
    assert [m.value for m in found.measures] == [2, 1, 1]
