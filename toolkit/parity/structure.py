"""Has the export the structure of the tuned model: the same tensors, shapes and hyperparameters?

Behaviour does not show it: on short prompts a RoPE base doubled moves a model by 2e-3 KL, less than 8-bit rounding does. So every
hyperparameter of the GGUF is compared with the one in `config.json`.
Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and transformers' configuration classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig

from toolkit.parity.certificate import Check, lower_is_better
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.weights import Comparison, Tuning

ABSENT = None
_TELLS_NOTHING = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "quantization_config", "transformers_version", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "unsloth_version", "unsloth_fixed", "model_name",
    "max_position_embeddings", "id2label", "label2id",
}  # fmt: skip
"""Keys of config.json that do not change what the model computes; ends and ties are judged by name elsewhere."""
_DEFAULTS = {"rope.freq_base": 10000.0, "rope.scaling.type": "none"}
"""What llama.cpp takes where the file says nothing."""


class Wanted(NamedTuple):
    """A hyperparameter: its key in the GGUF (without the architecture), its value, and where that comes from."""

    key: str
    value: Any
    source: str


def wanted_settings(config: Any, architecture: str) -> Iterator[Wanted]:
    """The hyperparameters that a GGUF of this model must have.

    Args:
        config: transformers' configuration of the base's text model.
    """
    for key, source in (
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        value = getattr(config, source, None)
        if isinstance(value, int | float):
            yield Wanted(key, value, source)
    head_dim = getattr(config, "head_dim", None)
    if isinstance(head_dim, int) and head_dim * config.num_attention_heads != config.hidden_size:
        yield Wanted("attention.key_length", head_dim, "head_dim")
    if architecture in ("gemma2", "phi3") and isinstance(getattr(config, "sliding_window", None), int):
        yield Wanted("attention.sliding_window", config.sliding_window, "sliding_window")
    yield from _rope(getattr(config, "rope_parameters", None) or {})


def _rope(rope: dict[str, Any]) -> Iterator[Wanted]:
    rope = rope.get("full_attention") or rope
    if "rope_theta" in rope:
        yield Wanted("rope.freq_base", float(rope["rope_theta"]), "rope_theta")
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        yield Wanted("rope.scaling.type", kind, "rope_type")
        yield Wanted("rope.scaling.factor", float(rope["factor"]), "rope factor")
    elif kind != "longrope":  # Phi-3's converter names no type there: its two lists of factors are enough for llama.cpp
        yield Wanted("rope.scaling.type", "none", "rope_type")
    if kind in ("yarn", "longrope"):
        original = rope.get("original_max_position_embeddings")
        yield Wanted("rope.scaling.original_context_length", original, "original_max_position_embeddings")


def gguf_structure_check(tuning: Tuning, export: GGUFWeights, compared: Comparison | None) -> Check:
    """A GGUF's hyperparameters, tensor names and shapes against the base's configuration and tensors.

    Args:
        compared: of its weights; None for an architecture whose tensors are not known here by name.
    """
    config = AutoConfig.from_pretrained(tuning.folder, trust_remote_code=False).get_text_config()
    wrong = []
    for key, value, source in wanted_settings(config, export.architecture):
        found = export.setting(key)
        found = _DEFAULTS.get(key) if found is None else found
        if not _equal(found, value):
            wrong.append({"key": f"{export.architecture}.{key}", "wanted": value, "found": found, "from": source})
    lost = [] if compared is None else list(compared.missing)
    lost += _lost_factors(config, export)
    shapes = [] if compared is None else compared.shapes
    # An output that is a tensor of its own where the model has none is a copy of the embedding; quantizers write one.
    return _check(wrong, lost, shapes)


def folder_structure_check(tuning: Tuning, folder: Path, compared: Comparison) -> Check:
    """A merged folder's `config.json`, tensor names and shapes against the base's."""
    before, after = (json.loads((f / "config.json").read_text(encoding="utf-8")) for f in (tuning.folder, folder))
    wrong = [
        {"key": key, "wanted": before.get(key), "found": after.get(key), "from": "the base's config.json"}
        for key in sorted((before.keys() | after.keys()) - _TELLS_NOTHING)
        if before.get(key) != after.get(key)
    ]
    tied = bool(after.get("tie_word_embeddings", before.get("tie_word_embeddings", False)))
    wanted = AutoConfig.from_pretrained(tuning.folder).get_text_config().tie_word_embeddings
    if tied != (tuning.tied_head is not None) and wanted:
        wrong.append(
            {"key": "tie_word_embeddings", "wanted": tuning.tied_head is not None, "found": tied, "from": "the adapter"}
        )
    return _check(wrong, compared.missing, compared.shapes)


def _check(wrong: list[dict[str, Any]], lost: list[str], shapes: list[tuple[str, Any, Any]]) -> Check:
    measures = [
        lower_is_better("hyperparameters that differ", len(wrong), 0, 0),
        lower_is_better("tensors missing", len(lost), 0, 0),
        lower_is_better("tensors of another shape", len(shapes), 0, 0),
    ]
    said = [f"{w['key']} is {w['found']}, {w['from']} is {w['wanted']}" for w in wrong[:3]]
    said += [f"{name} is missing" for name in lost[:3]]
    said += [f"{name} has shape {list(found)}, not {list(wanted)}" for name, wanted, found in shapes[:3]]
    details = {"different": wrong[:20], "missing": lost[:20], "shapes": shapes[:20]}
    return Check.of("structure", measures, "; ".join(said) or "hyperparameters, tensors and shapes are equal", details)


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-5)  # the file holds float32
    return bool(found == wanted)


def _lost_factors(config: Any, export: GGUFWeights) -> list[str]:
    """RoPE scalings that llama.cpp keeps as tensors: Llama 3's `rope_freqs`, LongRoPE's two lists of factors."""
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope
    match rope.get("rope_type"):
        case "llama3":
            return _differs(export, "rope_freqs.weight", _llama3_factors(config, rope))
        case "longrope":
            return [
                lost
                for name in ("long", "short")
                for lost in _differs(export, f"rope_factors_{name}.weight", torch.tensor(rope[f"{name}_factor"]))
            ]
    return []


def _differs(export: GGUFWeights, name: str, wanted: torch.Tensor) -> list[str]:
    tensor = next((t for t in export.header.tensors if t.name == name), None)
    if tensor is None:
        return [name]
    found = torch.from_numpy(export.values(tensor)).float()
    return (
        []
        if found.shape == wanted.shape and torch.allclose(found, wanted.float(), rtol=1e-4)
        else [f"the right {name}"]
    )


def _llama3_factors(config: Any, rope: dict[str, Any]) -> torch.Tensor:
    """By how much Llama 3.1 slows each rotation down, float32 [head_dim / 2]; "The Llama 3 Herd of Models", arXiv:2407.21783.

    Taken from transformers: its slowed frequencies beside the plain ones.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(slowed)
    factors: torch.Tensor = float(rope["rope_theta"]) ** (-torch.arange(0, size, 2).float() / size) / slowed
    return factors
