"""An adapter's configuration and tensors as they fit the base, whatever kind it is: PEFT and the base's parameters are asked."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from rich.console import Console

from toolkit.errors import DataError, UsageError
from toolkit.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_config, start_of
from toolkit.models.adapter_names import other_beginning, write_renamed
from toolkit.models.adapters import LoraAdapter
from toolkit.models.changed_base import computed_start, refuse_unknown_start, write_as_lora
from toolkit.models.merged import MergedWeights
from toolkit.models.tokenizer import load_tokenizer
from toolkit.models.weights import TrainedWeights
from toolkit.recipe.adopted import was_quantized
from toolkit.recipe.schema import Recipe

stderr = Console(stderr=True, highlight=False)


def take_all(recipe: Recipe, base: Path, base_dtype: str, quantized: bool, out: Path) -> int | None:
    """Put the recipe's adapter, and in `then-1`, `then-2` … those that were trained on top of it, into `out`.

    Args:
        quantized: whether the first was trained on NF4.

    Returns:
        Tokens that embedding and head were trained with; None: as the base has them.

    Raises:
        DataError, UsageError: one does not fit the base, or has no merge.
    """
    source = Path(recipe.adapter or "")
    weights = TrainedWeights(base, base_dtype, None)
    merged = _take_matrices(LoraAdapter(source), weights, quantized, out)
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
    return merged.vocabulary


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
