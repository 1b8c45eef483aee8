"""Every fault: how it is made, the link that broke, and what the certificate has to say about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.faults.chains import ADDED, Clean, change_json, fault_chain, head_chain, still_chain, with_adapter
from tests.faults.files import (
    add_flag,
    add_tensor,
    change_template,
    change_tensor,
    quantize_again,
    respell,
    set_value,
    stored_tensors,
    unpermuted,
)
from tests.parity_chain import damaged, export, finished
from tests.small_models import adapter_artifact, put_tokenizer
from toolkit.export.convert import convert
from toolkit.export.quantize import quantize
from toolkit.models.gguf_metadata import copy_with_texts
from toolkit.parity.certificate import LinkName

MARK = "<|im_start|>"


@dataclass(frozen=True)
class Fault:
    """A fault, put into a clean chain by `inject(folder)`."""

    name: str
    link: LinkName
    says: str
    """A part of the certificate's message."""
    inject: Callable[[Path], Clean]
    alone: bool = False
    """It has to be named right from the quantized file alone as well."""
    only_bench: bool = False
    """A variant of another one, or one that `tests/parity/test_verify.py` puts in as well: left to the bench."""


# Faults of merging: in the merged folder, then converted and quantized for real -------------------------------------


def _scaled(factor: float, layer: str = "") -> Callable[[Path], Clean]:
    def inject(out: Path) -> Clean:
        clean = fault_chain()
        wrong = with_adapter(clean.adapter.folder, out / "wrong", lambda n, t: t * factor if layer in n else t)
        made = export(clean.recipe, adapter_artifact(wrong, clean.base, "qlora"), out / "x")
        return replace(clean, export=made)

    return inject


def _rslora_as_lora(out: Path) -> Clean:
    # alpha / sqrt(r) of the one is alpha / r of the other: the same tuned model, so the goldens are right too.
    clean = fault_chain()
    rs = out / "rslora"
    shutil.copytree(clean.adapter.folder, rs)
    change_json(rs / "adapter_config.json", use_rslora=True, lora_alpha=16 / 8**0.5)
    wrong = _scaled(8**-0.5)(out)
    return replace(wrong, adapter=adapter_artifact(rs, clean.base, "qlora"))


def _other_base(only_linear: bool) -> Callable[[Path], Clean]:
    def inject(out: Path) -> Clean:
        clean = fault_chain()
        other = out / "base"
        shutil.copytree(clean.base, other)
        generator = torch.Generator().manual_seed(11)
        tensors = load_file(other / "model.safetensors")
        for name, tensor in tensors.items():
            if "proj" in name or not only_linear:
                share = 0.5 if only_linear else 0.02
                tensors[name] = tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator)
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
        made = export(clean.recipe, adapter_artifact(clean.adapter.folder, other, "qlora"), out / "x")
        return replace(clean, export=made)

    return inject


def _onto_16_bit(out: Path) -> Clean:
    clean = fault_chain()
    onto = clean.recipe.model_copy(update={"merge": clean.recipe.merge.model_copy(update={"onto": "16-bit"})})
    return replace(clean, export=export(onto, clean.adapter, out / "x"))


def _remade(clean: Clean, out: Path, damage: Callable[[Path], None]) -> Clean:
    """The merged folder damaged, then converted and quantized."""
    for name in ("convert", "quantize"):
        (out / name).mkdir(parents=True)
    shutil.copytree(clean.export.model.folder, out / "merge")
    damage(out / "merge")
    model = finished(out / "merge", clean.export.model.facts)
    gguf = finished(out / "convert", convert(clean.recipe, clean.adapter, model, out / "convert"))
    made = finished(out / "quantize", quantize(clean.recipe, gguf, out / "quantize"))
    return replace(clean, export=type(clean.export)(model, gguf, made))


