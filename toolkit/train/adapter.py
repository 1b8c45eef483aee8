"""The adapter that is trained: put on a base by PEFT, with the rows of added tokens, and saved as what an export can hold.

Imports of PEFT are inside the functions on purpose: Unsloth patches what is imported after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from toolkit.errors import DataError, UsageError
from toolkit.models.adapter_files import PREFIX
from toolkit.models.adapters import LoraAdapter
from toolkit.models.changed_base import write_as_lora
from toolkit.models.peft_layers import NAME
from toolkit.models.weights import TrainedWeights, model_config
from toolkit.recipe.lora import Lora
from toolkit.recipe.schema import Recipe


def unknown_to_unsloth(recipe: Recipe) -> str:
    """What the recipe asks for and Unsloth cannot do, or not as PEFT does; empty where it can all."""
    lora = recipe.lora
    if recipe.tokens.add:
        return "tokens.add"
    if recipe.train.method == "full":
        return ""
    if lora.peft_type != "LORA":
        return f"lora.peft_type {lora.peft_type}"
    if lora.init_lora_weights is not True:
        return f"lora.init_lora_weights {lora.init_lora_weights}"
    return f"an adapter on {', '.join(lora.vocabulary_modules)}" if lora.vocabulary_modules else ""


# Tokens ---------------------------------------------------------------------------------------------------------


def add_tokens(model: Any, tokenizer: Any, tokens: Sequence[str], base: Path) -> list[int]:
    """Let tokenizer and model know further tokens. A new row begins as the mean of all, as the reference of an export has it
    (`toolkit.models.weights.resized`); a token that the base knows keeps its row.

    Args:
        base: the folder that the model was loaded from.

    Returns:
        Their ids, whose rows are to be trained.
    """
    if not tokens:
        return []
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    if old := [token for token in tokens if token in known]:
        Console(stderr=True).print(
            f"tokens.add: the base knows {', '.join(old)} already; what it has of them is trained on.", markup=False
        )
    # No special ones, which a server would not show.
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens if token not in known])
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:  # some bases have rows to spare
        dtype = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
        resize(model, TrainedWeights(base, dtype, None, len(tokenizer)))
    return [int(token) for token in tokenizer.convert_tokens_to_ids(list(tokens))]


@torch.no_grad()
def resize(model: Any, weights: TrainedWeights) -> None:
    """Give a base the rows that its adapter is trained with; new ones as `toolkit.models.weights.resized` has them."""
    model.resize_token_embeddings(weights.vocabulary, mean_resizing=False)
    model.get_input_embeddings().weight.copy_(weights.parameter(weights.embedding))
    if weights.tied_head is None and weights.head != weights.embedding:
        model.get_output_embeddings().weight.copy_(weights.parameter(weights.head))


def resized_rows(model: Any, base: Path) -> int | None:
    """Rows of the embedding, where they are others than the base's; see `AdapterFacts.vocabulary`."""
    rows = int(model.get_input_embeddings().weight.shape[0])
    return None if rows == model_config(base).get_text_config().vocab_size else rows


# Adapters -------------------------------------------------------------------------------------------------------


def put_adapter(
    model: Any, lora: Lora, task: Literal["CAUSAL_LM", "SEQ_CLS"], added: Sequence[int] = ()
) -> tuple[Any, Mapping[str, torch.Tensor]]:
    """Put a fresh adapter on a base.

    Args:
        added: token ids whose rows are trained beside it.

    Returns:
        (PeftModel, the adapter's tensors as it begins where they took a part of the base's weights, else empty).
    """
    from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, get_peft_model, get_peft_model_state_dict

    settings: dict[str, Any] = {"task_type": task, **lora.settings(), "target_modules": targets(model, lora)}
    config: Any
    match lora.peft_type:
        case "LORA":
            tied = bool(
                getattr(model.config, "tie_word_embeddings", False)
            )  # what transformers follows, also where a text part says else
            config = LoraConfig(
                **settings,
                bias="none",
                trainable_token_indices=_rows_to_train(model, lora, tied, added),
                # A base with one matrix for both stays one: an export with two is larger, and learns otherwise.
                ensure_weight_tying=tied and bool(set(lora.modules_to_save) & set(_ends_of(model))),
            )
        case "IA3":
            config = IA3Config(**settings)
        case "LOHA":
            config = LoHaConfig(**settings)
        case "LOKR":
            config = LoKrConfig(**settings)
    dtype = model.get_input_embeddings().weight.dtype
    tuned = get_peft_model(model, config)
    # The base's embeddings are in the base, what is trained of them in the adapter: else PEFT writes them into each checkpoint.
    tuned.save_pretrained = partial(tuned.save_pretrained, save_embedding_layers=False)
    if lora.modules_to_save and dtype != torch.float32:
        _compute_in_float32(tuned, dtype)
    begun: Mapping[str, torch.Tensor] = {}
    if lora.start:
        state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        begun = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if ".lora_" in name}
        # Whoever puts a second adapter on by this configuration (TRL, for its reference) would take that part once more.
        tuned.peft_config[NAME].init_lora_weights = True
    return tuned, begun


