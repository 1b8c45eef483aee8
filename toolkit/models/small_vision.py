"""The embedded base that sees: Qwen2.5-VL's architecture at a few million parameters, built in code.

True are the architecture, the tokenizer with its special tokens and their numbers, the chat template's form and what the
processor does with a picture. The weights begin at random and are schooled once (`toolkit.models.schooling`): the base names
the colour of a shape, and a thing that has it, and knows nothing else. It is for trying the whole chain on a CPU, not for use.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from toolkit.models.pictures import rules_of
from toolkit.models.qwen2_tokenizer import (
    IMAGE,
    OF_VISION,
    TURN_END,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY_ROWS,
    write_tokenizer,
)
from toolkit.run.artifacts import write_json, write_text

NAME = "qwen2.5-vl-small"
LICENSE = "apache-2.0"
DESCRIPTION = {"name": "A small Qwen2.5-VL for trying"}
"""As GGUF metadata names a base model."""
BUILD = 5
"""Counts up when the built folder changes."""
CONTEXT = 8192
WIDTH = 256
"""Of the language model: K-quants have blocks of 256."""
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif 'text' in part %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Writes what Qwen2.5-VL's template writes of texts and pictures."""
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def find_gguf() -> Path:
    """The vocabulary that its tokenizer is made from, in the pinned llama.cpp tree.

    Raises:
        ExternalToolError: the tree is not here.
    """
    from toolkit.export.llama_cpp import tree

    return tree() / "models" / "ggml-vocab-qwen2.gguf"


def build(folder: Path) -> None:
    """Write the HF folder: float32 safetensors, config, tokenizer, chat template, processor; it takes some minutes. The folder
    appears complete or not at all.

    Raises:
        ExternalToolError: the pinned llama.cpp tree, which has the tokenizer's vocabulary, is not here.
        ResourceError: the disk is full.
    """
    from toolkit.models.safetensors_file import writing
    from toolkit.models.schooling import school
    from toolkit.models.tokenizer import load_tokenizer

    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        model = fresh_model()
        with writing(partial):
            write_settings(model, partial)
            school(model, load_tokenizer(partial), rules_of(partial))
            model.save_pretrained(partial)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_settings(model: Any, folder: Path) -> None:
    """Write what such a folder holds besides weights."""
    write_tokenizer(folder, find_gguf(), OF_VISION, CONTEXT)
    write_text(folder / "chat_template.jinja", TEMPLATE)
    write_json(folder / "preprocessor_config.json", _processor())
    model.config.save_pretrained(folder)


def fresh_model() -> Any:
    """The model as it begins: always the same, on one machine. Norms and biases are random too, so that a lost one shows."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY_ROWS, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [8, 12, 12]},
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [3], "window_size": 112,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.data += 0.05 * noise
            else:
                # The configuration's 0.02 is for wide models; here a layer would pass on next to nothing, and no word would
                # stand out from 150,000 others.
                parameter.data = noise * (0.08 if "embed_tokens" in name else parameter[0].numel() ** -0.5)
    model.config.eos_token_id = model.generation_config.eos_token_id = TURN_END
    return model


def _processor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        "image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
        "min_pixels": 3136, "max_pixels": 12_845_056,
    }  # fmt: skip