def _tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def _head_lost(out: Path) -> Clean:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]

    def lose(merged: Path) -> None:
        _tensors(merged, drop)
        change_json(merged / "config.json", tie_word_embeddings=True)

    return _remade(head_chain(), out, lose)


def _head_as_it_was(out: Path) -> Clean:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    return _remade(head_chain(), out, lambda merged: _tensors(merged, lose))


def _vocabulary_lost(resized: bool) -> Callable[[Path], Clean]:
    def lose(merged: Path) -> None:
        template = (merged / "chat_template.jinja").read_text(encoding="utf-8")
        put_tokenizer(merged)
        (merged / "chat_template.jinja").write_text(template, encoding="utf-8")
        if not resized:
            return

        def cut(tensors: dict[str, torch.Tensor]) -> None:
            name = "model.embed_tokens.weight"
            tensors[name] = tensors[name][: -len(ADDED)].clone()

        _tensors(merged, cut)
        change_json(merged / "config.json", vocab_size=49_152)

    return lambda out: _remade(fault_chain(), out, lose)


# Faults of the converted file, quantized from there -----------------------------------------------------------------


def _in_file(damage: Callable[[Path], None]) -> Callable[[Path], Clean]:
    def inject(out: Path) -> Clean:
        clean = fault_chain()
        made = damaged(clean, damage, out / "x")  # type: ignore[arg-type]
        return replace(clean, export=made)

    return inject


