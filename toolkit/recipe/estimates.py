"""Memory and speed of training, from a recipe and the shape of its base: the formulas behind a plan."""

from __future__ import annotations

from toolkit.recipe.schema import Recipe
from toolkit.recipe.sizes import EMBEDDED, Shape, Vision
from toolkit.recipe.trained import trained_parameters, whole_deltas
from toolkit.recipe.training import SAMPLED, SHARDED
from toolkit.run.hardware import Hardware

GIB = 2**30
PROCESS_BYTES = 1.0 * GIB
"""Python with torch and transformers loaded (measured on Linux)."""
TRAINING_PROCESS_BYTES = 1.6 * GIB
"""The same with TRL, datasets and bitsandbytes at work: what the medical run took beyond the formula below."""
LOGITS_ROWS = 256
"""Tokens whose logits are held at once (TRL's loss_type "chunked_nll")."""
CUDA_CONTEXT_BYTES = 1.0 * GIB
NF4_BYTES = (4 + 0.127) / 8
"""A weight and its share of the doubly quantized block scales (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""

CPU_TOKENS_PER_SECOND = {("qlora", False): 370, ("qlora", True): 540, ("lora", False): 320, ("lora", True): 510}
"""(method, bf16) → trained tokens/s of the embedded 135M base on 2 cores (measured). Full tuning: 0.7 × LoRA."""
IMATRIX_TOKENS = 16_384
"""Tokens of training rows that an importance matrix is measured with, where there are so many: it is to cost half a minute."""
IMATRIX_TOKENS_PER_SECOND = 430
"""Read so, by the embedded base on 2 cores (measured: 12,612 tokens of the medical rows in 29 s)."""
SEQUENCES = {"dpo": 2.0, "orpo": 2.0, "simpo": 2.0, "reward": 2.0, "kto": 1.0}
"""Sequences of a row, where it is not one."""
PASSES = {"dpo": 1.45, "kto": 2.7, "reward": 1.35, "grpo": 1.3, "rloo": 1.3}
"""What a sequence costs beside one of fine-tuning: the reference, and for kto the mismatched answer (measured: batches of 2
with up to 128 tokens took 1.1 s for sft, 3.2 for dpo, 3.0 for kto and reward)."""
CPU_SAMPLING_SECONDS = 0.12
"""To sample one more token of a batch of answers, for the embedded base on 2 cores (measured with 4 answers of 64 tokens)."""
CARD_SAMPLING_SECONDS = 0.03
"""The same on a card, where starting the kernels of some 30 layers takes that long; not measured with vLLM, which is faster."""
CARDS = {
    "T4": 65, "L4": 121, "V100": 112, "3060": 51, "3090": 71, "4060": 61, "4090": 165,
    "A100": 312, "A10": 125, "H100": 990, "H200": 990,
}  # fmt: skip
"""Dense 16-bit tensor-core TFLOP/s of the maker's data sheets; a name that is not here counts as 60."""
UTILIZATION = 0.25
"""Share of those that a large batch with adapters reaches."""
CARD_SECONDS_PER_LAYER = 0.018
"""Least time of one batch in one layer, forward, again and backward, however small it is and however fast the card: starting the
kernels costs that (measured on an H200 with Unsloth and NF4: 0.54 s a step of 8 rows in 30 layers)."""
CARD_START_SECONDS = 70.0
"""Importing Unsloth and compiling its kernels in the first step (measured on the same machine)."""


def training_memory(
    recipe: Recipe, shape: Shape, longest: int, on_gpu: bool, shown: int = 0, patches: int = 0
) -> float:
    """Peak bytes of training, without the process itself; of several that train together, of each.

    Args:
        longest: tokens of the longest row, its pictures' too.
        shown: of its pictures alone; the head is not asked about these.
        patches: of its pictures, that the part that sees goes through.

    Weights (NF4: 4.127 bits for the linear layers), gradient and Adam states of what is trained (16 bytes a weight in
    fp32, 10 with an 8-bit optimizer), what the backward pass keeps of every layer (two norms, q, k, v, attention output
    and four of the gated MLP; with checkpointing one input a layer and one layer in full: Chen et al. 2016, arXiv
    1604.06174), attention scores where no fused kernel spares them (CPU), the matrix that LoHa and LoKr make of each layer, and
    three copies of a chunk's logits in fp32, or of all where an adapter changes the head or the objective needs every likelihood.
    The part that sees counts in the same way, a layer over patches; its attention is fused on a CPU too. Where it is not trained
    it keeps nothing.
    """
    train = recipe.train
    size = 2 if on_gpu or (train.bf16 and not recipe.base.startswith("embedded:")) else 4
    total, linear = shape.parameters(), shape.linear_parameters()
    weights = linear * NF4_BYTES + (total - linear) * size if train.method == "qlora" else total * size
    states: float = trained_parameters(recipe, shape) * (10 if train.optim != "adamw_torch" else 16)
    if train.packing:
        longest = train.max_length
    if train.objective in SAMPLED:
        longest = min(longest + train.max_completion_length, train.max_length)
    tokens = round(train.per_device_train_batch_size * SEQUENCES.get(train.objective, 1.0) * longest)
    keys = shape.projections()["k_proj"][1]
    layer: float = tokens * (5 * shape.hidden_size + 2 * keys + 4 * shape.intermediate_size) * size
    if not on_gpu:
        # Packed rows of a batch lie in one sequence.
        layer += 2 * tokens * (tokens if train.packing else longest) * shape.num_attention_heads * size
    layer += whole_deltas(recipe.lora, shape) / shape.num_hidden_layers * size if train.method != "full" else 0
    kept = shape.num_hidden_layers * layer
    if train.gradient_checkpointing:
        kept = shape.num_hidden_layers * tokens * shape.hidden_size * size + layer
    mapped = 0 if on_gpu else total * size  # on a CPU the base's files stay mapped after they were quantized
    # A head that the adapter changes gives all logits at once, and rows of tokens are put into a copy of their matrix.
    by_adapter = train.method != "full" and bool(recipe.lora.vocabulary_modules or recipe.tokens.add)
    in_chunks = train.objective in ("sft", "pretrain", "reward") and not by_adapter
    asked = tokens - train.per_device_train_batch_size * shown
    logits = 3 * (min(asked, LOGITS_ROWS) if in_chunks else asked) * shape.vocab_size * 4
    if recipe.tokens.add and by_adapter:
        weights += 2 * shape.embedding_parameters() * size
    if train.distributed in SHARDED:
        weights /= train.num_processes
    if train.distributed in (*SHARDED, "zero2"):
        states /= train.num_processes
    seen = _seeing_memory(recipe, shape.vision, patches, size) if shape.vision and patches else 0.0
    return weights + states + kept + logits + seen + (mapped if train.method == "qlora" else 0)


