"""Qwen2.5, Qwen3, its mixture of experts, Qwen3.5 with linear attention, and DeepSeek-R1's distillate of Qwen2.5."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, Qwen2Config, Qwen3_5TextConfig, Qwen3Config, Qwen3MoeConfig

from tests.families.tokenizers import Vocabulary
from tests.families.zoo import Family

_ROWS = 151_936
"""Rows of the published embeddings: more than there are tokens."""
_COMMON: dict[str, Any] = {
    "vocab_size": _ROWS, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768,
}  # fmt: skip
_QWEN3_MARKS = {
    151646: "<|object_ref_start|>", 151647: "<|object_ref_end|>", 151648: "<|box_start|>", 151649: "<|box_end|>",
    151650: "<|quad_start|>", 151651: "<|quad_end|>", 151652: "<|vision_start|>", 151653: "<|vision_end|>",
    151654: "<|vision_pad|>", 151655: "<|image_pad|>", 151656: "<|video_pad|>", 151657: "<tool_call>",
    151658: "</tool_call>", 151659: "<|fim_prefix|>", 151660: "<|fim_middle|>", 151661: "<|fim_suffix|>",
    151662: "<|fim_pad|>", 151663: "<|repo_name|>", 151664: "<|file_sep|>",
}  # fmt: skip
_THINKING = {151665: "<tool_response>", 151666: "</tool_response>", 151667: "<think>", 151668: "</think>"}
_WORDS = ("<tool_call>", "</tool_call>", *_THINKING.values())
_R1_MARKS = {
    151643: "<｜end▁of▁sentence｜>", 151644: "<｜User｜>", 151645: "<｜Assistant｜>", 151646: "<｜begin▁of▁sentence｜>",
    151647: "<|EOT|>", 151648: "<think>", 151649: "</think>",
}  # fmt: skip


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **more}


def _qwen25(_: int) -> PreTrainedConfig:
    return Qwen2Config(**_COMMON, rope_parameters=_rope(1e6), tie_word_embeddings=True)


def _r1(_: int) -> PreTrainedConfig:
    return Qwen2Config(**_COMMON, rope_parameters=_rope(1e4), tie_word_embeddings=False)


def _qwen3(_: int) -> PreTrainedConfig:
    return Qwen3Config(**_COMMON, head_dim=128, rope_parameters=_rope(1e6), tie_word_embeddings=True)


def _qwen3_moe(_: int) -> PreTrainedConfig:
    return Qwen3MoeConfig(
        **_COMMON, head_dim=128, rope_parameters=_rope(1e6), tie_word_embeddings=False, num_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=256, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
    )  # fmt: skip


def _qwen35(_: int) -> PreTrainedConfig:
    rope = _rope(1e7, partial_rotary_factor=0.25, mrope_interleaved=True, mrope_section=[11, 11, 10])
    return Qwen3_5TextConfig(
        **{**_COMMON, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1}, head_dim=256,
        rope_parameters=rope, tie_word_embeddings=True, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=128,
        linear_value_head_dim=128, linear_conv_kernel_dim=4, full_attention_interval=4,
        layer_types=["linear_attention"] * 3 + ["full_attention"],
    )  # fmt: skip


QWEN25 = Family(
    "qwen25", "Qwen2.5", "biases on q, k, v; tied head", _qwen25,
    Vocabulary("qwen2", "Qwen-Qwen2.5-7B-Instruct", "<|im_end|>", pad="<|endoftext|>", renamed=_QWEN3_MARKS, words=_WORDS[:2]),
    ends=("<|im_end|>", "<|endoftext|>"),
)  # fmt: skip
QWEN3 = Family(
    "qwen3", "Qwen3", "heads of 128 that are wider than the model, norms on q and k; thinking template", _qwen3,
    Vocabulary("qwen2", "Qwen-Qwen3-0.6B", "<|im_end|>", pad="<|endoftext|>", renamed=_QWEN3_MARKS | _THINKING, words=_WORDS),
    ends=("<|im_end|>", "<|endoftext|>"),
)  # fmt: skip
QWEN3_MOE = Family(
    "qwen3-moe", "Qwen3-MoE (30B-A3B)", "every layer of experts, normed top-k, a head of its own; 8 experts, 2 used", _qwen3_moe,
    QWEN3.vocabulary, ends=QWEN3.ends,
)  # fmt: skip
QWEN35 = Family(
    "qwen35", "Qwen3.5 (text)",
    "three layers of linear attention to one of full, twice as many value heads, gated heads of 256, quarter rotary", _qwen35,
    Vocabulary("qwen35", "Qwen3.5-4B", "<|im_end|>", own=False, pad="<|endoftext|>", renamed=_QWEN3_MARKS | _THINKING,
               words=_WORDS),
    ends=("<|im_end|>", "<|endoftext|>"),
)  # fmt: skip
R1_QWEN = Family(
    "r1-qwen", "DeepSeek-R1-Distill-Qwen", "Qwen2.5's shape with a head of its own; DeepSeek's marks", _r1,
    Vocabulary(
        "qwen2", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>",
        bos_first=True, renamed=_R1_MARKS, words=("<think>", "</think>"),
    ),
)  # fmt: skip
