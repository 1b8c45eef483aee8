"""Clean chains for the faults, and for proving that clean chains are clean.

The chain that the faults are injected into has whatever they need to lose: NF4 weights, a RoPE scaling, a tied head, added
tokens, a default system text, think tags. It is trained, since a random model is flat and hardly notices.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM

from tests.parity_chain import AFTER, SYSTEM, Export, export, recipe, record, teach, trained_adapter, trained_base
from tests.small_models import adapter_artifact, tiny_gemma2, tiny_llama, tiny_phi3, tiny_qwen2
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.subjects import GGUFUnderTest, Tuned
from toolkit.parity.verify import certificate_of, judge, verify
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, GoldenFacts

FAMILIES = {"llama": tiny_llama, "qwen2": tiny_qwen2, "gemma2": tiny_gemma2, "phi3": tiny_phi3}
METHODS = ("lora", "qlora", "dora", "rslora", "full")
FILE_TYPES = ["F16", "Q8_0", "Q4_K_M"]
ADDED = ["<note>", "</note>"]
ROPE = {
    "rope_type": "llama3", "rope_theta": 100_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{{ '<think>\\n</think>\\n' }}"
    "{% endif %}{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n</think>\\n' }}{% endif %}"
)
"""SmolLM2's template, and an empty thought before an answer, as Qwen3's puts it."""


@dataclass(frozen=True)
class Clean:
    """A chain, right from end to end unless a fault was put in."""

    recipe: Recipe
    base: Path
    adapter: Artifact[AdapterFacts]
    golden: Artifact[GoldenFacts]
    export: Export

    def certificate(self, out: Path) -> dict[str, Any]:
        """What `verify` says of the whole chain."""
        out.mkdir(parents=True)
        made = self.export
        verify(self.recipe, self.adapter, self.golden, made.model, made.gguf, made.quantized, out)
        return dict(json.loads((out / "certificate.json").read_text(encoding="utf-8")))

    def certificate_alone(self) -> dict[str, Any]:
        """What is said when only the served file is known, and the adapter that should be in it."""
        tokenizer = load_tokenizer(self.adapter.folder)
        tuned = Tuned.of(self.recipe, self.adapter, self.golden, tokenizer)
        served = self.recipe.export.serve
        name = next(f.name for f in self.export.quantized.facts.files if f.file_type == served)
        file = GGUFUnderTest(path=self.export.quantized.folder / name, name=served, file_type=served, served=True)
        return certificate_of(tuned, judge(tuned, None, [file]), {})


def clean_chain(family: str, method: str, base: Path, folder: Path) -> Clean:
    """Train one way, record the goldens, export to all three file types.

    Args:
        base: see `family_base`.
    """
    system = _system(family)
    adapter = folder / "adapter"
    kind: Any = method if method in ("qlora", "full") else "lora"
    if method == "full":
        _fully_trained(base, adapter, system)
    else:
        trained_adapter(base, adapter, kind, 60, system, method == "rslora", method == "dora")
    chosen = recipe(FILE_TYPES, "Q4_K_M", base, "tiny", system)
    artifact = adapter_artifact(adapter, base, kind, system=system)
    return Clean(
        chosen, base, artifact, record(chosen, artifact, folder / "golden"), export(chosen, artifact, folder / "x")
    )


def _system(family: str) -> str:
    return "" if family == "gemma2" else SYSTEM  # Gemma's template refuses a system turn


def family_base(family: str, folder: Path) -> Path:
    """A tiny model of a family that answers and ends its answers."""
    make: Any = FAMILIES[family]
    return trained_base(make(folder), system=_system(family))


def _fully_trained(base: Path, out: Path, system: str) -> None:
    shutil.copytree(base, out)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    assert teach(model, load_tokenizer(base), AFTER, 20, 1e-3, 1, system) < 1.5
    model.save_pretrained(out)


def rich_base(folder: Path) -> Path:
    """A Llama with a RoPE scaling, a template of its own and two added tokens, trained to answer."""
    tiny_llama(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    tensors = load_file(folder / "model.safetensors")
    name = "model.embed_tokens.weight"
    more = torch.randn(len(ADDED), tensors[name].shape[1], generator=torch.Generator().manual_seed(3)) * 0.1
    tensors[name] = torch.cat([tensors[name], more])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_json(folder / "config.json", vocab_size=len(tensors[name]), rope_parameters=ROPE)
    return trained_base(folder)


def change_json(path: Path, **values: Any) -> None:
    """Change keys of a JSON file in place; a value of None takes the key away."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.unlink()  # it may be a link to another chain's
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}, indent=1), encoding="utf-8")


@functools.cache
def fault_chain() -> Clean:
    """The chain that faults are injected into: QLoRA on NF4 weights, F16 and Q4_K_M; made once."""
    folder = kept_folder()
    base = rich_base(folder / "base")
    artifact = adapter_artifact(trained_adapter(base, folder / "adapter", "qlora", 50), base, "qlora")
    chosen = recipe(["F16", "Q4_K_M"], "Q4_K_M", base)
    return Clean(
        chosen, base, artifact, record(chosen, artifact, folder / "golden"), export(chosen, artifact, folder / "x")
    )


@functools.cache
def head_chain() -> Clean:
    """The same with a trained head: the adapter holds it whole, and the tied embedding stays what it was."""
    clean = fault_chain()
    folder = kept_folder()
    adapter = folder / "adapter"
    shutil.copytree(clean.adapter.folder, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    embedding = load_file(clean.base / "model.safetensors")["model.embed_tokens.weight"]
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(5))
    tensors["base_model.model.lm_head.weight"] = embedding + 0.2 * embedding.std() * noise
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    change_json(adapter / "adapter_config.json", modules_to_save=["lm_head"])
    artifact = adapter_artifact(adapter, clean.base, "qlora")
    golden = record(clean.recipe, artifact, folder / "golden")
    return replace(clean, adapter=artifact, golden=golden, export=export(clean.recipe, artifact, folder / "x"))


@functools.cache
def still_chain() -> Clean:
    """The same, where the first layer never moved: what is exported is what was trained, and the training was broken."""
    clean = fault_chain()
    folder = kept_folder()
    adapter = with_adapter(clean.adapter.folder, folder / "adapter", lambda n, t: t * 0 if ".layers.0." in n else t)
    artifact = adapter_artifact(adapter, clean.base, "qlora")
    golden = record(clean.recipe, artifact, folder / "golden")
    return replace(clean, adapter=artifact, golden=golden, export=export(clean.recipe, artifact, folder / "x"))


def with_adapter(adapter: Path, out: Path, change: Any) -> Path:
    """A copy of an adapter whose B matrices are changed: change(name, tensor) → tensor."""
    shutil.copytree(adapter, out)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors = {name: change(name, t) if "lora_B" in name else t for name, t in tensors.items()}
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


def kept_folder() -> Path:
    """A folder that goes when the process ends."""
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="tune2ollama-faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
