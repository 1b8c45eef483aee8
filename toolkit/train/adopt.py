"""An adapter, or a whole model, that another tool trained enters the chain here."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.errors import DataError, UsageError
from toolkit.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE, is_model, read_config, start_of
from toolkit.models.adapter_names import other_beginning, write_renamed
from toolkit.models.adapters import LoraAdapter
from toolkit.models.bases import TOKENIZER_FILES, check_folder, read_chat_template, resolve_base
from toolkit.models.changed_base import computed_start, refuse_unknown_start, write_as_lora
from toolkit.models.merged import MergedWeights
from toolkit.models.safetensors_file import DTYPES, commonest_dtype, link_or_copy, model_entries, model_files
from toolkit.models.tokenizer import load_tokenizer
from toolkit.models.weights import TrainedWeights
from toolkit.recipe.adopted import told_template, was_quantized
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import text_sha256, write_text
from toolkit.run.facts import AdapterFacts, Quantization

stderr = Console(stderr=True, highlight=False)


def _adopt_model(recipe: Recipe, source: Path, out: Path) -> AdapterFacts:
    """Take a whole model that was trained elsewhere; its weights are linked, not copied, where the disk allows it."""
    check_folder(source)
    base = resolve_base(recipe.base)
    for path in sorted(
        p for p in source.iterdir() if p.is_file() and p.suffix in {".json", ".safetensors", ".jinja", ".model"}
    ):
        link_or_copy(path, out / path.name)
    template = read_chat_template(source)
    if template is None:
        raise DataError(
            f"{source} has no chat template", "Put its chat_template.jinja there, from where it was trained."
        )
    return AdapterFacts(
        method="full", base=base, base_dtype=_dtype_of_tensors(source), quantization=None,
        chat_template_sha256=text_sha256(template), system=recipe.system, trained_here=False,
        chat_template_kwargs=told_template(recipe, source), trainer_loss=_trainer_loss(source),
    )  # fmt: skip


def _dtype_of_tensors(folder: Path) -> Any:
    # Not config.json's: who trains a bfloat16 base in float32 often leaves its word there.
    return _computed_in(commonest_dtype(model_entries(model_files(folder)).values()))


def _stored_dtype(folder: Path) -> Any:
    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _computed_in(str(stored.get("dtype") or stored.get("torch_dtype")))


def _computed_in(dtype: str) -> Any:
    return dtype if dtype in DTYPES else "float32"


def adopt_adapter(recipe: Recipe, out: Path) -> AdapterFacts:
    """Copy an adapter of another tool, with the tokenizer that it was trained with, into `out`; or link a whole model.

    Raises:
        DataError: no PEFT adapter, only pickled weights, or an adapter of another base.
    """
    source = Path(recipe.adapter or "")
    if is_model(source):
        return _adopt_model(recipe, source, out)
    adapter = LoraAdapter(source)
    base = resolve_base(recipe.base)
    base_dtype = _stored_dtype(Path(base.folder))
    quantized = recipe.load_in_4bit
    if quantized is None:
        quantized = was_quantized(source, str(adapter.config.get("base_model_name_or_path", "")))
    weights = TrainedWeights(Path(base.folder), base_dtype, None)
    merged = _take_matrices(adapter, weights, quantized, out)
    for number, further in enumerate(recipe.then, 1):
        named = str(read_config(Path(further)).get("base_model_name_or_path", ""))
        if quantized or (recipe.load_in_4bit is None and was_quantized(Path(further), named)):
            raise UsageError(
                f"{source if quantized else further} was trained on a 4-bit base; in a stack it is not known what was rounded",
                f"Merge the first alone: tune2ollama export {source} --name first --upto merge; then export the second with "
                "--base runs/first/merge. Or where 16 bits were trained on: --no-load-in-4bit",
            )
        (out / f"then-{number}").mkdir()
        merged = _take_matrices(LoraAdapter(Path(further)), merged, False, out / f"then-{number}")
    source = Path(recipe.then[-1]) if recipe.then else source
    own_tokenizer = (source / "tokenizer_config.json").is_file()
    for name in TOKENIZER_FILES:
        path = (source if own_tokenizer else Path(base.folder)) / name
        if path.is_file():
            shutil.copyfile(path, out / name)
    if read_chat_template(out) is None:  # as some tools save a tokenizer; that the base has one was checked
        write_text(out / "chat_template.jinja", str(read_chat_template(Path(base.folder))))
        stderr.print(f"{source} has a tokenizer without a chat template: the base's own is taken.")
    tokenizer = load_tokenizer(out, base.folder)
    return AdapterFacts(
        method="qlora" if quantized else "lora",
        base=base,
        base_dtype=base_dtype,
        quantization=Quantization() if quantized else None,
        vocabulary=merged.vocabulary,
        stacked=len(recipe.then),
        chat_template_sha256=text_sha256(tokenizer.get_chat_template()),
        chat_template_kwargs=told_template(recipe, source),
        system=recipe.system,
        trained_here=False,
        trainer_loss=_trainer_loss(source),
    )


def _trainer_loss(folder: Path) -> float | None:
    """The last training loss in transformers' `trainer_state.json`; None where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        losses = [float(entry["loss"]) for entry in history if "loss" in entry]
        return losses[-1] if losses and math.isfinite(losses[-1]) else None
    return None


