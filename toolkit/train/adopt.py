"""An adapter that another tool trained enters the chain here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from toolkit.artifacts import AdapterFacts, Quantization, text_sha256
from toolkit.bases import TOKENIZER_FILES, resolve_base
from toolkit.errors import UsageError
from toolkit.lora import CONFIG_FILE, WEIGHTS_FILE, LoraAdapter, read_config
from toolkit.recipe import Recipe
from toolkit.weights import TrainedWeights

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
) -> Recipe:
    """The recipe of an export: no data, no training.

    Args:
        base: overrides what the adapter's config names.

    Raises:
        DataError: the folder holds no PEFT adapter.
        UsageError: the settings cannot work together.
    """
    from pydantic import ValidationError

    named = str(read_config(adapter).get("base_model_name_or_path") or "")
    if not base and not named:
        raise UsageError(f"{adapter}/adapter_config.json names no base model", "Name it: --base <folder or hub id>")
    types = list(file_types) or ["F16", "Q8_0", "Q4_K_M"]
    tree: dict[str, Any] = {
        "name": name,
        "profile": "export",
        "base": base or named,
        "system": system,
        "adapter": str(adapter),
        "golden": {"prompts": str(prompts) if prompts else DEFAULT_PROMPTS, "from_test": 0},
        "export": {"file_types": types, "serve": types[-1]},
        "ollama": {"model": name, "modelfile": str(modelfile) if modelfile else None},
    }
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise UsageError(faults, "Look at: tune2ollama export --help") from error


def adopt_adapter(recipe: Recipe, out: Path) -> AdapterFacts:
    """Copy an adapter of another tool, with the tokenizer that it was trained with, into `out`.

    Raises:
        DataError: no PEFT adapter, only pickled weights, or an adapter of another base.
    """
    source = Path(recipe.adapter or "")
    adapter = LoraAdapter(source)
    base = resolve_base(recipe.base)
    stored = json.loads((Path(base.folder) / "config.json").read_text(encoding="utf-8"))
    dtype = str(stored.get("dtype") or stored.get("torch_dtype"))
    base_dtype: Any = dtype if dtype in {"float32", "bfloat16", "float16"} else "float32"
    adapter.check_fits(TrainedWeights(Path(base.folder), base_dtype, None))
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        shutil.copyfile(source / name, out / name)
    own_tokenizer = (source / "tokenizer_config.json").is_file()
    for name in TOKENIZER_FILES:
        path = (source if own_tokenizer else Path(base.folder)) / name
        if path.is_file():
            shutil.copyfile(path, out / name)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    quantized = _was_quantized(str(adapter.config.get("base_model_name_or_path", "")))
    return AdapterFacts(
        method="qlora" if quantized else "lora",
        base=base,
        base_dtype=base_dtype,
        quantization=Quantization() if quantized else None,
        chat_template_sha256=text_sha256(tokenizer.get_chat_template()),
        system=recipe.system,
        trained_here=False,
    )


def _was_quantized(base_name: str) -> bool:
    # Unsloth names the 4-bit base that it trained on; PEFT itself does not record the quantization.
    return base_name.lower().endswith(("-bnb-4bit", "-unsloth-bnb-4bit"))
