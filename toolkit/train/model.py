"""The model that is trained: base, quantization, adapter. The only importer of Unsloth.

Imports of transformers and PEFT are inside the functions on purpose: Unsloth patches what is imported after it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from toolkit.errors import DataError, UsageError
from toolkit.models.pictures import sees_pictures
from toolkit.models.tokenizer import load_tokenizer, own_tokenizer
from toolkit.models.weights import attention_of, loaded_bytes, model_class, quantized_names, round_to_nf4, weights_of
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import SHARDED
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, BaseFacts, Quantization
from toolkit.run.hardware import has_bfloat16_products
from toolkit.run.places import cache_home
from toolkit.train.adapter import add_tokens, go_on, put_adapter, refuse_missing_targets, resize, unknown_to_unsloth

stderr = Console(stderr=True)


# As nvidia-smi counts, which the profile was chosen by; by itself CUDA puts the fastest card first.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


class Loaded(NamedTuple):
    """A model ready to train."""

    model: Any
    """PeftModel, or a plain transformers model for full fine-tuning."""
    tokenizer: Any
    base_dtype: str
    quantization: Quantization | None
    """What was really done to the base, whatever the recipe says."""
    through_unsloth: bool = False
    start: Mapping[str, torch.Tensor] = {}
    """The adapter's tensors as training began, where they took a part of the base's weights (PiSSA, OLoRA); else empty."""


def load_for_training(recipe: Recipe, base: BaseFacts, start: Path | None = None) -> Loaded:
    """Load the base as the recipe says and put an adapter on it: a fresh one, or what an earlier step left.

    With a CUDA card and Unsloth installed, through Unsloth; elsewhere, and where several processes train together,
    transformers, PEFT and bitsandbytes.

    Args:
        start: folder of the adapter (of the whole model, for method "full") that is trained on.

    Raises:
        UsageError: the base does not have the layers, or has the tokens, that the recipe names.
        DataError: the earlier step was trained with another `lora`.
    """
    torch.manual_seed(recipe.train.seed)
    if recipe.train.objective == "reward":
        return _reward_model(recipe, base)
    if start is not None and recipe.train.method == "full":
        return _load(recipe, base.model_copy(update={"folder": str(start)}))
    loaded = _load(recipe, base)
    if start is not None:
        go_on(loaded.model, start)
    return loaded


def _reward_model(recipe: Recipe, base: BaseFacts) -> Loaded:
    """A base with a head of one number; never in 4 bits, so that its numbers are those that rloo later gets."""
    from toolkit.train.judge import fresh_judge

    dtype = torch.bfloat16 if card_has_bf16() else torch.float32
    model, tokenizer = fresh_judge(base, recipe.lora, dtype, recipe.train.seed)
    return Loaded(model, tokenizer, str(dtype).removeprefix("torch."), None)


def _load(recipe: Recipe, base: BaseFacts) -> Loaded:
    dtype = training_dtype(recipe, Path(base.folder))
    if recipe.train.distributed != "none":
        return _through_transformers(recipe, base, dtype)
    if torch.cuda.is_available():
        unknown = unknown_to_unsloth(recipe)
        if unknown:
            stderr.print(f"Unsloth does not know {unknown}: training with transformers, slower.", style="yellow")
        elif importlib.util.find_spec("unsloth") is not None:
            return _through_unsloth(recipe, base, dtype)
        else:
            stderr.print("Unsloth is not installed: training with transformers, slower. To mend:", style="yellow")
            stderr.print("  make setup", style="yellow")
    return _through_transformers(recipe, base, dtype)


def card_has_bf16() -> bool:
    """Whether the card itself computes in bfloat16; a T4 or V100 only emulates it, slowly."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast_of(recipe: Recipe) -> dict[str, bool]:
    """`bf16` and `fp16` of the trainer: mixed precision is for cards."""
    return {"bf16": recipe.train.bf16 and card_has_bf16(), "fp16": torch.cuda.is_available() and not card_has_bf16()}