def _take_matrices(
    adapter: LoraAdapter, weights: TrainedWeights | MergedWeights, quantized: bool, out: Path
) -> MergedWeights:
    """Put the adapter's configuration and tensors into `out`, in the base's names and as one that fits the base as it is.

    Returns:
        The tuned weights: base, resized where the adapter needs it, and adapter.

    Raises:
        DataError, UsageError: it does not fit the base, or has no merge.
    """
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copyfile(adapter.folder / name, out / name)
    pair = other_beginning(adapter, weights)
    if pair is not None:
        write_renamed(adapter, weights, pair, out)
    taken = LoraAdapter(out)
    vocabulary = vocabulary_of(taken, weights, adapter.folder)
    if vocabulary is not None:
        if isinstance(weights, MergedWeights):
            raise DataError(
                f"{adapter.path} was trained with {vocabulary} tokens, the one below it with another number",
                "Check the order.",
            )
        weights = TrainedWeights(weights.folder, str(weights.dtype).removeprefix("torch."), None, vocabulary)
    if start := start_of(taken.config):
        refuse_unknown_start(taken, quantized)
        write_as_lora(taken, computed_start(taken, weights), out)
        taken = LoraAdapter(out)
        stderr.print(
            f"{adapter.folder} began with a part of the base ({start}): what was trained is taken as a plain LoRA."
        )
    try:
        merged = MergedWeights(weights, taken)  # says what does not fit, before anything is computed
    except DataError as error:  # of the user's own file, not of the copy
        raise DataError(error.message.replace(str(out), str(adapter.folder)), error.hint) from error
    changed = [name for name in merged.names() if merged.is_merged(name)]
    if changed:  # and the smallest, whether PEFT can merge it
        merged.load(min(changed, key=lambda name: math.prod(merged.entry(name).shape)))
    if pair is not None:
        old, new = (f"'{beginning}.'" if beginning else "nothing" for beginning in pair)
        stderr.print(
            f"The adapter's names of layers begin with {old}, the base's with {new}; every shape fits, so they are the same."
        )
    if vocabulary is not None:
        stderr.print(
            f"The adapter was trained with {vocabulary} tokens: embedding and head of the base are resized for it."
        )
    return merged


def vocabulary_of(adapter: LoraAdapter, weights: TrainedWeights | MergedWeights, tokenizer: Path) -> int | None:
    """Rows of embedding and head that an adapter was trained with; None: as the base has them.

    Args:
        tokenizer: folder of the adapter's own, if it has one; only its new tokens may be in the adapter's file.

    Raises:
        DataError: the file holds embeddings of several sizes.
    """
    stored = weights.entry(weights.spelled.sources(weights.embedding)[0]).shape[0]
    rows = set()
    for module in {name.removesuffix(".weight") for name in (weights.embedding, weights.head)}:
        held = [e for n, e in adapter.others.items() if n.startswith(f"{module}.") and n.endswith("weight")]
        rows |= {entry.shape[0] for entry in held if len(entry.shape) == 2}
        if (change := adapter.changes.get(module)) is not None:
            rows.add(change.parts["B"].shape[0] if "B" in change.parts else change.parts["embedding_A"].shape[1])
    if len(rows) > 1:
        raise DataError(
            f"{adapter.path} holds embeddings of {' and '.join(str(n) for n in sorted(rows))} tokens", "Train it again."
        )
    tokens = adapter.config.get("trainable_token_indices") or adapter.config.get("token_indices") or []
    indices = [i for each in tokens.values() for i in each] if isinstance(tokens, dict) else tokens
    if not rows and indices and max(indices) >= stored:
        own = (tokenizer / "tokenizer_config.json").is_file()
        known = len(load_tokenizer(tokenizer)) if own else 0
        rows = {max(known, max(indices) + 1)}
    return next((n for n in rows if n != stored), None)