def targets(model: Any, lora: Lora) -> Any:
    """`lora.target_modules`; of a base that sees, the names of the layers that its switches leave.

    Raises:
        UsageError: they leave none.
    """
    if getattr(model.config, "vision_config", None) is None and all(lora.parts.values()):
        return lora.target_modules
    wanted, head = lora.target_modules, model.get_output_embeddings()
    language = {id(module) for module in model.get_decoder().modules()}
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
        and (wanted == "all-linear" or name.rpartition(".")[2] in wanted)
        and (lora.finetune_language_layers if id(module) in language else lora.finetune_vision_layers)
        and (lora.finetune_attention_modules if "attn" in name else lora.finetune_mlp_modules)
    ]  # fmt: skip
    if not found:
        off = ", ".join(key for key, on in lora.parts.items() if not on)
        raise UsageError(f"lora: with {off} off no layer of this base is left to train", "Leave one of them on.")
    return found


def _ends_of(model: Any) -> list[str]:
    """Embedding and output head by the last part of their names."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name.rpartition(".")[2] for name, module in model.named_modules() if any(module is end for end in ends)]


def _rows_to_train(model: Any, lora: Lora, tied: bool, added: Sequence[int]) -> dict[str, list[int]] | None:
    ends = _ends_of(model)
    if tied:
        ends = [] if set(ends) & set(lora.modules_to_save) else ends[:1]
    rows = {name: list(added) for name in ends if name not in lora.modules_to_save}
    return rows if added and rows else None


def _compute_in_float32(tuned: Any, dtype: torch.dtype) -> None:
    """Let modules that are trained whole, which are float32 in training, work between layers of 16 bits."""
    from peft.utils.other import ModulesToSaveWrapper

    def into(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted = next(module.parameters()).dtype
        return tuple(one.to(wanted) if torch.is_tensor(one) and one.is_floating_point() else one for one in given)

    for module in tuned.modules():
        if isinstance(module, ModulesToSaveWrapper):
            kept = module.modules_to_save[NAME]
            kept.register_forward_pre_hook(into)
            kept.register_forward_hook(lambda _, __, found: found.to(dtype))


def refuse_missing_targets(model: Any, lora: Lora) -> None:
    """PEFT trains what it finds of `target_modules` and `modules_to_save` and says nothing of the rest: of Phi-3, whose
    projections are fused, two of the usual seven.

    Raises:
        UsageError: a name that fits no layer; with the names that do.
    """
    ends = _ends_of(model)
    named = dict(model.named_modules())
    layers = {name.rpartition(".")[2] for name, module in named.items() if isinstance(module, torch.nn.Linear)}
    linear = layers - set(ends)
    possible = linear | (set(ends) if lora.peft_type == "LORA" else layers)
    targets = [] if isinstance(lora.target_modules, str) else lora.target_modules
    missing = [name for name in targets if name.rpartition(".")[2] not in possible]
    if missing:
        raise UsageError(
            f"lora.target_modules names {', '.join(missing)}, which this base does not have",
            f"It has {', '.join(sorted(linear))}. All of them: --set lora.target_modules=all-linear",
        )
    for name in lora.modules_to_save:
        found = [module for path, module in named.items() if path == name or path.endswith(f".{name}")]
        if not found:
            raise UsageError(
                f"lora.modules_to_save names {name}, which this base does not have", f"Its ends are {', '.join(ends)}."
            )
        if not all(parameter.is_floating_point() for module in found for parameter in module.parameters()):
            raise UsageError(
                f"lora.modules_to_save names {name}, which is held in 4 bits and cannot be trained whole",
                "Take it out, or --set train.method=lora",
            )


def head_is_wrapped(model: Any) -> bool:
    """Whether the output head is changed by the adapter: a loss that reads its weight, without calling it, would not see that."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    head = model.get_output_embeddings()
    return isinstance(head, BaseTunerLayer | AuxiliaryTrainingWrapper)


def go_on(model: Any, start: Path) -> None:
    """Give a fresh adapter the weights of an earlier step.

    Raises:
        DataError: they do not fit: the step was trained with another `lora`.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    told = set_peft_model_state_dict(model, load_peft_weights(str(start), device="cpu"))
    if told.unexpected_keys:
        raise DataError(
            f"{start} holds weights that this adapter has no place for: {told.unexpected_keys[:3]}", "Train anew."
        )


def save_adapter(
    model: Any, begun: Mapping[str, torch.Tensor], out: Path, weights: dict[str, Any] | None = None
) -> None:
    """Write the adapter that was trained into `out`; of one that began with a part of the base, what training changed.

    Args:
        begun: as `put_adapter` gave it.
        weights: put together, where each process holds a part of them.
    """
    # That one alone: a trainer may have kept a copy beside it, as its reference.
    model.save_pretrained(out, state_dict=weights, selected_adapters=[NAME])
    if begun:
        write_as_lora(
            LoraAdapter(out),
            lambda module: (begun[f"{PREFIX}{module}.lora_A.weight"], begun[f"{PREFIX}{module}.lora_B.weight"]),
            out,
        )
