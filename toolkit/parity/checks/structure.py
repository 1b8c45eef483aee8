"""Has the export the structure of the tuned model: the same tensors, shapes and hyperparameters?

Behaviour does not show it: on short prompts a RoPE base doubled moves a model by 2e-3 KL, less than 8-bit rounding does. So every
key of a GGUF is compared with what the pinned converter writes for the tuned model, and a folder's `config.json` with the base's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from toolkit.errors import DataError
from toolkit.models.bases import PROCESSOR_FILES
from toolkit.models.gguf_file import GGUFHeader
from toolkit.models.json_file import read_object
from toolkit.models.layout import architecture_of
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.comparison import Comparison
from toolkit.parity.metadata import Compared, Difference
from toolkit.parity.tuning import Tuning

_TELLS_NOTHING = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "quantization_config", "transformers_version", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "unsloth_version", "unsloth_fixed", "model_name",
    "max_position_embeddings", "id2label", "label2id", "attention_dropout", "initializer_range", "output_attentions",
    "output_hidden_states", "return_dict", "problem_type", "chunk_size_feed_forward",
}  # fmt: skip
"""Keys of config.json that do not change what the model computes; ends and ties are judged by name elsewhere."""


def gguf_structure_check(compared: Comparison, keys: Compared) -> Check:
    """A GGUF's hyperparameters, tensor names and shapes against what the converter makes of the tuned model.

    Args:
        compared: its weights.
        keys: its metadata.
    """
    wrong = keys.of("structure")
    if other := next((d for d in wrong if d.key == "general.architecture"), None):
        measure = lower_is_better("hyperparameters that differ", 1, 0, 0)
        return Check.of("structure", [measure], _of_another(other.found, other.wanted), {"different": [_row(other)]})
    measures = [
        lower_is_better("hyperparameters that differ", len(wrong), 0, 0),
        lower_is_better("tensors missing", len(compared.missing), 0, 0),
        lower_is_better("tensors of another shape", len(compared.shapes), 0, 0),
        lower_is_better("tensors that the model does not have", len(compared.extra), 0, 0),
    ]
    if compared.unknown:
        measures.append(
            Measure(name="tensors of which nobody can tell what they are made of", value=len(compared.unknown))
        )
    said = [difference.told() for difference in wrong[:3]] + _tensors_told(compared)
    said += [f"{name} is there, and the model has no such tensor" for name in compared.extra[:3]]
    good = "hyperparameters, tensors and shapes are equal"
    if compared.unknown:
        good += f"; {', '.join(compared.unknown[:3])}: not compared, the converter does not tell what it is made of"
    details = {
        "different": [_row(d) for d in wrong[:20]],
        **_details(compared),
        "told": [_row(d) for d in keys.told[:40]],
        "warned": [f"{d.told()}: llama.cpp's own programs draw with it, Ollama does not" for d in keys.of_sampling()],
    }
    return Check.of("structure", measures, "; ".join(said) or good, details)


def _row(difference: Difference) -> dict[str, Any]:
    def shown(value: Any) -> Any:
        return f"{len(value)} entries" if isinstance(value, list) and len(value) > 64 else value

    wanted, found = shown(difference.wanted), shown(difference.found)
    return {"key": difference.key, "wanted": wanted, "found": found, "says": difference.told()}


def _details(compared: Comparison) -> dict[str, Any]:
    return {"missing": compared.missing[:20], "shapes": compared.shapes[:20], "extra": compared.extra[:20]}


def _tensors_told(compared: Comparison) -> list[str]:
    said = [f"{name} is missing" for name in compared.missing[:3]]
    return said + [f"{name} has shape {list(found)}, not {list(wanted)}" for name, wanted, found in compared.shapes[:3]]


def _of_another(found: Any, wanted: Any) -> str:
    return (
        f"general.architecture is {found or 'missing'}, and the base converts to {wanted}: "
        "name a file that was made from this base"
    )


def other_architecture(base: Path, header: GGUFHeader) -> str:
    """What is wrong with a file of another architecture than the base's; empty where it is right.

    Raises:
        DataError: llama.cpp does not know the base's architecture.
    """
    wanted = architecture_of(base)
    return "" if header.architecture == wanted else _of_another(header.architecture, wanted)


def folder_config(folder: Path) -> Any:
    """transformers' configuration of a model folder.

    Raises:
        DataError: there is none, or of a type that transformers does not know.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{folder / 'config.json'}: {reason}", "Name a folder that holds a whole model.") from error


def _settings(config: Any, folder: Path, sees: bool) -> dict[str, Any]:
    """What a folder's model computes with; of one that sees, its vision part and how its pictures are prepared too."""
    found = dict(config.get_text_config().to_dict())
    if sees:
        found |= {f"vision_config.{key}": value for key, value in config.vision_config.to_dict().items()}
        for name in PROCESSOR_FILES:
            if (folder / name).is_file():
                inner = read_object(folder / name, "Merge again.")
                found |= {f"{name}: {key}": value for key, value in inner.items()}
    return {key: value for key, value in found.items() if key.rpartition(".")[2] not in _TELLS_NOTHING}


def folder_structure_check(tuning: Tuning, folder: Path, compared: Comparison, sees: bool = False) -> Check:
    """A merged folder's `config.json`, tensor names and shapes against the base's.

    Args:
        sees: the model was trained on pictures: its vision part is judged too, and its processor.
    """
    # As transformers reads them: what a file leaves out, or spells as older versions did, is the same there.
    configs = [folder_config(f) for f in (tuning.folder, folder)]
    before, after = (_settings(*of, sees) for of in zip(configs, (tuning.folder, folder)))
    before["vocab_size"] = tuning.vocabulary or before.get("vocab_size")
    wrong = [
        {
            "key": key,
            "wanted": before.get(key),
            "found": after.get(key),
            "from": "the base's" if ": " in key else "the base's config.json",
        }
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    was_tied, tied = (bool(getattr(config, "tie_word_embeddings", False)) for config in configs)
    if tied != (tuning.tied_head is not None) and was_tied:
        wrong.append(
            {"key": "tie_word_embeddings", "wanted": tuning.tied_head is not None, "found": tied, "from": "the adapter"}
        )
    # transformers leaves such tensors unread, so they are only told.
    measures = [
        lower_is_better("hyperparameters that differ", len(wrong), 0, 0),
        lower_is_better("tensors missing", len(compared.missing), 0, 0),
        lower_is_better("tensors of another shape", len(compared.shapes), 0, 0),
        Measure(name="tensors that the model does not have", value=len(compared.extra)),
    ]
    said = [f"{w['key']} is {w['found']}, {w['from']} is {w['wanted']}" for w in wrong[:3]] + _tensors_told(compared)
    good = "hyperparameters, tensors and shapes are equal"
    return Check.of("structure", measures, "; ".join(said) or good, {"different": wrong[:20], **_details(compared)})
