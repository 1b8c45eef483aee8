"""Merge an adapter into its base, tensor by tensor: memory for one tensor, whatever the model's size."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import track

from toolkit.errors import MAKE_ROOM, ResourceError
from toolkit.export import values
from toolkit.models.bases import CONFIG_FILES, PROCESSOR_FILES, TOKENIZER_FILES, check_folder
from toolkit.models.ends import ends_of
from toolkit.models.merged import MergedWeights, merged_weights
from toolkit.models.merging import merged_onto
from toolkit.models.safetensors_file import (
    DTYPES,
    ITEM_BYTES,
    Entry,
    commonest_dtype,
    link_or_copy,
    model_entries,
    model_files,
    write_model,
    writing,
)
from toolkit.models.tokenizer import load_tokenizer
from toolkit.models.weights import TORCH_DTYPES
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, write_json
from toolkit.run.facts import AdapterFacts, ModelFacts
from toolkit.run.hardware import free_disk_bytes

GENERATION_CONFIG = "generation_config.json"


def merge(recipe: Recipe, adapter: Artifact[AdapterFacts], out: Path) -> ModelFacts:
    """Write the tuned model as an HF folder into `out`.

    A QLoRA adapter is merged onto the NF4 weights that it was trained on, dequantized, unless `merge.onto` is "16-bit".

    Raises:
        DataError: the adapter is damaged or belongs to another base.
        UsageError: a kind of adapter that has no merge.
        ResourceError: the disk is full, or will be.
    """
    if adapter.facts.method == "full":
        return _take_whole_model(adapter, out)
    merged = merged_weights(adapter, recipe.merge.chosen)
    # Whoever wants 32 bits wants all of them: a folder in 16 would have rounded what was trained.
    dtype = "float32" if recipe.export.converted == "F32" else output_dtype(merged, adapter.facts)
    entries = [Entry(n, DTYPES[dtype], merged.entry(n).shape) for n in merged.names()]
    _check_disk(sum(e.bytes for e in entries), out)
    write_merged(merged, entries, dtype, out)
    _tell(copy_settings(merged, adapter.folder, dtype, out))
    return ModelFacts(
        merged_onto=merged_onto(adapter.facts, recipe.merge.chosen),
        dtype=dtype,
        tensors=len(entries),
        merged_tensors=sum(merged.is_merged(e.name) for e in entries),
        parameters=sum(math.prod(e.shape) for e in entries),
    )


def output_dtype(merged: MergedWeights, facts: AdapterFacts) -> str:
    """The type that is merged into where nobody asks for another; see `toolkit.export.values.output_dtype`."""
    entries = [merged.entry(name) for name in merged.names()]
    return values.output_dtype(entries, merged.quantization is not None, facts.base_dtype)


def _check_disk(needed: int, out: Path) -> None:
    free = free_disk_bytes(out)
    if free < needed * 1.01 + 2**20:
        raise ResourceError(
            f"the merged model needs {needed / 1e9:.1f} GB, {out} has {free / 1e9:.1f} GB free",
            f"{MAKE_ROOM}; then run again.",
        )


def write_merged(merged: MergedWeights, entries: list[Entry], dtype: str, out: Path) -> None:
    """Stream the merged tensors into safetensors files, with progress on stderr."""
    steps = iter(track(entries, "merging", console=Console(file=sys.stderr)))

    def load(entry: Entry) -> memoryview:
        next(steps)
        weight = merged.load(entry.name).to(TORCH_DTYPES[dtype]).contiguous()
        array: Any = weight.reshape(-1).view(torch.uint8).numpy()
        return memoryview(array)

    with torch.inference_mode():
        write_model(out, entries, load)
    next(steps, None)  # lets the progress bar end


class Tuned(Protocol):
    """What the settings of a tuned model depend on."""

    folder: Path
    """The base."""
    tied_head: str | None
    head: str
    vocabulary: int | None

    def has(self, name: str) -> bool:
        """Whether it has a tensor of this name."""


def copy_settings(merged: Tuned, adapter: Path, dtype: str, out: Path) -> str:
    """Copy config, generation config, processor, tokenizer and chat template; the tokenizer as it was trained with.

    Returns:
        A sentence about a turn's end that the base does not list as an end; empty where it does.
    """
    base = merged.folder
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for key in ("_name_or_path", "torch_dtype", "quantization_config"):
        config.pop(key, None)
    config["dtype"] = dtype
    if merged.tied_head is None and merged.has(merged.head):
        config["tie_word_embeddings"] = False
        if "tie_word_embeddings" in config.get("text_config", {}):
            config["text_config"]["tie_word_embeddings"] = False
    if merged.vocabulary is not None:
        text = config["text_config"] if "vocab_size" in config.get("text_config", {}) else config
        text["vocab_size"] = merged.vocabulary
    with writing(out / "config.json"):
        write_json(out / "config.json", config)
        for name in (GENERATION_CONFIG, *PROCESSOR_FILES):
            if (base / name).is_file():
                shutil.copyfile(base / name, out / name)
        # All from one folder: files of two tokenizers would not fit each other.
        tokenizer = adapter if (adapter / "tokenizer_config.json").is_file() else base
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, out / name)
        return _list_turn_end(out)


def _list_turn_end(out: Path) -> str:
    """Write the token that closes a turn into the generation config, where only the chat template knows it as an end.

    Returns:
        A sentence about it; empty where the base lists it.
    """
    ends = ends_of(out, load_tokenizer(out))
    if ends.unlisted is None:
        return ""
    path = out / GENERATION_CONFIG
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.unlink(missing_ok=True)  # it may be a link to another tool's file
    write_json(path, {**settings, "eos_token_id": ends.tokens})
    return ends.told()


def _tell(told: str) -> None:
    if told:
        Console(file=sys.stderr).print(f"The merged model: {told}.", style="yellow", markup=False)


def _take_whole_model(adapter: Artifact[AdapterFacts], out: Path) -> ModelFacts:
    check_folder(adapter.folder)
    files = model_files(adapter.folder)
    weights = sorted({path.name for path in files.values()})
    others = [*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES, "model.safetensors.index.json"]
    for name in (*weights, *others):
        if (adapter.folder / name).is_file():
            link_or_copy(adapter.folder / name, out / name)
    _tell(_list_turn_end(out))
    entries = model_entries(files).values()
    return ModelFacts(
        merged_onto="as trained",
        dtype=commonest_dtype(entries),
        tensors=len(entries),
        merged_tensors=0,
        parameters=sum(e.bytes // ITEM_BYTES[e.dtype] for e in entries),
    )