def training_dtype(recipe: Recipe, base_folder: Path) -> torch.dtype:
    """The type that the base's weights are loaded in: float32 where all of them are trained; else 16 bits on a card, and on a
    CPU float32 unless the recipe says bf16 and the base is stored in 16 bits (a float32 base is never rounded silently)."""
    if recipe.train.method == "full":
        return torch.float32  # small steps would be lost in 16 bits, and the optimizer gets float32 in any case
    if torch.cuda.is_available():
        return torch.bfloat16 if card_has_bf16() else torch.float16
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(base_folder, trust_remote_code=False).dtype
    return torch.bfloat16 if recipe.train.bf16 and stored == torch.bfloat16 else torch.float32


def _through_unsloth(recipe: Recipe, base: BaseFacts, dtype: torch.dtype) -> Loaded:
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_home() / "unsloth"))
    import unsloth

    full = recipe.train.method == "full"
    sees = sees_pictures(Path(base.folder))
    engine = unsloth.FastVisionModel if sees else unsloth.FastLanguageModel
    model, _ = engine.from_pretrained(
        model_name=base.folder,
        max_seq_length=recipe.train.max_length,
        dtype=dtype,
        load_in_4bit=recipe.train.method == "qlora",
        full_finetuning=full,
        trust_remote_code=False,
        local_files_only=True,
    )
    name, quantization = _as_loaded(recipe, model)
    if not full:
        refuse_missing_targets(model, recipe.lora)
        model = engine.get_peft_model(
            model,
            **recipe.lora.settings(),
            **(recipe.lora.parts if sees else {}),
            bias="none",
            use_gradient_checkpointing="unsloth" if recipe.train.gradient_checkpointing else False,
            random_state=recipe.train.seed,
        )
    # Not the tokenizer that Unsloth gave: it pads otherwise than the base says.
    return Loaded(model, own_tokenizer(base.folder), name, quantization, through_unsloth=True)


def _through_transformers(recipe: Recipe, base: BaseFacts, dtype: torch.dtype) -> Loaded:
    from peft import prepare_model_for_kbit_training

    on_processor = recipe.train.bf16 and not torch.cuda.is_available() and has_bfloat16_products()
    compute = torch.bfloat16 if on_processor else dtype
    asked = None
    if recipe.train.method == "qlora":
        asked = Quantization(double_quantization=recipe.train.bnb_4bit_use_double_quant)
    # What is cut into parts goes to the cards in parts.
    on_card = torch.cuda.is_available() and recipe.train.distributed not in SHARDED
    model = _load_base(Path(base.folder), dtype, asked, compute, on_card)
    tokenizer = own_tokenizer(base.folder)
    name, quantization = _as_loaded(recipe, model)
    added = add_tokens(model, tokenizer, recipe.tokens.add, Path(base.folder))
    if recipe.train.method == "full":
        model.requires_grad_(True)
        return Loaded(model, tokenizer, name, None)
    if quantization is not None and torch.cuda.is_available():
        model = prepare_model_for_kbit_training(model, recipe.train.gradient_checkpointing)
    model.config.use_cache = False
    refuse_missing_targets(model, recipe.lora)
    tuned, begun = put_adapter(model, recipe.lora, "CAUSAL_LM", added)
    return Loaded(tuned, tokenizer, name, quantization, start=begun)


def _as_loaded(recipe: Recipe, model: Any) -> tuple[str, Quantization | None]:
    """(type of the weights, how the linear layers are quantized) of a base that was just loaded.

    Merging and goldens make these weights anew, so they must be told the truth: Unsloth 2026.10.7 quantizes the scales of NF4
    too, whatever it is asked for.
    """
    import bitsandbytes

    dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    if recipe.train.method != "qlora":
        return dtype, None
    states = [m.weight.quant_state for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    found = {Quantization(quant_type=s.quant_type, blocksize=s.blocksize, double_quantization=s.nested) for s in states}
    if len(found) != 1:
        raise UsageError(
            f"{recipe.base}: {'layers were quantized in several ways' if found else 'no layer could be quantized'}",
            "Train on its 16-bit weights: --set train.method=lora",
        )
    quantization = found.pop()
    if quantization.double_quantization != recipe.train.bnb_4bit_use_double_quant:
        is_now = str(quantization.double_quantization).lower()
        stderr.print(f"train.bnb_4bit_use_double_quant is {is_now}: Unsloth knows no other.", style="yellow")
    return dtype, quantization


def _load_base(
    folder: Path, dtype: torch.dtype, quantization: Quantization | None, compute: torch.dtype, on_card: bool = False
) -> Any:
    from transformers import AutoConfig, BitsAndBytesConfig

    quantized = None
    if quantization is not None:
        quantized = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.quant_type,
            bnb_4bit_use_double_quant=quantization.double_quantization,
            bnb_4bit_compute_dtype=compute,
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = model_class(config).from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=quantized,
            device_map={"": torch.cuda.current_device() if on_card else "cpu"},
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention_of(config),
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"the base model in {folder} cannot be loaded: {error}", "Check it: tune2ollama doctor"
        ) from error
    keep_gradients_of_nf4(model)
    return model


