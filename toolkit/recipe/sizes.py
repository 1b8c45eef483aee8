"""How big a model is, from the numbers in its config.json alone. Imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.errors import DataError
from toolkit.recipe.lora import ALL_SEVEN_PROJECTIONS

BITS_PER_WEIGHT = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.70, "Q5_K_S": 5.57, "Q5_1": 6.0,
    "Q5_0": 5.5, "Q4_K_M": 4.89, "Q4_K_S": 4.67, "Q4_1": 5.0, "Q4_0": 4.66, "IQ4_XS": 4.46, "IQ4_NL": 4.68,
    "Q3_K_L": 4.30, "Q3_K_M": 4.00, "Q3_K_S": 3.64, "Q2_K": 3.16,
    "IQ3_XS": 3.50, "IQ3_XXS": 3.25, "IQ2_M": 2.93,
}  # fmt: skip
"""Of a whole file. K-quants, IQ2 and IQ3 as tools/quantize/README.md of llama.cpp has them of an 8B; others by their blocks."""


@dataclass(frozen=True)
class Vision:
    """The part that sees: blocks of attention over a picture's patches, and a merger of merge × merge of them into one token."""

    hidden_size: int
    depth: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    merge: int = 2
    matrices: int = 3
    """Of each MLP: three where it is gated."""
    whole: int = 4
    """Layers whose attention sees a whole picture; that of the others sees a window, which costs next to nothing."""

    def projections(self) -> dict[str, tuple[int, int, int]]:
        """Linear layer, as Qwen2.5-VL names it → (inputs, outputs, how many there are)."""
        hidden, inner, merged = self.hidden_size, self.intermediate_size, self.merge**2 * self.hidden_size
        mlp = {"fc1": (hidden, inner), "fc2": (inner, hidden)}
        if self.matrices == 3:
            mlp = {"gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden)}
        block = {"attn.qkv": (hidden, 3 * hidden), "attn.proj": (hidden, hidden), **mlp}
        merger = {"merger.0": (merged, merged), "merger.2": (merged, self.out_hidden_size)}
        return {name: (*size, self.depth) for name, size in block.items()} | {
            n: (*size, 1) for n, size in merger.items()
        }

    def parameters(self) -> int:
        """All weights but norms, biases and what reads the pixels."""
        layer = 4 * self.hidden_size**2 + self.matrices * self.hidden_size * self.intermediate_size
        merged = self.merge**2 * self.hidden_size
        return self.depth * layer + merged * (merged + self.out_hidden_size)


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped-query attention and a gated MLP (Llama, Qwen2, SmolLM2, Mistral …); names as in config.json."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tied: bool
    """Output head and embeddings are one matrix."""
    attention_bias: bool = False
    """Biases on q, k and v (Qwen2)."""
    head_dim: int = 0
    """0: hidden_size / num_attention_heads."""
    vision: Vision | None = None
    """Beside the decoder, which all numbers here are of."""

    def projections(self) -> dict[str, tuple[int, int]]:
        """Linear layer of one block → (inputs, outputs)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        head = self.head_dim or hidden // self.num_attention_heads
        queries, keys = self.num_attention_heads * head, self.num_key_value_heads * head
        sizes = (
            (hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden),
            (hidden, inner), (hidden, inner), (inner, hidden),
        )  # fmt: skip
        return dict(zip(ALL_SEVEN_PROJECTIONS, sizes))

    def linear_parameters(self) -> int:
        """Weights of the linear layers of all blocks: what bitsandbytes quantizes."""
        return self.num_hidden_layers * sum(i * o for i, o in self.projections().values())

    def embedding_parameters(self) -> int:
        """Weights of the largest tensor: vocabulary × hidden."""
        return self.vocab_size * self.hidden_size

    def parameters(self) -> int:
        """All weights of the language model."""
        biases = sum(self.projections()[p][1] for p in ALL_SEVEN_PROJECTIONS[:3]) if self.attention_bias else 0
        norms = self.num_hidden_layers * (2 * self.hidden_size + biases) + self.hidden_size
        return self.linear_parameters() + norms + self.embedding_parameters() * (1 if self.tied else 2)

    def lora_parameters(self, r: int, target_modules: list[str] | str) -> int:
        """Weights of a LoRA adapter: r × (inputs + outputs) a layer (Hu et al. 2021, arXiv 2106.09685)."""
        chosen = {k: v for k, v in self.projections().items() if target_modules == "all-linear" or k in target_modules}
        return self.num_hidden_layers * r * sum(i + o for i, o in chosen.values())


EMBEDDED = Shape(576, 30, 1536, 9, 3, 49152, tied=True)
SMALL_VISION = Shape(
    256, 4, 512, 4, 2, 151936, tied=True, attention_bias=True, vision=Vision(128, 4, 256, 4, 256, whole=1)
)
"""Of the embedded base that sees."""
KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(896, 24, 4864, 14, 2, 151936, tied=True, attention_bias=True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1536, 28, 8960, 12, 2, 151936, tied=True, attention_bias=True),
    "Qwen/Qwen2.5-3B-Instruct": Shape(2048, 36, 11008, 16, 2, 151936, tied=True, attention_bias=True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 28, 18944, 28, 4, 152064, tied=False, attention_bias=True),
}
KNOWN |= {
    f"Qwen/Qwen2.5-VL-{size}-Instruct": replace(
        KNOWN[f"Qwen/Qwen2.5-{size}-Instruct"], vision=Vision(1280, 32, 3420, 16, out_hidden_size=width)
    )
    for size, width in (("3B", 2048), ("7B", 3584))
}


def shape_of_config(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes.

    Raises:
        KeyError: a size is missing: another kind of model.
    """
    seen, tied = config.get("vision_config"), config.get("tie_word_embeddings", False)
    config = config.get("text_config") or config
    heads = int(config["num_attention_heads"])
    return Shape(
        int(config["hidden_size"]),
        int(config["num_hidden_layers"]),
        int(config["intermediate_size"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", tied)),
        attention_bias=bool(config.get("attention_bias", config.get("model_type") == "qwen2")),
        head_dim=int(config.get("head_dim") or 0),
        vision=_vision(seen, int(config["hidden_size"])) if isinstance(seen, dict) else None,
    )


def _vision(config: dict[str, Any], width: int) -> Vision | None:
    """Names differ from family to family; None: those of another."""
    try:
        hidden = int(config.get("embed_dim") or config["hidden_size"])
        depth = int(config.get("depth") or config["num_hidden_layers"])
        return Vision(
            hidden,
            depth,
            int(config.get("intermediate_size") or config["mlp_ratio"] * hidden),
            int(config.get("num_heads") or config["num_attention_heads"]),
            width,
            merge=int(config.get("spatial_merge_size", 1)),
            matrices=3 if config.get("hidden_act") == "silu" else 2,
            whole=len(config.get("fullatt_block_indexes") or range(depth)),
        )
    except (KeyError, TypeError, ValueError):
        return None


def shape_of_base(base: str) -> tuple[Shape, str]:
    """Shape of a base as a recipe names it, and a note when it is only a guess; downloads nothing.

    Raises:
        DataError: a folder whose config.json cannot be read.
    """
    if base.startswith("embedded:"):
        return SMALL_VISION if "-vl-" in base else EMBEDDED, ""
    name = base.partition("@")[0]
    if name in KNOWN:
        return KNOWN[name], ""
    folder = Path(base).expanduser()
    if folder.is_dir():
        path = folder / "config.json"
        try:
            return shape_of_config(json.loads(path.read_text(encoding="utf-8"))), ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} does not say how big the model is: {error}", "Name a folder of a text model."
            ) from error
    size = re.search(r"(\d+(?:\.\d+)?)\s*([BbMm])\b", name)
    wanted = float(size[1]) * (1e9 if size[2] in "Bb" else 1e6) if size else 7e9
    nearest = min([EMBEDDED, *KNOWN.values()], key=lambda shape: abs(shape.parameters() - wanted))
    scale = wanted / nearest.parameters()
    layers = max(1, round(nearest.num_hidden_layers * scale))
    guess = Shape(**{**nearest.__dict__, "num_hidden_layers": layers})
    said = f"{wanted / 1e9:g} billion parameters, by its name" if size else "7 billion parameters, without knowing"
    return guess, f"{name} is not on this machine: its size is taken to be {said}"
