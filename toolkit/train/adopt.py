"""An adapter, or a whole model, that another tool trained enters the chain here; a plain LoRA without torch."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.errors import DataError
from toolkit.export.plain import plain_factors
from toolkit.models.adapter_files import CONFIG_FILE, WEIGHTS_FILE, is_model, read_config
from toolkit.models.bases import TOKENIZER_FILES, check_folder, read_chat_template, resolve_base
from toolkit.models.safetensors_file import DTYPES, commonest_dtype, link_or_copy, model_entries, model_files
from toolkit.models.structure import structure_of
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
    base = resolve_base(recipe.base)
    folder = Path(base.folder)
    base_dtype = _stored_dtype(folder)
    quantized = recipe.load_in_4bit
    if quantized is None:
        quantized = was_quantized(source, str(read_config(source).get("base_model_name_or_path", "")))
    plain = (
        not recipe.then and plain_factors(source, structure_of(folder), model_entries(model_files(folder))) is not None
    )
    vocabulary = None
    if plain:
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copyfile(source / name, out / name)
    else:
        from toolkit.train.fitted import take_all

        vocabulary = take_all(recipe, folder, base_dtype, quantized, out)
    source = Path(recipe.then[-1]) if recipe.then else source
    own_tokenizer = (source / "tokenizer_config.json").is_file()
    for name in TOKENIZER_FILES:
        path = (source if own_tokenizer else folder) / name
        if path.is_file():
            shutil.copyfile(path, out / name)
    if read_chat_template(out) is None:  # as some tools save a tokenizer; that the base has one was checked
        write_text(out / "chat_template.jinja", str(read_chat_template(folder)))
        stderr.print(f"{source} has a tokenizer without a chat template: the base's own is taken.")
    return AdapterFacts(
        method="qlora" if quantized else "lora",
        base=base,
        base_dtype=base_dtype,
        quantization=Quantization() if quantized else None,
        vocabulary=vocabulary,
        stacked=len(recipe.then),
        chat_template_sha256=text_sha256(_template(out, folder, plain)),
        chat_template_kwargs=told_template(recipe, source),
        system=recipe.system,
        trained_here=False,
        trainer_loss=_trainer_loss(source),
    )


def _template(folder: Path, base: Path, plain: bool) -> str:
    """The chat template as transformers reads it; its import takes seconds, so it is asked only where it may read another one."""
    if plain and (folder / "chat_template.jinja").is_file():
        return str(read_chat_template(folder))
    from toolkit.models.tokenizer import load_tokenizer

    return str(load_tokenizer(folder, base).get_chat_template())


def _trainer_loss(folder: Path) -> float | None:
    """The last training loss in transformers' `trainer_state.json`; None where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        losses = [float(entry["loss"]) for entry in history if "loss" in entry]
        return losses[-1] if losses and math.isfinite(losses[-1]) else None
    return None
