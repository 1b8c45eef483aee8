"""What `tests.bench.speed` measures with: the embedded base, and Llamas of random parameters; a LoRA on each."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.small_models import EMBEDDED, PROJECTIONS, adapter_artifact, put_tokenizer
from toolkit.models.bases import TOKENIZER_FILES, resolve_base
from toolkit.models.safetensors_file import Entry, model_entries, model_files, write_model
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts

RANK = 16
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 49152, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "bfloat16",
}  # fmt: skip
"""TinyLlama's shape with the embedded base's vocabulary."""
LARGE = {
    **LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_key_value_heads": 32,
}  # fmt: skip
"""Llama 2 7B's, with that vocabulary and a tied head: 6.7B parameters."""


@dataclass(frozen=True)
class Case:
    """A base with an adapter."""

    name: str
    base: Path
    dtype: Literal["float32", "bfloat16"]
    """What the base is loaded in."""
    adapter: Artifact[AdapterFacts]
    parameters: int

    def recipe(self, file_type: str) -> Recipe:
        """What asks for this file type alone, quantized from F16."""
        export = {"file_types": [file_type], "serve": file_type}
        golden, ollama = {"prompts": ["Hi"], "from_test": 0}, {"model": "speed"}
        tree = {"name": "speed", "base": str(self.base), "adapter": str(self.adapter.folder), "export": export}
        return Recipe.model_validate({**tree, "golden": golden, "ollama": ollama})


def cases(folder: Path, only: str) -> Iterator[Case]:
    """The cases, made in `folder` where they are not there yet."""
    if only in ("", "embedded"):
        yield _case("embedded", Path(resolve_base(EMBEDDED).folder), "float32", folder)
    if only in ("", "1.1B"):
        yield _case("1.1B", random_llama(folder / "llama-1.1B"), "bfloat16", folder)
    if only == "7B":  # eight shards, 13 GB: only where it is asked for
        yield _case("7B", random_llama(folder / "llama-7B", LARGE, 1_750_000_000), "bfloat16", folder)


def _case(name: str, base: Path, dtype: Literal["float32", "bfloat16"], folder: Path) -> Case:
    adapter = random_lora(base, folder / f"adapter-{name}")
    entries = model_entries(model_files(base)).values()
    parameters = sum(math.prod(entry.shape) for entry in entries)
    return Case(name, base, dtype, adapter_artifact(adapter, base, base_dtype=dtype), parameters)


def random_llama(folder: Path, shape: dict[str, Any] = LLAMA, largest: int = 2_000_000_000) -> Path:
    """Write a Llama of random weights in bfloat16, a tensor at a time; gives `folder`.

    Args:
        largest: bytes of a shard.
    """
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    put_tokenizer(partial)
    (partial / "config.json").write_text(json.dumps(shape, indent=2), encoding="utf-8")
    width, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    narrow = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape["vocab_size"], width)}
    for layer in range(layers):
        own: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width), "self_attn.v_proj": (narrow, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }  # fmt: skip
        sizes |= {f"model.layers.{layer}.{name}.weight": size for name, size in own.items()}
    sizes["model.norm.weight"] = (width,)
    generator = np.random.default_rng(11)

    def load(entry: Entry) -> memoryview:
        values = generator.standard_normal(entry.shape, np.float32) * np.float32(0.02)
        if len(entry.shape) == 1:
            values += 1
        return memoryview((values.view(np.uint32) >> 16).astype(np.uint16).reshape(-1).view(np.uint8))

    write_model(partial, [Entry(name, "BF16", size) for name, size in sizes.items()], load, largest)
    partial.rename(folder)
    return folder


def random_lora(base: Path, folder: Path) -> Path:
    """Write a LoRA on all linear layers, without PEFT; gives `folder`."""
    if (folder / "adapter_config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator, entries = np.random.default_rng(12), []
    for name, entry in model_entries(model_files(base)).items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in PROJECTIONS:
            rows, columns = entry.shape
            entries.append(Entry(f"base_model.model.{module}.lora_A.weight", "F32", (RANK, columns)))
            entries.append(Entry(f"base_model.model.{module}.lora_B.weight", "F32", (rows, RANK)))

    def load(entry: Entry) -> memoryview:
        values = generator.standard_normal(entry.shape, np.float32) * np.float32(0.02)
        return memoryview(values.reshape(-1).view(np.uint8))

    write_model(folder, entries, load)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    modules = {entry.name.rpartition(".lora_")[0].rpartition(".")[2] for entry in entries}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": RANK, "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0, "bias": "none", "inference_mode": True, "target_modules": sorted(modules),
    }  # fmt: skip
    for file in TOKENIZER_FILES:
        if (base / file).is_file():
            shutil.copy(base / file, folder / file)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return folder
