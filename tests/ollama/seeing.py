"""A tiny model that sees: Qwen2.5-VL's shape with random weights, as a text GGUF and a projector, by the pinned converter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.small_models import TREE, put_tokenizer
from toolkit.models.tokenizer import load_tokenizer
from toolkit.run.places import cache_home

AFTER_IM_END = (
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Qwen2.5-VL's special tokens, from number 151646 on."""
IMAGE_PAD = 151_655
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Turns as Qwen's, a picture as Qwen2.5-VL writes it."""


def seeing_ggufs() -> tuple[Path, Path]:
    """The model and its projector; made once, and kept."""
    kept = cache_home() / "tests" / "tiny-qwen2.5-vl-2"
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            folder, made = Path(scratch) / "hf", Path(scratch) / "made"
            made.mkdir()
            _write_model(folder)
            _convert(folder, made / "model.gguf")
            _convert(folder, made / "mmproj.gguf", "--mmproj")
            if not kept.is_dir():
                made.rename(kept)
    return kept / "model.gguf", kept / "mmproj.gguf"


def _write_model(folder: Path) -> None:
    from toolkit.export.convert import protect_template

    put_tokenizer(folder, "qwen2")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in AFTER_IM_END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(protect_template(TEMPLATE), encoding="utf-8")
    assert load_tokenizer(folder).convert_tokens_to_ids("<|image_pad|>") == IMAGE_PAD
    width = 64
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 151_936, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 4, "hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2, "out_hidden_size": width,
            "fullatt_block_indexes": [1, 3], "window_size": 112,
        },
        image_token_id=IMAGE_PAD, video_token_id=IMAGE_PAD + 1, vision_start_token_id=151_652, vision_end_token_id=151_653,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(2)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():  # so large that a picture, and its place, changes what is said
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5 * 1.5)
    model.generation_config.eos_token_id = model.config.eos_token_id = 151_645
    model.save_pretrained(folder)
    mean, spread = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 1_003_520}
    processor = {"image_mean": mean, "image_std": spread, "image_processor_type": "Qwen2VLImageProcessor", **sizes}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def _convert(folder: Path, target: Path, *options: str) -> None:
    command = [
        sys.executable,
        TREE / "convert_hf_to_gguf.py",
        folder,
        "--outfile",
        target,
        "--outtype",
        "f16",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(TREE / "gguf-py"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    found = next(iter(target.parent.glob(f"*{target.stem}*.gguf")), None)
    assert done.returncode == 0 and found is not None, done.stderr[-2000:]
    if found != target:  # the converter puts mmproj- before a projector's name
        shutil.move(found, target)
