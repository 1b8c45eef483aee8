"""An adapter, or a whole model, that another tool trained enters the chain here."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.errors import DataError, ToolkitError, UsageError
from toolkit.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE, check_adapter, is_model
from toolkit.models.adapters import LoraAdapter
from toolkit.models.bases import TOKENIZER_FILES, check_base, check_folder, is_here, read_chat_template, resolve_base
from toolkit.models.four_bit import four_bit_copy
from toolkit.models.safetensors_file import DTYPES, commonest_dtype, link_or_copy, model_entries, model_files
from toolkit.models.weights import TrainedWeights
from toolkit.recipe.reading import assembled
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import ARTIFACT_FILE, text_sha256, write_text
from toolkit.run.facts import AdapterFacts, Quantization

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
) -> Recipe:
    """The recipe of an export: no data, no training.

    Args:
        base: overrides what the adapter's config names.
        load_in_4bit: whether it was trained on the base in NF4; None: told from the base's name.
        settings: `key.key=value` texts, as `--set` takes them; they win.

    Raises:
        DataError: the folder holds no PEFT adapter, or a damaged one.
        UsageError: the settings cannot work together.
    """
    named = str(adapter) if is_model(adapter) else str(check_adapter(adapter).get("base_model_name_or_path") or "")
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
        "load_in_4bit": load_in_4bit,
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
    adapter.check_fits(TrainedWeights(Path(base.folder), base_dtype, None))
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copyfile(source / name, out / name)
    own_tokenizer = (source / "tokenizer_config.json").is_file()
    for name in TOKENIZER_FILES:
        path = (source if own_tokenizer else Path(base.folder)) / name
        if path.is_file():
            shutil.copyfile(path, out / name)
    if read_chat_template(out) is None:  # as some tools save a tokenizer; that the base has one was checked
        write_text(out / "chat_template.jinja", str(read_chat_template(Path(base.folder))))
        stderr.print(f"{source} has a tokenizer without a chat template: the base's own is taken.")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    quantized = recipe.load_in_4bit
    if quantized is None:
        quantized = _was_quantized(source, str(adapter.config.get("base_model_name_or_path", "")))
    return AdapterFacts(
        method="qlora" if quantized else "lora",
        base=base,
        base_dtype=base_dtype,
        quantization=Quantization() if quantized else None,
        chat_template_sha256=text_sha256(tokenizer.get_chat_template()),
        system=recipe.system,
        trained_here=False,
    )


def _was_quantized(folder: Path, base_name: str) -> bool:
    # An adapter of ours says so beside it. Others name the 4-bit base that they were trained on; PEFT itself does not record it.
    with contextlib.suppress(OSError, ValueError, KeyError):
        return bool(json.loads((folder / ARTIFACT_FILE).read_text(encoding="utf-8"))["facts"]["quantization"])
    copy = four_bit_copy(base_name)
    return copy is not None and copy.nf4