def keep_gradients_of_nf4(model: Any) -> None:
    """Stop bitsandbytes from repacking NF4 weights for a CPU kernel without autograd.

    On a CPU with AVX512-BF16, any forward without gradients repacks the weights; training after an evaluation then
    loses most of its gradient, silently (bitsandbytes 0.50.2, `Linear4bit.forward`).
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def card_holds(needed: int) -> bool:
    """Whether the first card has so many bytes free, and a quarter more for what is computed."""
    return torch.cuda.is_available() and 1.25 * needed <= torch.cuda.mem_get_info(0)[0]


def load_tuned(adapter: Artifact[AdapterFacts], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load the tuned model as it was trained, for reference: never through Unsloth, in eval mode; on the card where it fits.

    Args:
        adapter: what `train` left, or an adapter that another tool made.
        dtype: type of the computation; the base's weights keep the type (and NF4) they were trained with.

    Returns:
        (model, tokenizer): a PeftModel whose `disable_adapter()` gives the base, or a plain model for method "full".
    """
    facts = adapter.facts
    on_card = torch.cuda.is_available() and card_holds(loaded_bytes(weights_of(adapter), dtype))
    tokenizer = load_tokenizer(adapter.folder, adapter.facts.base.folder)
    if facts.method == "full":
        return _load_base(adapter.folder, dtype, None, dtype, on_card).eval(), tokenizer
    if facts.stacked:
        from toolkit.models.reference import reference_of

        return reference_of(adapter, whole=True).tuned.to(dtype).to("cuda" if on_card else "cpu"), tokenizer
    from peft import PeftModel

    return PeftModel.from_pretrained(load_base(adapter, dtype, on_card), adapter.folder).eval(), tokenizer


def load_base(adapter: Artifact[AdapterFacts], dtype: torch.dtype, on_card: bool = False) -> Any:
    """Load the base of an artifact's model as training saw it; see `load_tuned`."""
    facts = adapter.facts
    # The weights as they were: quantized from `base_dtype`, or rounded to it; computing on them is in `dtype`.
    stored: torch.dtype = getattr(torch, facts.base_dtype)
    # Packed, they would be unpacked in every forward, for every token of an answer.
    packed, rounded = facts.quantization, None
    if dtype == torch.float32 and not on_card:
        packed, rounded = rounded, packed
    model = _load_base(Path(facts.base.folder), stored, packed, dtype, on_card)
    if facts.vocabulary is not None:
        resize(model, weights_of(adapter))
    if packed is None:
        model = model.to(dtype)
    else:
        _compute_in(model, dtype)
    if rounded is not None:
        for name in quantized_names(model):
            weight = model.get_parameter(name)
            weight.data = round_to_nf4(weight.data, rounded)
    return model.eval()


def _compute_in(model: Any, dtype: torch.dtype) -> None:
    # Linear4bit dequantizes to the type of what it is given; all else must be of that type.
    import bitsandbytes

    quantized = bitsandbytes.nn.Linear4bit
    held = {id(p) for m in model.modules() if isinstance(m, quantized) for p in m.parameters(recurse=False)}
    for parameter in model.parameters():
        if id(parameter) not in held:
            parameter.data = parameter.data.to(dtype)
