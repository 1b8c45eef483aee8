"""Small models with real tokenizers and real chat templates, built in code; shared by the tests.

Width 256, because the K-quants' blocks are 256 wide. Norms and biases are random too: a lost one shows.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.spm_tokenizers import SIZES, TREE, in_cache, spm_tokenizer
from toolkit.models.bases import TOKENIZER_FILES, check_folder, read_chat_template, resolve_base
from toolkit.models.qwen2_tokenizer import write_tokenizer
from toolkit.models.tokenizer import load_tokenizer
from toolkit.run.artifacts import Artifact, Cost, file_sha256, text_sha256
from toolkit.run.facts import AdapterFacts, BaseFacts, Quantization

EMBEDDED = "embedded:smollm2-135m-instruct"
TokenizerName = Literal["smollm2", "small", "qwen2", "gemma2", "phi3"]
SMALL = 4_096
"""Tokens of the tokenizer `small`."""


def put_tokenizer(folder: Path, name: TokenizerName = "smollm2") -> None:
    """Put a real tokenizer and its chat template into a model folder: SmolLM2's 49,152 tokens, Qwen2.5's 151,936, or a
    SentencePiece one of 32,000 (see `tests.spm_tokenizers`).

    Args:
        name: "small" is the first tokens of SmolLM2's: a tiny model spends most of its time on a vocabulary. For what trains and
            merges; llama.cpp's converter knows tokenizers by what they make of a text, and does not know this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    match name:
        case "smollm2":
            source = Path(resolve_base(EMBEDDED).folder)
        case "small":
            source = _small_tokenizer()
        case "qwen2":
            source = _qwen2_tokenizer()
        case _:
            source = spm_tokenizer(name)
    for file in TOKENIZER_FILES:
        if (source / file).is_file():
            shutil.copy(source / file, folder / file)


@functools.cache
def _qwen2_tokenizer() -> Path:
    def write(folder: Path) -> None:
        write_tokenizer(folder, TREE / "models" / "ggml-vocab-qwen2.gguf")
        shutil.copy(TREE / "models" / "templates" / "Qwen-Qwen2.5-7B-Instruct.jinja", folder / "chat_template.jinja")

    return in_cache("qwen2-tokenizer-3", write)


@functools.cache
def _small_tokenizer() -> Path:
    def write(folder: Path) -> None:
        put_tokenizer(folder, "smollm2")
        path = folder / "tokenizer.json"
        told = json.loads(path.read_text(encoding="utf-8"))
        kept = {token: number for token, number in told["model"]["vocab"].items() if number < SMALL}
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in told["model"]["merges"]]
        told["model"] |= {"vocab": kept, "merges": [pair for pair in pairs if "".join(pair) in kept]}
        path.write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")

    return in_cache(f"small-tokenizer-{SMALL}", write)


def _randomize(model: torch.nn.Module, seed: int) -> None:
    # Strong enough that layers matter, tame enough that logits stay in a natural range.
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            # Gemma's norms multiply by 1 + weight.
            parameter.data = 0.1 * noise + (0 if "Gemma" in type(model).__name__ else 1)
        elif name.endswith("bias"):
            parameter.data = 0.1 * noise
        else:
            parameter.data = noise * (0.1 if "embed" in name or "lm_head" in name else parameter.shape[-1] ** -0.5)


def _save(model: Any, folder: Path, tokenizer: TokenizerName, dtype: torch.dtype) -> Path:
    put_tokenizer(folder, tokenizer)
    loaded = load_tokenizer(folder)
    end = loaded.eos_token_id
    turn = loaded.convert_tokens_to_ids("<|end|>") if tokenizer == "phi3" else end
    model.config.eos_token_id = end
    # Phi-3 ends a turn with another token than a text.
    model.generation_config.eos_token_id = end if turn == end else [end, turn]
    model.config.pad_token_id = model.generation_config.pad_token_id = loaded.pad_token_id
    model.config.bos_token_id = model.generation_config.bos_token_id = loaded.bos_token_id
    model.to(dtype).save_pretrained(folder)
    return folder


def _vocabulary(tokenizer: TokenizerName) -> int:
    if tokenizer in ("gemma2", "phi3"):
        return SIZES[tokenizer]
    return {"smollm2": 49_152, "small": SMALL, "qwen2": 151_936}[tokenizer]


