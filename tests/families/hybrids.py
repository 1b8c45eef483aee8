"""LFM2 and Granite 4: layers of convolution or state space beside layers of attention."""

from __future__ import annotations

from typing import Any

from transformers import GraniteMoeHybridConfig, Lfm2Config, PreTrainedConfig

from tests.families.tokenizers import Vocabulary
from tests.families.zoo import Family


def _lfm2(tokens: int) -> PreTrainedConfig:
    return Lfm2Config(
        vocab_size=tokens, hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, conv_L_cache=3, block_multiple_of=256, block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=True, norm_eps=1e-5, layer_types=["conv", "conv", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, max_position_embeddings=128_000,
        tie_word_embeddings=True,
    )  # fmt: skip


def _granite(tokens: int, layer_types: list[str], **more: Any) -> PreTrainedConfig:
    whole_eights = -(-tokens // 8) * 8  # as published; the converter fills the vocabulary up to them
    return GraniteMoeHybridConfig(
        vocab_size=whole_eights, hidden_size=256, intermediate_size=512, shared_intermediate_size=512,
        num_hidden_layers=len(layer_types), num_attention_heads=4, num_key_value_heads=2, layer_types=layer_types,
        num_local_experts=0, num_experts_per_tok=0, embedding_multiplier=12.0, residual_multiplier=0.22,
        attention_multiplier=0.015625, logits_scaling=8.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        mamba_n_heads=8, mamba_d_head=64, mamba_d_state=128, mamba_n_groups=1, mamba_d_conv=4, mamba_expand=2,
        mamba_chunk_size=32,  # how it is computed, not what: the larger the slower, without a kernel
        max_position_embeddings=131_072, **more,
    )  # fmt: skip


def _granite4(tokens: int) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e7}
    return _granite(tokens, ["attention"] * 2, position_embedding_type="rope", rope_parameters=rope)


def _granite4_h(tokens: int) -> PreTrainedConfig:
    return _granite(tokens, ["mamba", "attention"], position_embedding_type="nope")


LFM2 = Family(
    "lfm2", "LFM2 / LFM2.5", "two layers of short convolution to one of attention: key-value heads by layer", _lfm2,
    Vocabulary(
        "smollm2", "LFM2.5-Instruct", "<|im_end|>", own=False, bos="<|startoftext|>", pad="<|pad|>",
        marks=("<|pad|>", "<|startoftext|>", "<|tool_list_start|>", "<|tool_list_end|>"), words=("<think>", "</think>"),
    ),
    teaching=(240, 4e-3),
)  # fmt: skip
_GRANITE = Vocabulary(
    "smollm2", "ibm-granite-granite-4.0", "<|end_of_text|>", own=False, bos="<|end_of_text|>", pad="<|pad|>",
    marks=("<|end_of_text|>", "<|pad|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
)  # fmt: skip
GRANITE4 = Family(
    "granite4",
    "Granite 4 (micro)",
    "four scales, attention in every layer, no experts",
    _granite4,
    _GRANITE,
    embedding=0.02,
    final_norm=40.0,
    # transformers 5 writes "full_attention", which the converter takes for a layer with a state space.
    published={"layer_types": ["attention"] * 2},
)
GRANITE4_H = Family(
    "granite4-h",
    "Granite 4 H",
    "state-space layers (Mamba 2) beside attention without positions; four scales",
    _granite4_h,
    _GRANITE,
    embedding=0.02,
    final_norm=40.0,
    published={"layer_types": ["mamba", "attention"]},
)
