"""Small random models that see, of the shapes that people tune: true layer patterns, scales and processors, few weights.

Random biases and norms too, so that a lost one shows. Tokenizers are those of the llama.cpp tree, with the marks of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from tests.families.tokenizers import Vocabulary, put_vocabulary
from tests.small_models import put_tokenizer
from toolkit.models.tokenizer import load_tokenizer

QWEN_MARKS = (
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Qwen-VL's special tokens, from number 151646 on."""
IMAGE_PAD = 151_655
SMOLVLM_MARKS = ("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>")
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
TEMPLATE = (
    "{{% for message in messages %}}{{{{ '<|im_start|>' + message.role + '\\n' }}}}"
    "{{% if message.content is string %}}{{{{ message.content }}}}{{% else %}}{{% for part in message.content %}}"
    "{{% if part.type == 'image' %}}{{{{ '{picture}' }}}}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}{{{{ '<|im_end|>\\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"
)
"""Turns as Qwen's; `picture` is what the family writes for one."""
WIDTH = 256
"""Of a language model whose rows K-quants can take."""


def _text(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, **more,
    }  # fmt: skip


def _qwen_config(family: str) -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    text, vision = _text(vocab_size=151_936, rope_parameters=rope), {"depth": 4, "num_heads": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 64, "hidden_size": WIDTH, "mlp_ratio": 2}
    elif family == "qwen2_5_vl":
        vision |= {
            # No fewer: the converter knows the merger's second layer as one of block 2.
            "depth": 3, "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": WIDTH, "fullatt_block_indexes": [1],
            "window_size": 112,
        }  # fmt: skip
    else:
        text |= {"head_dim": 64, "rope_parameters": {**rope, "mrope_interleaved": True}}
        vision |= {
            "hidden_size": 64, "intermediate_size": 96, "out_hidden_size": WIDTH, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [1, 2, 3],
        }  # fmt: skip
        text["num_hidden_layers"] = 4
    return CONFIG_MAPPING[family](
        text_config=text, vision_config=vision, image_token_id=IMAGE_PAD, video_token_id=IMAGE_PAD + 1,
        vision_start_token_id=151_652, vision_end_token_id=151_653, tie_word_embeddings=True,
    )  # fmt: skip


def _qwen(family: str, folder: Path) -> Any:
    put_tokenizer(folder, "qwen2")
    _add_marks(folder, QWEN_MARKS, "<|vision_start|><|image_pad|><|vision_end|>")
    assert load_tokenizer(folder).convert_tokens_to_ids("<|image_pad|>") == IMAGE_PAD
    side = 16 if family == "qwen3_vl" else 14
    sizes = {"patch_size": side, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 3136, "max_pixels": 1_003_520}
    normal = HALF if family == "qwen3_vl" else CLIP
    _put_processor(folder, {"image_processor_type": "Qwen2VLImageProcessor", **normal, **sizes})
    config = _qwen_config(family)
    config.eos_token_id = 151_645
    return config


def _gemma3(family: str, folder: Path) -> Any:
    marks = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
    size = put_vocabulary(
        Vocabulary("llama-spm", "gemma-3", "<end_of_turn>", own=False, bos="<s>", pad="</s>", bos_first=True, marks=marks), folder
    )  # fmt: skip
    tokenizer = load_tokenizer(folder)
    begin, end, soft = (tokenizer.convert_tokens_to_ids(mark) for mark in marks[2:])
    _put_processor(
        folder, {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 896, "width": 896}, **HALF}
    )
    config = CONFIG_MAPPING[family](
        text_config=_text(
            vocab_size=size, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1, head_dim=256,
            query_pre_attn_scalar=256, sliding_window=512,
            layer_types=["sliding_attention"] * 5 + ["full_attention"],
        ),
        vision_config={
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 896,
            "patch_size": 14, "vision_use_head": False,
        },
        mm_tokens_per_image=256, boi_token_index=begin, eoi_token_index=end, image_token_index=soft,
    )  # fmt: skip
    config.eos_token_id = tokenizer.eos_token_id
    return config


def _smolvlm(family: str, folder: Path) -> Any:
    put_tokenizer(folder)
    size = _add_marks(folder, SMOLVLM_MARKS, "<image>")
    sizes = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}, "do_image_splitting": False}
    kind = "SmolVLMImageProcessor" if family == "smolvlm" else "Idefics3ImageProcessor"
    _put_processor(folder, {"image_processor_type": kind, **HALF, **sizes})
    image = load_tokenizer(folder).convert_tokens_to_ids("<image>")
    config = CONFIG_MAPPING[family](
        # The architecture as published: the converter asks for it.
        text_config={"model_type": "llama", "architectures": ["VLlama3ForCausalLM"]}
        | _text(vocab_size=size, head_dim=64, pad_token_id=2),
        vision_config={
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 512,
            "patch_size": 16,
        },
        image_token_id=image, scale_factor=4, tie_word_embeddings=False,
    )  # fmt: skip
    config.eos_token_id = 2
    return config


FAMILIES: dict[str, Callable[[str, Path], Any]] = {
    "qwen2_vl": _qwen, "qwen2_5_vl": _qwen, "qwen3_vl": _qwen, "gemma3": _gemma3, "smolvlm": _smolvlm, "idefics3": _smolvlm,
}  # fmt: skip


def seeing_model(folder: Path, family: str, seed: int = 2, width: int = WIDTH) -> Path:
    """Write a model that sees, float32; gives `folder`.

    Args:
        width: of a Qwen's language model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = FAMILIES[family](family, folder)
    if width != WIDTH:
        config.text_config.hidden_size = config.vision_config.out_hidden_size = width
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            # Larger than at the start of a training, so that a model is not flat and notices what it is shown.
            parameter.data = noise * (0.08 if "embed_tokens" in name else 1.2 / parameter[0].numel() ** 0.5)
        else:
            parameter.data = noise * 0.1 + ("norm" in name or "ln_" in name) * name.endswith("weight")
    model.tie_weights()
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    if family == "gemma3":
        _rename(folder / "model.safetensors", "vision_tower.", "vision_tower.vision_model.")
    return folder


def _rename(file: Path, old: str, new: str) -> None:
    """Names as published: transformers 5 reads these, and writes others, which the converter does not know."""
    tensors = {name.replace(old, new): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def _add_marks(folder: Path, marks: tuple[str, ...], picture: str) -> int:
    """Special tokens behind the vocabulary, and a template that writes `picture` for one; gives the number of tokens."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in marks])
    tokenizer.save(str(path))
    (folder / "chat_template.jinja").write_text(TEMPLATE.format(picture=picture), encoding="utf-8")
    return tokenizer.get_vocab_size()


def _put_processor(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
