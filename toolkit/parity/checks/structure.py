"""Has the export the structure of the tuned model: the same tensors, shapes and hyperparameters?

Behaviour does not show it: on short prompts a RoPE base doubled moves a model by 2e-3 KL, less than 8-bit rounding does. So every
hyperparameter of the GGUF is compared with the one in `config.json`.
Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and transformers' configuration classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig

from toolkit.errors import DataError
from toolkit.models.gguf_file import GGUFHeader
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.comparison import Comparison, Tuning
from toolkit.parity.exported import CONVERTED_TO, GGUFWeights

_TELLS_NOTHING = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "quantization_config", "transformers_version", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "unsloth_version", "unsloth_fixed", "model_name",
    "max_position_embeddings", "id2label", "label2id", "attention_dropout", "initializer_range", "output_attentions",
    "output_hidden_states", "return_dict", "problem_type", "chunk_size_feed_forward",
}  # fmt: skip
"""Keys of config.json that do not change what the model computes; ends and ties are judged by name elsewhere."""
_ROPE_TENSORS_OF = {
    "llama3": ("rope_freqs.weight",),
    "longrope": ("rope_factors_long.weight", "rope_factors_short.weight"),
}
_ROPE_TENSORS = {name for names in _ROPE_TENSORS_OF.values() for name in names}
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
    config = text_config(tuning.folder)
    if other := other_architecture(config, export.header):
        row = {
            "key": "general.architecture",
            "wanted": config.model_type,
            "found": export.architecture,
            "from": "model_type",
        }
        measure = lower_is_better("hyperparameters that differ", 1, 0, 0)
        return Check.of("structure", [measure], other, {"different": [row]})
    wrong = []
    for key, value, source in wanted_settings(config, export.architecture):
        found = export.setting(key)
        if found is None and key == "attention.head_count_kv":
            found = export.setting("attention.head_count")
        found = _DEFAULTS.get(key) if found is None else found
        if not _equal(found, value):
            wrong.append({"key": f"{export.architecture}.{key}", "wanted": value, "found": found, "from": source})
    lost = [] if compared is None else list(compared.missing)
    lost += _lost_factors(config, export)
    shapes = [] if compared is None else compared.shapes
    unseen = ""
    extra: list[str] = []
    if compared is None:
        unseen = f"its tensors were not looked at: {export.architecture} is not known here tensor by tensor"
    else:
        extra = [name for name in compared.extra if not _of_the_rope(name, config, export)]
    judged = lower_is_better("tensors that the model does not have", len(extra), 0, 0)
    return _check(wrong, lost, shapes, (extra, judged), unseen)


def text_config(folder: Path) -> Any:
    """transformers' configuration of a model folder's text model.

    Raises:
        DataError: there is none, or of a type that transformers does not know.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{folder / 'config.json'}: {reason}", "Name a folder that holds a whole model.") from error


def other_architecture(config: Any, header: GGUFHeader) -> str:
    """What is wrong with a file of another architecture than the base's; empty where it is right, or not known here."""
    wanted = CONVERTED_TO.get(config.model_type)
    if wanted is None or header.architecture in wanted:
        return ""
    return (
        f"general.architecture is {header.architecture or 'missing'}, and the base ({config.model_type}) converts to "
        f"{wanted[0]}: name a file that was made from this base"
    )


def _of_the_rope(name: str, config: Any, export: GGUFWeights) -> bool:
    """Whether a tensor holds RoPE factors that are judged elsewhere, or change nothing."""
    if name not in _ROPE_TENSORS:
        return False
    if name in _ROPE_TENSORS_OF.get(str(_rope_of(config).get("rope_type")), ()):
        return True
    tensor = next(t for t in export.header.tensors if t.name == name)
    return bool((export.values(tensor) == 1).all())


def _rope_of(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    return dict(rope.get("full_attention") or rope)


def folder_structure_check(tuning: Tuning, folder: Path, compared: Comparison) -> Check:
    """A merged folder's `config.json`, tensor names and shapes against the base's."""
    # As transformers reads them: what a file leaves out, or spells as older versions did, is the same there.
    before, after = (text_config(f).to_dict() for f in (tuning.folder, folder))
    wrong = [
        {"key": key, "wanted": before.get(key), "found": after.get(key), "from": "the base's config.json"}
        for key in sorted((before.keys() | after.keys()) - _TELLS_NOTHING)
        if before.get(key) != after.get(key)
    ]
    tied = bool(after["tie_word_embeddings"])
    if tied != (tuning.tied_head is not None) and before["tie_word_embeddings"]:
        wrong.append(
            {"key": "tie_word_embeddings", "wanted": tuning.tied_head is not None, "found": tied, "from": "the adapter"}
        )
    # transformers leaves such tensors unread, so they are only told.
    extra = Measure(name="tensors that the model does not have", value=len(compared.extra))
    return _check(wrong, compared.missing, compared.shapes, (compared.extra, extra))


def _check(
    wrong: list[dict[str, Any]], lost: list[str], shapes: list[tuple[str, Any, Any]], extra: tuple[list[str], Measure],
    unseen: str = "",
) -> Check:  # fmt: skip
    measures = [lower_is_better("hyperparameters that differ", len(wrong), 0, 0)]
    if not unseen or lost:
        measures.append(lower_is_better("tensors missing", len(lost), 0, 0))
    if not unseen:
        measures += [lower_is_better("tensors of another shape", len(shapes), 0, 0), extra[1]]
    said = [f"{w['key']} is {w['found']}, {w['from']} is {w['wanted']}" for w in wrong[:3]]
    said += [f"{name} is missing" for name in lost[:3]]
    said += [f"{name} has shape {list(found)}, not {list(wanted)}" for name, wanted, found in shapes[:3]]
    if extra[1].verdict == "fail":
        said += [f"{name} is there, and the model has no such tensor" for name in extra[0][:3]]
    details = {"different": wrong[:20], "missing": lost[:20], "shapes": shapes[:20], "extra": extra[0][:20]}
    good = f"hyperparameters are equal; {unseen}" if unseen else "hyperparameters, tensors and shapes are equal"
    return Check.of("structure", measures, "; ".join(said) or good, details)


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and not isinstance(wanted, list):
        return bool(found) and all(_equal(one, wanted) for one in found)  # a value for each layer
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-5)  # the file holds float32
    return bool(found == wanted)


def _lost_factors(config: Any, export: GGUFWeights) -> list[str]:
    """RoPE scalings that llama.cpp keeps as tensors: Llama 3's `rope_freqs`, LongRoPE's two lists of factors."""
    rope = _rope_of(config)
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
