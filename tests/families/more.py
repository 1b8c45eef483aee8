"""Phi-3 and 4, gpt-oss, GLM-4, OLMo 2 and 3, ERNIE 4.5, Hunyuan, EXAONE 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Ernie4_5Config,
    Exaone4Config,
    Glm4Config,
    GptOssConfig,
    HunYuanDenseV1Config,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
)

from tests.families.tokenizers import Vocabulary
from tests.families.zoo import Family
from tests.small_models import put_tokenizer
from tests.spm_tokenizers import SIZES

_COMMON: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def _default(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


def _longrope(pairs: int, partial: float) -> dict[str, Any]:
    # Grows from 1 as the published factors do; the long ones faster.
    return {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": partial, "original_max_position_embeddings": 4096,
        "short_factor": [1.0 + i / pairs for i in range(pairs)], "long_factor": [1.0 + 30.0 * i / pairs for i in range(pairs)],
    }  # fmt: skip


def _phi3(tokens: int) -> PreTrainedConfig:
    return Phi3Config(
        **{**_COMMON, "num_key_value_heads": 4}, vocab_size=tokens, rms_norm_eps=1e-5, max_position_embeddings=131_072,
        original_max_position_embeddings=4096, rope_parameters=_longrope(32, 1.0), sliding_window=262_144,
        tie_word_embeddings=False,
    )  # fmt: skip


def _phi4(tokens: int) -> PreTrainedConfig:
    return Phi3Config(
        **{**_COMMON, "num_attention_heads": 2, "num_key_value_heads": 1}, vocab_size=tokens, rms_norm_eps=1e-5,
        max_position_embeddings=131_072, original_max_position_embeddings=4096, rope_parameters=_longrope(48, 0.75),
        sliding_window=262_144, tie_word_embeddings=True,
    )  # fmt: skip


def _gpt_oss(tokens: int) -> PreTrainedConfig:
    rope = {
        "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    return GptOssConfig(
        **{**_COMMON, "intermediate_size": 256}, vocab_size=tokens, head_dim=64, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=128, layer_types=["sliding_attention", "full_attention"], rope_parameters=rope, rms_norm_eps=1e-5,
        max_position_embeddings=131_072, tie_word_embeddings=False,
    )  # fmt: skip


def _glm4(tokens: int) -> PreTrainedConfig:
    return Glm4Config(
        **_COMMON, vocab_size=tokens, head_dim=128, attention_bias=True, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_parameters=_default(1e4, partial_rotary_factor=0.5), max_position_embeddings=32_768,
    )  # fmt: skip


def _olmo2(tokens: int) -> PreTrainedConfig:
    return Olmo2Config(
        **{**_COMMON, "num_key_value_heads": 4}, vocab_size=tokens, rms_norm_eps=1e-6, rope_parameters=_default(5e5),
        max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip


def _olmo3(tokens: int) -> PreTrainedConfig:
    yarn = {
        "rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0,
        "beta_slow": 1.0, "attention_factor": 1.2079441541679836,
    }  # fmt: skip
    return Olmo3Config(
        **{**_COMMON, "num_key_value_heads": 4, "num_hidden_layers": 4}, vocab_size=tokens, rms_norm_eps=1e-6,
        sliding_window=4096,
        layer_types=["sliding_attention"] * 3 + ["full_attention"], max_position_embeddings=65_536, tie_word_embeddings=False,
        rope_parameters={"sliding_attention": _default(5e5), "full_attention": yarn},
    )  # fmt: skip


def _ernie45(tokens: int) -> PreTrainedConfig:
    return Ernie4_5Config(
        **_COMMON, vocab_size=tokens, head_dim=128, rms_norm_eps=1e-5, rope_parameters=_default(5e5), tie_word_embeddings=True,
        max_position_embeddings=131_072,
    )  # fmt: skip


def _hunyuan(tokens: int) -> PreTrainedConfig:
    rope = {
        "rope_type": "dynamic", "rope_theta": 10_000.0, "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip
    return HunYuanDenseV1Config(
        **_COMMON, vocab_size=tokens, head_dim=128, rms_norm_eps=1e-5, rope_parameters=rope, tie_word_embeddings=True,
        max_position_embeddings=262_144, eod_token_id=None,
    )  # fmt: skip


def _exaone4(tokens: int) -> PreTrainedConfig:
    rope = {
        "rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return Exaone4Config(
        **_COMMON, vocab_size=tokens, rms_norm_eps=1e-5, rope_parameters=rope, sliding_window=None, sliding_window_pattern=None,
        layer_types=["full_attention"] * 2, tie_word_embeddings=True, max_position_embeddings=65_536,
    )  # fmt: skip


def _put_phi3(folder: Path) -> int:
    put_tokenizer(folder, "phi3")
    return SIZES["phi3"]


PHI3 = Family(
    "phi3",
    "Phi-3.5 mini",
    "q, k, v in one matrix, gate and up in another, long rotary factors",
    _phi3,
    None,
    _put_phi3,
    teaching=(240, 4e-3),
)
PHI4 = Family(
    "phi4", "Phi-4-mini", "three quarters rotary with long factors, heads of 128, tied head", _phi4,
    Vocabulary("smollm2", "phi-4-mini", "<|endoftext|>", own=False, bos="<|endoftext|>", tokenizer_class="GPT2Tokenizer",
               marks=("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
    ends=("<|end|>", "<|endoftext|>"),
)  # fmt: skip
GPT_OSS = Family(
    "gpt-oss", "gpt-oss (16-bit copy)",
    "sinks, a window of 128 in every other layer, yarn (factor 32), experts with biases; 4 experts, 2 used",
    _gpt_oss,
    Vocabulary("smollm2", "openai-gpt-oss-120b", "<|return|>", own=False, bos="<|startoftext|>", pad="<|endoftext|>",
               marks=("<|startoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>",
                      "<|call|>")),
    ends=("<|return|>", "<|endoftext|>", "<|call|>"), teaching=(120, 2e-3), tuning=(150, 6e-3),
    converted="F16",
    note="llama.cpp rounds the range of yarn, which the published model does not (truncate: false): 2e-12 where both round",
)  # fmt: skip
GLM4 = Family(
    "glm4", "GLM-4 (0414)", "half rotary, four norms a layer, biases on q, k, v, heads of 128", _glm4,
    Vocabulary("smollm2", "glm-4-0414", "<|endoftext|>", own=False,
               marks=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")),
    ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
)  # fmt: skip
OLMO2 = Family(
    "olmo2", "OLMo 2", "norms behind attention and MLP, norms over all of q and k", _olmo2,
    Vocabulary("smollm2", "olmo-2", "<|endoftext|>", own=False, bos="<|endoftext|>", marks=("<|pad|>",), pad="<|pad|>"),
)  # fmt: skip
OLMO3 = Family(
    "olmo3", "OLMo 3", "as OLMo 2, a window in three of four layers, yarn (factor 8) in the others", _olmo3,
    Vocabulary("smollm2", "olmo-3", "<|endoftext|>", own=False, bos="<|endoftext|>", marks=("<|pad|>",), pad="<|pad|>"),
)  # fmt: skip
ERNIE45 = Family(
    "ernie45", "ERNIE 4.5 (0.3B)", "heads of 128 that are wider than the model, rotary positions in pairs", _ernie45,
    Vocabulary("llama-spm", "ernie-4.5", "</s>", own=False, bos="<s>", pad="<unk>",
               marks=("<|begin_of_sentence|>", "<|end_of_sentence|>")),
    ends=("</s>", "<|end_of_sentence|>"),
)  # fmt: skip
HUNYUAN = Family(
    "hunyuan", "Hunyuan (dense)", "rotary base stretched by alpha, norms on q and k behind the rotation", _hunyuan,
    Vocabulary("smollm2", "hunyuan-dense", "<｜hy_place▁holder▁no▁2｜>", own=False, bos="<｜hy_begin▁of▁sentence｜>",
               pad="<｜hy_▁pad▁｜>",
               marks=("<｜hy_begin▁of▁sentence｜>", "<｜hy_end▁of▁sentence｜>", "<｜hy_▁pad▁｜>", "<｜hy_User｜>",
                      "<｜hy_Assistant｜>", "<｜hy_place▁holder▁no▁2｜>", "<｜hy_place▁holder▁no▁3｜>")),
)  # fmt: skip
EXAONE4 = Family(
    "exaone4", "EXAONE 4 (1.2B)", "norms behind attention and MLP, norms on q and k, rotary scaling of Llama 3", _exaone4,
    Vocabulary("smollm2", "exaone-4", "[|endofturn|]", own=False, bos="[BOS]", pad="[PAD]",
               marks=("[BOS]", "[PAD]", "[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]")),
)  # fmt: skip