def _seeing_memory(recipe: Recipe, vision: Vision, patches: int, size: int) -> float:
    patches *= recipe.train.per_device_train_batch_size
    layer: float = patches * (7 * vision.hidden_size + (vision.matrices + 1) * vision.intermediate_size) * size
    layers = vision.depth if recipe.train.method == "full" or recipe.lora.finetune_vision_layers else 1
    kept = layers * layer
    if recipe.train.gradient_checkpointing:
        kept = layers * patches * vision.hidden_size * size + layer
    return vision.parameters() * size + kept


def as_text(shape: Shape, words: float, shown: float, patches: float) -> float:
    """So many tokens of text cost as much to read as a row does.

    A token of a picture never meets the head; the part that sees reads every patch; and attention, which is next to nothing in
    short texts, costs width × length for each token of a long one (Kaplan et al. 2020, arXiv 2001.08361, table 1).

    Args:
        words: tokens of text.
        shown: tokens of pictures.
        patches: that these are made of.
    """
    if not shown:
        return words
    total, linear = shape.parameters(), shape.linear_parameters()
    work = words * total + shown * linear + 2 * shape.num_hidden_layers * shape.hidden_size * (words + shown) ** 2
    if shape.vision:
        work += patches * shape.vision.parameters() + 2 * shape.vision.whole * shape.vision.hidden_size * patches**2
    return work / total


def tokens_per_second(recipe: Recipe, shape: Shape, hardware: Hardware, tokens_per_row: float) -> float:
    """Trained tokens/s: on a card 6 operations a weight and token (Kaplan et al. 2020, arXiv 2001.08361) at a quarter of its
    peak, unless starting the kernels takes longer, times the cards; on a CPU the measured rate of the embedded base, by the ratio
    of the sizes and cores, which processes only divide."""
    if hardware.gpu_memory_bytes:
        peak = next((speed for card, speed in CARDS.items() if card in hardware.gpu_name), 60)
        batch = recipe.train.per_device_train_batch_size * tokens_per_row
        starting = batch / (CARD_SECONDS_PER_LAYER * shape.num_hidden_layers)
        return recipe.train.num_processes * min(UTILIZATION * peak * 1e12 / (6 * shape.parameters()), starting)
    method = "lora" if recipe.train.method == "full" else recipe.train.method
    short = recipe.train.bf16 and hardware.bfloat16_products
    rate = CPU_TOKENS_PER_SECOND[method, short] * (0.7 if recipe.train.method == "full" else 1.0)
    return rate * EMBEDDED.parameters() / shape.parameters() * hardware.cores / 2


def step_seconds(recipe: Recipe, shape: Shape, hardware: Hardware, tokens_per_row: float) -> float:
    """Seconds of a step: what it trains on, and for grpo and rloo what it samples first, as long as answers may be."""
    train = recipe.train
    rows = train.rows_a_step
    sampled = train.max_completion_length if train.objective in SAMPLED else 0
    tokens = rows * SEQUENCES.get(train.objective, 1.0) * (tokens_per_row + sampled / 2)
    seconds = PASSES.get(train.objective, 1.0) * tokens / tokens_per_second(recipe, shape, hardware, tokens_per_row)
    if hardware.gpu_memory_bytes:
        return seconds + sampled * CARD_SAMPLING_SECONDS
    return seconds + sampled * CPU_SAMPLING_SECONDS * shape.parameters() / EMBEDDED.parameters() * 2 / hardware.cores
