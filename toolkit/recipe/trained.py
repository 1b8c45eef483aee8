"""How many weights a recipe trains, by the shape of its base; see `toolkit.recipe.lora` for the kinds."""

from __future__ import annotations

import math

from toolkit.recipe.lora import Lora
from toolkit.recipe.schema import Recipe
from toolkit.recipe.sizes import Shape, Vision

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def trained_parameters(recipe: Recipe, shape: Shape) -> int:
    """Weights of the adapter, with what is trained whole beside it and the rows of added tokens; or all of them."""
    rows = len(recipe.tokens.add) * shape.hidden_size * (1 if shape.tied else 2)
    if recipe.train.method == "full":
        return shape.parameters() + rows
    lora = recipe.lora
    layers = shape.num_hidden_layers * sum(_of_layer(lora, *size, name) for name, size in _chosen(lora, shape).items())
    targets = [name for name in lora.vocabulary_modules if name not in lora.modules_to_save]
    ends = len(targets) * lora.r * (shape.vocab_size + shape.hidden_size)
    whole = min(len(lora.vocabulary_modules) - len(targets), 1 if shape.tied else 2)
    return layers + _of_vision(lora, shape.vision) + ends + whole * shape.embedding_parameters() + rows


def _of_vision(lora: Lora, vision: Vision | None) -> int:
    """Of the part that sees; see `toolkit.train.adapter.targets`."""
    if vision is None or not lora.finetune_vision_layers:
        return 0
    wanted = lora.target_modules
    return sum(
        count * _of_layer(lora, inputs, outputs, name)
        for name, (inputs, outputs, count) in vision.projections().items()
        if (wanted == "all-linear" or name.rpartition(".")[2] in wanted)
        and (lora.finetune_attention_modules if "attn" in name else lora.finetune_mlp_modules)
    )


def whole_deltas(lora: Lora, shape: Shape) -> int:
    """Weights of the changed layers, where the adapter makes a matrix as large as the layer's own in every step."""
    if lora.peft_type not in ("LOHA", "LOKR"):
        return 0
    return shape.num_hidden_layers * sum(math.prod(size) for size in _chosen(lora, shape).values())


def _chosen(lora: Lora, shape: Shape) -> dict[str, tuple[int, int]]:
    wanted = lora.target_modules
    return {
        name: size
        for name, size in shape.projections().items()
        if lora.finetune_language_layers
        and (wanted == "all-linear" or name in wanted)
        and (lora.finetune_attention_modules if name in _ATTENTION else lora.finetune_mlp_modules)
    }


def _of_layer(lora: Lora, inputs: int, outputs: int, name: str) -> int:
    match lora.peft_type:
        case "LORA":
            return lora.r * (inputs + outputs) + (outputs if lora.use_dora else 0)
        case "IA3":
            return inputs if name in lora.settings()["feedforward_modules"] else outputs
        case "LOHA":
            return 2 * lora.r * (inputs + outputs)
        case "LOKR":
            (in_small, in_large), (out_small, out_large) = (
                _factors(size, lora.decompose_factor) for size in (inputs, outputs)
            )
            left = _product(out_small, in_small, lora.r if lora.decompose_both else 0)
            return left + _product(out_large, in_large, lora.r)


def _product(rows: int, columns: int, r: int) -> int:
    """A factor of LoKr: two thin matrices where r is less than half its longer side, else whole."""
    return r * (rows + columns) if 0 < r < max(rows, columns) / 2 else rows * columns


def _factors(size: int, wanted: int) -> tuple[int, int]:
    """Two numbers whose product is `size`: the wanted one first where it divides it, else as square as it goes below it."""
    if wanted > 0 and size % wanted == 0:
        return wanted, size // wanted
    most = min(math.isqrt(size), wanted if wanted > 0 else size)
    small = next(number for number in range(most, 0, -1) if size % number == 0)
    return small, size // small
