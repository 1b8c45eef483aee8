"""Every key of a GGUF's metadata against what the pinned converter writes for the tuned model.

Each key belongs to one of three classes:

- it must be equal: what llama.cpp computes with, and the tokenizer's tables;
- it may differ, and is told: names and provenance, and what other checks judge by what it does (chat templates, the file type);
- the converter does not know it: it is told, and counts where the pinned llama.cpp reads it.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.export.llama_cpp import reads_key
from toolkit.models.gguf_file import GGUFHeader

_MUST_BE_EQUAL = ("general.architecture", "general.alignment", "general.type")
_SAMPLING = "general.sampling."
_MAY_DIFFER = (
    "general.",
    "split.",
    "quantize.",
    "tokenizer.chat_template",
    "tokenizer.huggingface.json",
    "tune2ollama.",
)
"""Beginnings of keys that name a file, tell where it came from, or are judged elsewhere by what they do."""
TOKENIZER = "tokenizer."
_SHOWN = 60


@dataclass(frozen=True)
class Difference:
    """A key whose value is not the one that the converter writes."""

    key: str
    wanted: Any
    """None: the converter does not write it."""
    found: Any
    """None: it is not there."""

    def told(self) -> str:
        """In words; of a list, the first place that differs."""
        if self.found is None:
            return f"{self.key} is missing, it should be {_short(self.wanted)}"
        if self.wanted is None:
            return f"{self.key} is {_short(self.found)}, and a right file has no such key"
        if isinstance(self.wanted, list) and isinstance(self.found, list):
            if len(self.wanted) != len(self.found):
                return f"{self.key} has {len(self.found)} entries, and should have {len(self.wanted)}"
            at = next(i for i, (a, b) in enumerate(zip(self.found, self.wanted)) if not equal(a, b))
            return f"{self.key} [{at}] is {_short(self.found[at])}, and should be {_short(self.wanted[at])}"
        return f"{self.key} is {_short(self.found)}, and should be {_short(self.wanted)}"


@dataclass(frozen=True)
class Compared:
    """What became of the keys."""

    different: list[Difference]
    """Of keys that must be equal."""
    told: list[Difference]
    """Of keys that may differ, and those that llama.cpp does not read."""

    def of_sampling(self) -> list[Difference]:
        """Settings of sampling that the file brings, and that the model does not say."""
        return [d for d in self.told if d.key.startswith(_SAMPLING) and d.found is not None]

    def of(self, part: Literal["structure", "tokenizer"]) -> list[Difference]:
        """The differences that count, of one link."""
        return [d for d in self.different if d.key.startswith(TOKENIZER) == (part == "tokenizer")]


def compare_metadata(wanted: dict[str, Any], header: GGUFHeader) -> Compared:
    """Compare every key.

    Args:
        wanted: what the converter writes; see `toolkit.models.layout`.
        header: of the file.
    """
    found, architecture = header.metadata, header.architecture
    different, told = [], []
    for key in dict.fromkeys([*wanted, *found]):
        one = Difference(key, wanted.get(key), found.get(key))
        if key in wanted and key in found and equal(one.found, one.wanted):
            continue
        if key not in _MUST_BE_EQUAL and key.startswith(_MAY_DIFFER):
            told.append(one)
        elif key in wanted and key in found:
            different.append(one)
        elif not reads_key(key, architecture) or _changes_nothing(one, architecture, {**wanted, **found}):
            told.append(one)
        else:
            different.append(one)
    return Compared(different, told)


def _changes_nothing(one: Difference, architecture: str, metadata: dict[str, Any]) -> bool:
    """Whether a key that is only on one side says what llama.cpp does without it."""
    value = one.wanted if one.found is None else one.found
    if one.key.startswith(TOKENIZER):
        # What a tokenizer does without a key depends on its kind; that is judged by what it does (`tokens`, `ends`).
        return not isinstance(value, list)
    return equal(value, _without(one.key.removeprefix(f"{architecture}."), architecture, metadata))


def _without(key: str, architecture: str, metadata: dict[str, Any]) -> Any:
    """What llama.cpp takes where a file says nothing (src/llama-model.cpp, `load_hparams`)."""

    def setting(name: str) -> Any:
        return metadata.get(f"{architecture}.{name}")

    heads, width = setting("attention.head_count"), setting("embedding_length")
    head_size = width // heads if isinstance(heads, int) and isinstance(width, int) and heads else 0
    match key:
        case "rope.freq_base":
            return 10000.0
        case "rope.scaling.type":
            return "none"
        case "rope.scaling.factor" | "rope.scaling.attn_factor":
            return 1.0
        case "attention.head_count_kv":
            return heads
        case "attention.key_length" | "attention.value_length":
            return head_size
        case "rope.dimension_count":
            return setting("attention.key_length") or head_size
        case "vocab_size":
            return len(metadata.get("tokenizer.ggml.tokens") or [])
    return 0


def equal(found: Any, wanted: Any) -> bool:
    """Whether two values are the same; numbers as float32 holds them, and one number for all layers as a list of it."""
    if isinstance(found, list) and isinstance(wanted, list):
        if len(found) == len(wanted) and found == wanted:
            return True
        return len(found) == len(wanted) and all(equal(a, b) for a, b in zip(found, wanted))
    if isinstance(found, list) or isinstance(wanted, list):
        several, one = (found, wanted) if isinstance(found, list) else (wanted, found)
        return bool(several) and all(equal(value, one) for value in several)
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return math.isclose(found, wanted, rel_tol=1e-5)
    return bool(found == wanted)


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, int | float | bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
