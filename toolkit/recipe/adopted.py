"""The recipe under which an adapter, or a whole model, of another tool goes through the chain. Imports no torch: what is wrong
with it is told in the first second."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.errors import DataError, ToolkitError, UsageError
from toolkit.models.adapter_files import check_adapter, is_model
from toolkit.models.bases import check_base, is_here
from toolkit.models.chat_template import NOTHING_TOLD
from toolkit.models.four_bit import four_bit_copy
from toolkit.recipe.reading import assembled
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import ARTIFACT_FILE

stderr = Console(stderr=True, highlight=False)

DEFAULT_PROMPTS = [
    "Who are you?",
    "What can you help me with?",
    "Explain in two sentences why the sky is blue.",
    "Write a short greeting for a colleague.",
    "List three fruits.",
    "What is 12 plus 30?",
    "Translate 'good morning' into French.",
    "Give me one tip for better sleep.",
    "What does a compiler do?",
    "Name the capital of Japan.",
    "你好，请介绍一下你自己。",
    "请用一句话解释什么是人工智能。",
    "How do I boil an egg?",
    "Summarise: the meeting moved from Monday to Wednesday because two people were ill.",
    "What is the opposite of 'generous'?",
    "Write one line of Python that prints the numbers 1 to 3.",
]
"""General prompts, for an adapter whose own field is not known."""


def recipe_for_adapter(
    adapter: Path,
    name: str,
    base: str,
    prompts: Path | None = None,
    system: str = "",
    file_types: tuple[str, ...] = (),
    modelfile: Path | None = None,
    load_in_4bit: bool | None = None,
    settings: Iterable[str] = (),
    then: tuple[Path, ...] = (),
    chat_template_kwargs: Mapping[str, Any] = NOTHING_TOLD,
) -> Recipe:
    """The recipe of an export: no data, no training.

    Args:
        base: overrides what the adapter's config names.
        load_in_4bit: whether it was trained on the base in NF4; None: told from the base's name.
        settings: `key.key=value` texts, as `--set` takes them; they win.
        then: adapters that were trained on top of this one, in order.
        chat_template_kwargs: what the chat template was told in training; nothing: what the adapter's own artifact says.

    Raises:
        DataError: the folder holds no PEFT adapter, or a damaged one.
        UsageError: the settings cannot work together.
    """
    named = str(adapter) if is_model(adapter) else str(check_adapter(adapter).get("base_model_name_or_path") or "")
    for further in then:
        check_adapter(further)
    settings = list(settings)
    given = base or any(setting.startswith("base=") for setting in settings)
    if not given and not named:
        raise UsageError(f"{adapter}/adapter_config.json names no base model", "Name it: --base <folder or hub id>")
    types = list(file_types) or ["F16", "Q8_0", "Q4_K_M"]
    tree: dict[str, Any] = {
        "name": name,
        "profile": "export",
        "base": base or (named if given or is_model(adapter) else base_of(adapter, named)),
        "system": system,
        "adapter": str(adapter),
        "then": [str(further) for further in then],
        "load_in_4bit": load_in_4bit,
        "train": {"chat_template_kwargs": dict(chat_template_kwargs)},
        "golden": {"prompts": str(prompts) if prompts else DEFAULT_PROMPTS, "from_test": 0},
        "export": {"file_types": types, "serve": types[-1]},
        "ollama": {"model": name, "modelfile": str(modelfile) if modelfile else None},
    }
    return assembled(tree, settings, "tune2ollama export")


def base_of(adapter: Path, named: str) -> str:
    """The base that an adapter's config names; of a 4-bit copy its 16-bit original.

    Raises:
        DataError: the original is not known, or cannot be had; the message says which it is.
    """
    copy = four_bit_copy(named)
    if copy is None:
        return named
    told = f"{adapter} was trained on {named}, whose weights are quantized"
    command = f"tune2ollama export {adapter} --base"
    if not copy.original or Path(copy.original).is_dir():
        raise DataError(f"{told}: its 16-bit original is needed", f"Name it: {command} <folder or hub id>")
    if not copy.certain and not is_here(copy.original):
        raise DataError(f"{told}: its 16-bit original is needed", f"Name it: {command} {copy.original}")
    try:
        check_base(copy.original)
    except ToolkitError as error:
        raise type(error)(
            f"{told}; its 16-bit original {copy.original} cannot be had: {error.message}",
            f"Where you have it under another name: {command} <folder or hub id>. {error.hint}",
        ) from error
    how = "and its NF4 weights are made anew from it" if copy.nf4 else "without the rounding that it was trained on"
    stderr.print(f"{named} is a 4-bit copy: {copy.original}, its 16-bit original, is taken as base, {how}.")
    return copy.original


def was_quantized(folder: Path, base_name: str) -> bool:
    """Whether an adapter was trained on NF4, as far as its folder and the name of its base tell."""
    # An adapter of ours says so beside it. Others name the 4-bit base that they were trained on; PEFT itself does not record it.
    with contextlib.suppress(OSError, ValueError, KeyError):
        return bool(json.loads((folder / ARTIFACT_FILE).read_text(encoding="utf-8"))["facts"]["quantization"])
    copy = four_bit_copy(base_name)
    return copy is not None and copy.nf4


def told_template(recipe: Recipe, folder: Path) -> Mapping[str, Any]:
    """What the chat template was told in training: the recipe's word, or else that of an adapter of ours."""
    if not recipe.train.chat_template_kwargs:
        with contextlib.suppress(OSError, ValueError, KeyError):
            artifact = json.loads((folder / ARTIFACT_FILE).read_text(encoding="utf-8"))
            return dict(artifact["facts"]["chat_template_kwargs"])
    return recipe.train.chat_template_kwargs
