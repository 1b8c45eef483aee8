"""Gemma 2, 3 and 4."""

from __future__ import annotations

from transformers import Gemma2Config, Gemma3TextConfig, Gemma4TextConfig, PreTrainedConfig

from tests.families.tokenizers import Vocabulary
from tests.families.zoo import Family

_TURNS = ("<start_of_turn>", "<end_of_turn>")


def _gemma2(tokens: int) -> PreTrainedConfig:
    return Gemma2Config(
        vocab_size=tokens, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096, attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, max_position_embeddings=8192, rms_norm_eps=1e-6,
    )  # fmt: skip


def _gemma3(tokens: int) -> PreTrainedConfig:
    return Gemma3TextConfig(
        vocab_size=tokens, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=2,
        num_key_value_heads=1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512, max_position_embeddings=32_768,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                         "full_attention": {"rope_type": "default", "rope_theta": 1e6}},
    )  # fmt: skip


def _gemma4(tokens: int) -> PreTrainedConfig:
    return Gemma4TextConfig(
        vocab_size=tokens, vocab_size_per_layer_input=tokens, hidden_size=256, intermediate_size=512, num_hidden_layers=10,
        num_attention_heads=2, num_key_value_heads=1, head_dim=256, global_head_dim=512, hidden_size_per_layer_input=256,
        num_kv_shared_layers=5, use_double_wide_mlp=True, sliding_window=512, final_logit_softcapping=30.0,
        layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 2, max_position_embeddings=131_072,
    )  # fmt: skip


GEMMA2 = Family(
    "gemma2", "Gemma 2 (2B)", "heads of 256, both soft caps, a window in every other layer", _gemma2,
    Vocabulary("llama-spm", "google-gemma-2-2b-it", "<end_of_turn>", own=False, bos="<s>", pad="</s>", bos_first=True,
               marks=_TURNS),
    ends=("</s>", "<end_of_turn>"), system="",
)  # fmt: skip
GEMMA3 = Family(
    "gemma3", "Gemma 3 (1B)",
    "five layers with a window to one without, two rotary bases, heads of 256, norms on q and k", _gemma3,
    Vocabulary("llama-spm", "gemma-3", "<end_of_turn>", own=False, bos="<s>", pad="</s>", bos_first=True,
               marks=_TURNS),
    ends=("</s>", "<end_of_turn>"),
)  # fmt: skip
GEMMA4 = Family(
    "gemma4", "Gemma 4 (E2B, text)",
    "a window in four of five layers, heads of 256 and 512, keys and values shared by the upper half, embeddings for each layer",
    _gemma4,
    Vocabulary("gemma-4", "google-gemma-4-31B-it", "<turn|>", bos="<bos>", pad="<pad>", bos_first=True),
    ends=("<eos>", "<turn|>", "<|tool_response>"),
    told={"enable_thinking": True},  # Ollama writes the prompts of this architecture itself, and thinks unless told otherwise
)  # fmt: skip
