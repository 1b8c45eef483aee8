"""What to lower when memory runs out, in the order that costs least."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from toolkit.errors import ResourceError
from toolkit.models.bases import is_here
from toolkit.recipe.pictured import rules_for
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import SAMPLED, SHARDED


def settings_to_lower(recipe: Recipe) -> list[str]:
    """Settings as `--set` takes them, cheapest first; the first ones change nothing in the result."""
    train, found = recipe.train, []
    sampled = train.objective in SAMPLED
    half = train.per_device_train_batch_size // 2
    if half > (train.objective == "kto"):  # which compares within a batch
        steps = train.gradient_accumulation_steps * train.per_device_train_batch_size // half
        found.append(
            f"--set train.per_device_train_batch_size={half} --set train.gradient_accumulation_steps={steps}"
            "   (same result, a little slower)"
        )
    if train.packing and not recipe.profile.startswith("gpu"):
        found.append("--set train.packing=false   (a mask over all rows of a batch is spared)")
    if not train.gradient_checkpointing:
        found.append("--set train.gradient_checkpointing=true   (same result, about a third slower)")
    if sampled and train.num_generations > 4:
        found.append(
            "--set train.num_generations=4 --set train.per_device_train_batch_size=4 --set train.gradient_accumulation_steps=1"
            "   (fewer answers to compare)"
        )
    if sampled and train.max_completion_length > 64:
        found.append(f"--set train.max_completion_length={train.max_completion_length // 2}   (longer answers are cut)")
    on_cards = recipe.profile.startswith("gpu")
    if on_cards and train.distributed in ("ddp", "zero2") and train.method != "qlora" and train.optim == "adamw_torch":
        found.append("--set train.distributed=fsdp   (each card holds a part of the weights; same result)")
    if train.method == "lora" and train.distributed not in SHARDED:
        found.append("--set train.method=qlora   (base in 4 bits)")
    if train.method == "full":
        found.append("--set train.method=lora   (trains an adapter only)")
    if train.optim == "adamw_torch" and on_cards and train.distributed != "fsdp":
        found.append("--set train.optim=adamw_8bit")
    rules = rules_for(recipe.base) if is_here(recipe.base) else None
    if rules is not None and train.method != "full" and recipe.lora.finetune_vision_layers:
        found.append("--set lora.finetune_vision_layers=false   (the part that sees stays the base's)")
    if rules is None and train.max_length > 256:
        found.append(f"--set train.max_length={train.max_length // 2}   (with a lower data.max_characters)")
    elif rules is not None and rules.kind == "dynamic":
        side = rules.patch * int(rules.min_tokens**0.5)
        found.append(f"smaller pictures: one of {side} × {side} pixels takes {rules.min_tokens:,} tokens, the fewest")
    if train.method != "full" and recipe.lora.peft_type in ("LOHA", "LOKR"):
        found.append("--set lora.peft_type=LORA   (makes no matrix as large as a layer's)")
    if train.method != "full" and set(recipe.lora.modules_to_save) & set(recipe.lora.vocabulary_modules):
        found.append("--set lora.modules_to_save=[]   (embedding and head stay the base's)")
    if train.method != "full" and recipe.lora.peft_type != "IA3" and recipe.lora.r > 8:
        found.append(f"--set lora.r={recipe.lora.r // 2}")
    found.append("--set base=<a smaller base of the same family>")
    return found


@contextmanager
def memory_advice(recipe: Recipe) -> Iterator[None]:
    """Turn an out-of-memory error of torch into advice.

    Raises:
        ResourceError: torch could not get memory, on the card or on the CPU.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        out = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
        if not out and "out of memory" not in text.lower():
            raise
        raise ResourceError(
            f"memory ran out during training: {text.splitlines()[0] if text else 'no memory left'}",
            "Lower one of these and run again, best first:\n  " + "\n  ".join(settings_to_lower(recipe)),
        ) from error