def _each(names: list[str], change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for name in names:
            change_tensor(path, name, change)

    return damage


def _unpermuted(heads: int) -> Callable[[Any], Any]:
    return lambda values: unpermuted(values, heads)


def _permuted_back(path: Path) -> None:
    for layer in (0, 1):
        change_tensor(path, f"blk.{layer}.attn_q.weight", _unpermuted(4))
        change_tensor(path, f"blk.{layer}.attn_k.weight", _unpermuted(2))


def _last_rows_zero(values: Any) -> Any:
    values[len(values) * 3 // 4 :] = 0
    return values


def _another_head(path: Path) -> None:
    stored = stored_tensors(path, "r")["token_embd.weight"].astype("float32")
    noise = torch.randn(stored.shape, generator=torch.Generator().manual_seed(7)).numpy()
    add_tensor(path, "output.weight", stored + 0.2 * stored.std() * noise)


def _set(key: str, value: Any, index: int | None = None) -> Callable[[Path], None]:
    return lambda path: set_value(path, key, value, index)


def _full_stop_ends(path: Path) -> None:
    copy_with_texts(path, path, {"tokenizer.ggml.eot_token_id": 30})


def _quantized_twice(out: Path) -> Clean:
    clean = fault_chain()
    made = damaged(clean, lambda _: None, out / "x")  # type: ignore[arg-type]
    source = made.gguf.folder / made.gguf.facts.files[0].name
    target = made.quantized.folder / made.quantized.facts.files[0].name
    quantize_again(source, out / "Q8_0.gguf", "Q8_0")
    target.unlink()
    quantize_again(out / "Q8_0.gguf", target, "Q4_K_M")
    return replace(clean, export=made)


def _template(old: str, new: str) -> Callable[[Path], Clean]:
    return _in_file(lambda path: change_template(path, old, new))


def cut_short(out: Path) -> Clean:
    """The clean chain with its quantized file cut short."""
    clean = fault_chain()
    made = clean.export.quantized
    name = made.facts.files[0].name
    out.mkdir(parents=True)
    (out / name).write_bytes((made.folder / name).read_bytes()[:-10_000])
    return replace(clean, export=replace(clean.export, quantized=finished(out, made.facts)))


FAULTS = [
    Fault("adapter dropped", "merge", "the adapter is not in it", _scaled(0.0), True),
    Fault("alpha halved", "merge", "alpha is wrong", _scaled(0.5), True, True),
    Fault("alpha a tenth too small", "merge", "alpha is wrong", _scaled(0.9), True, True),
    Fault("rsLoRA scaled as LoRA", "merge", "scaled as LoRA", _rslora_as_lora, True),
    Fault("LoRA scaled as rsLoRA", "merge", "scaled as rsLoRA", _scaled(8**0.5), True, True),
    Fault("adapter applied twice", "merge", "applied twice", _scaled(2.0), True),
    Fault("one layer's adapter missing", "merge", "layer 1 of 2: the adapter is missing", _scaled(0.0, ".layers.1."), True),
    Fault("one module's adapter missing", "merge", "of o_proj is missing", _scaled(0.0, ".1.self_attn.o_proj"), True, True),
    Fault("wrong base revision", "merge", "another base, or another revision", _other_base(False), True),
    Fault("wrong base revision, same norms and embedding", "merge", "another base, or another revision", _other_base(True), True),
    Fault("merged onto 16 bits, trained on NF4", "merge", "not onto the NF4 weights", _onto_16_bit, True),
    Fault("trained head lost, tied again", "structure", "lm_head.weight is missing", _head_lost, True),
    Fault("trained head as the base's", "merge", "lm_head", _head_as_it_was, True, True),
    Fault("resized vocabulary lost", "tokenizer", "<note>", _vocabulary_lost(True), True),
    Fault("added tokens missing", "tokenizer", "<note>", _vocabulary_lost(False), True, True),
    Fault("q and k in the wrong order", "conversion", "rows are in another order", _in_file(_permuted_back), True),
    Fault("q transposed", "conversion", "transposed", _in_file(_each(["blk.0.attn_q.weight"], lambda v: v.T)), True),
    Fault("tensor truncated", "conversion", "rows are zero", _in_file(_each(["blk.1.ffn_down.weight"], _last_rows_zero)), True),
    Fault("tied head untied, another one written", "conversion", "lm_head (", _in_file(_another_head), True),
    Fault("RoPE base changed", "structure", "rope.freq_base", _in_file(_set("llama.rope.freq_base", 10_000.0)), True),
    Fault("RoPE scaling lost", "structure", "rope_freqs", _in_file(_each(["rope_freqs.weight"], lambda v: v * 0 + 1)), True),
    Fault("norm epsilon changed", "structure", "epsilon", _in_file(_set("llama.attention.layer_norm_rms_epsilon", 1e-3)), True),
    Fault("pre-tokenizer swapped", "tokenizer", "texts differ", _in_file(lambda path: respell(path, "smollm", "falcon")), True,
          True),
    Fault("special token split into text", "tokenizer", MARK, _in_file(_set("tokenizer.ggml.token_type", 1, 1)), True),
    Fault("double BOS", "tokenizer", "texts differ", _in_file(lambda path: add_flag(path, "tokenizer.ggml.add_bos_token")), True),
    Fault("EOS id lost", "tokenizer", "end-of-text id is 300", _in_file(_set("tokenizer.ggml.eos_token_id", 300)), True, True),
    Fault("answers end at every full stop", "tokenizer", "makes an end of 30 '.'",
          _in_file(_full_stop_ends), True),
    Fault("EOT id lost", "tokenizer", "is '<|im_ond|>'", _in_file(lambda path: respell(path, "<|im_end|>", "<|im_ond|>")), True),
    Fault("template swapped", "template", "golden 1", _template(MARK, "<|start|>"), True, True),
    Fault("default system block lost", "template", "'no system text'", _template("loop.first and", "false and"), True),
    Fault("newline after the assistant tag lost", "template", "golden 1", _template("assistant\\n<th", "assistant<th"), True),
    Fault("think tags dropped", "template", "<think>", _template("<think>\\n</think>\\n", ""), True),
    Fault("quantized from a quantized file", "quantization", "Q8_0 already", _quantized_twice, True),
    Fault("first layer never trained", "training", "training never reached layer 0", lambda _: still_chain()),
]  # fmt: skip
"""One at a time, each in an otherwise clean chain."""