def tiny_llama(
    folder: Path,
    layers: int = 2,
    hidden: int = 256,
    seed: int = 0,
    tie: bool = True,
    tokenizer: TokenizerName = "smollm2",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a Llama with random weights (grouped-query attention: 4 heads, 2 key-value heads); gives `folder`."""
    config = LlamaConfig(
        vocab_size=_vocabulary(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, tie_word_embeddings=tie,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _randomize(model, seed)
    return _save(model, folder, tokenizer, dtype)


def tiny_qwen2(
    folder: Path,
    layers: int = 2,
    hidden: int = 256,
    seed: int = 0,
    tie: bool = True,
    tokenizer: TokenizerName = "qwen2",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a Qwen2 with random weights, and random biases on q, k and v; gives `folder`.

    tokenizer: "smollm2" makes a file a third as large, for tests of weights alone: transformers 5 gives every model of type
    qwen2 the pre-tokenizer of Qwen2, whatever `tokenizer.json` says, and llama.cpp's converter does not know that mixture.
    """
    config = Qwen2Config(
        vocab_size=_vocabulary(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}, tie_word_embeddings=tie,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    _randomize(model, seed)
    return _save(model, folder, tokenizer, dtype)


def tiny_gemma2(
    folder: Path, layers: int = 2, hidden: int = 256, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a Gemma 2 with random weights: four norms a layer, a sliding window in every other one, both soft caps; gives
    `folder`. Its vocabulary is Llama 2's with Gemma's marks of turns."""
    config = Gemma2Config(
        vocab_size=_vocabulary("gemma2"), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4, query_pre_attn_scalar=hidden // 4,
        max_position_embeddings=2048, sliding_window=512, rms_norm_eps=1e-6,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    _randomize(model, seed)
    return _save(model, folder, "gemma2", dtype)


def tiny_phi3(
    folder: Path, layers: int = 2, hidden: int = 256, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a Phi-3 with random weights: q, k and v in one matrix, gate and up in another, a head of its own; gives `folder`."""
    config = Phi3Config(
        vocab_size=_vocabulary("phi3"), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-5,
        original_max_position_embeddings=2048, tie_word_embeddings=False, sliding_window=512,
    )  # fmt: skip
    model = Phi3ForCausalLM(config)
    _randomize(model, seed)
    return _save(model, folder, "phi3", dtype)


SEVEN = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
PROJECTIONS = (*SEVEN["self_attn"], *SEVEN["mlp"], "qkv_proj", "gate_up_proj")


def tiny_adapter(
    base: Path,
    out: Path,
    method: Literal["lora", "qlora"] = "lora",
    r: int = 8,
    alpha: int = 16,
    use_rslora: bool = False,
    use_dora: bool = False,
    seed: int = 1,
    strength: float = 0.3,
) -> Path:
    """Write a PEFT adapter on all projections of every layer (seven, or Phi-3's four), without training; gives `out`.

    B is random, not zero: the change that it makes is about `strength` times the size of the weights it changes.
    """
    from toolkit.models.safetensors_file import model_files
    from toolkit.models.weights import TrainedWeights

    generator = torch.Generator().manual_seed(seed)
    scaling = alpha / (r**0.5 if use_rslora else r)
    weights = TrainedWeights(base, "float32", Quantization() if method == "qlora" else None)
    tensors: dict[str, torch.Tensor] = {}
    targets: set[str] = set()
    for name in model_files(base):
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in PROJECTIONS or not name.endswith(".weight"):
            continue
        targets.add(module.rpartition(".")[2])
        weight = weights.load(name).float()
        rows, columns = weight.shape
        prefix = f"base_model.model.{module}"
        a = torch.randn(r, columns, generator=generator) * columns**-0.5
        b = torch.randn(rows, r, generator=generator)
        change = scaling * (b @ a)
        b *= strength * weight.norm() / change.norm()
        tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = a, b
        if use_dora:
            norm = torch.linalg.norm(weight + scaling * (b @ a), dim=1)
            tensors[f"{prefix}.lora_magnitude_vector"] = norm * (1 + 0.1 * torch.randn(rows, generator=generator))
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": r, "lora_alpha": alpha,
        "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
        "target_modules": [name for name in PROJECTIONS if name in targets], "use_rslora": use_rslora, "use_dora": use_dora,
        "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "revision": None,
    }  # fmt: skip
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in TOKENIZER_FILES:
        if (base / file).is_file():
            shutil.copy(base / file, out / file)
    return out


def base_facts(base: Path) -> BaseFacts:
    """Facts of a local folder, as `resolve_base` gives them, under a name that is no path."""
    return BaseFacts(id="tiny/base", folder=str(base), revision="", license="apache-2.0", digest=check_folder(base))


def adapter_artifact(
    folder: Path,
    base: Path,
    method: Literal["qlora", "lora", "full"] = "lora",
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    system: str = "",
) -> Artifact[AdapterFacts]:
    """Wrap an adapter folder (or, for `full`, a model folder) as the training stage would."""
    facts = AdapterFacts(
        method=method,
        base=base_facts(base),
        base_dtype=base_dtype,
        quantization=Quantization() if method == "qlora" else None,
        chat_template_sha256=text_sha256(read_chat_template(base) or ""),
        system=system,
        trained_here=True,
    )
    sums = {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file()}
    digest = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    return Artifact(folder, facts, digest, {}, Cost())
