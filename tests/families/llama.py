"""Llama 3.x, DeepSeek-R1's distillate of it, SmolLM3, Mistral and Ministral 3."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, Ministral3Config, MistralConfig, PreTrainedConfig, SmolLM3Config

from tests.families.tokenizers import Vocabulary
from tests.families.zoo import Family

_COMMON: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def _llama3(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def _llama32(tokens: int) -> PreTrainedConfig:
    return LlamaConfig(
        **_COMMON,
        vocab_size=tokens,
        rope_parameters=_llama3(32.0),
        tie_word_embeddings=True,
        max_position_embeddings=131_072,
    )


def _r1(tokens: int) -> PreTrainedConfig:
    return LlamaConfig(
        **_COMMON,
        vocab_size=tokens,
        rope_parameters=_llama3(8.0),
        tie_word_embeddings=False,
        max_position_embeddings=131_072,
    )


def _smollm3(tokens: int) -> PreTrainedConfig:
    return SmolLM3Config(
        **{**_COMMON, "num_hidden_layers": 4, "rms_norm_eps": 1e-6}, vocab_size=tokens, no_rope_layer_interval=4,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6}, tie_word_embeddings=True, max_position_embeddings=65_536,
    )  # fmt: skip


def _nemo(tokens: int) -> PreTrainedConfig:
    return MistralConfig(
        **_COMMON, vocab_size=tokens, head_dim=128, sliding_window=None, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, max_position_embeddings=131_072,
    )  # fmt: skip


def _ministral3(tokens: int) -> PreTrainedConfig:
    rope = {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384, "beta_fast": 32.0,
        "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    return Ministral3Config(
        **_COMMON,
        vocab_size=tokens,
        head_dim=128,
        rope_parameters=rope,
        tie_word_embeddings=True,
        max_position_embeddings=262_144,
    )


LLAMA3 = Family(
    "llama3", "Llama 3.x (3.2)", "rotary scaling of Llama 3 (factor 32), tied head", _llama32,
    Vocabulary(
        "llama-bpe", "meta-llama-Llama-3.2-3B-Instruct", "<|eot_id|>", bos="<|begin_of_text|>", bos_first=True,
        pad="<|finetune_right_pad_id|>",
        renamed={128004: "<|finetune_right_pad_id|>", 128008: "<|eom_id|>", 128010: "<|python_tag|>"},
    ),
    ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
)  # fmt: skip
R1_LLAMA = Family(
    "r1-llama", "DeepSeek-R1-Distill-Llama", "Llama 3.1's shape with a head of its own; DeepSeek's marks", _r1,
    Vocabulary(
        "llama-bpe", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>",
        bos_first=True, words=("<think>", "</think>"),
        renamed={
            128000: "<｜begin▁of▁sentence｜>", 128001: "<｜end▁of▁sentence｜>", 128011: "<｜User｜>", 128012: "<｜Assistant｜>",
            128013: "<think>", 128014: "</think>", 128015: "<｜▁pad▁｜>",
        },
    ),
)  # fmt: skip
SMOLLM3 = Family(
    "smollm3", "SmolLM3", "no rotary positions in every fourth layer; thinking template", _smollm3,
    Vocabulary(
        "llama-bpe", "HuggingFaceTB-SmolLM3-3B", "<|im_end|>", pad="<|im_end|>", words=("<think>", "</think>"),
        bos="<|begin_of_text|>",
        renamed={128002: "<think>", 128003: "</think>", 128011: "<|im_start|>", 128012: "<|im_end|>"},
    ),
)  # fmt: skip
_TOOLS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]")
MISTRAL = Family(
    "mistral", "Mistral (Nemo)", "heads of 128 that are wider than the model, a head of its own", _nemo,
    Vocabulary(
        "smollm2", "mistralai-Mistral-Nemo-Instruct-2407", "</s>", own=False, bos="<s>",
        marks=("<s>", "</s>", "[INST]", "[/INST]", *_TOOLS),
    ),
)  # fmt: skip
MINISTRAL3 = Family(
    "ministral3", "Ministral 3", "yarn (factor 16) and temperature by position, tied head; thinking template", _ministral3,
    Vocabulary(
        "smollm2", "mistralai-Ministral-3-14B-Reasoning-2512", "</s>", own=False, bos="<s>", pad="<pad>",
        marks=("<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[ARGS]", "[CALL_ID]",
               "[THINK]", "[/THINK]", *_TOOLS),
    ),
)  # fmt: skip
