"""What a GGUF file says of where it came from: which base, which adapter, which template, how it was merged.

It is told in `general.description`, a key of the format itself, because llama.cpp's converter writes no keys but its own;
`llama-quantize` carries it on. What a certificate finds comes later: see `toolkit.parity.summary_in_file`.
"""

from __future__ import annotations

import json

from toolkit.run.artifacts import Artifact, file_sha256
from toolkit.run.facts import AdapterFacts, BaseFacts, ModelFacts

_METHODS = {"qlora": "QLoRA", "lora": "LoRA", "full": "full fine-tuning"}
_ONTO = {
    "nf4": "merged onto the dequantized NF4 weights that it was trained on",
    "16-bit": "merged onto the original 16-bit weights",
    "as trained": "merged onto the weights that it was trained on",
}


def description(adapter: Artifact[AdapterFacts], model: ModelFacts, base_name: str) -> str:
    """The summary, as sentences that a program can read too: every sum stands behind a name and the word sha256.

    Args:
        base_name: how the base is called, without any path.
    """
    facts = adapter.facts
    how = _METHODS[facts.method] + ("" if facts.method == "full" else f", {_ONTO[model.merged_onto]}")
    told = f" told {json.dumps(dict(facts.chat_template_kwargs), sort_keys=True)}" if facts.chat_template_kwargs else ""
    sums = [
        _base(facts.base, base_name), *_adapter(adapter), f"chat template sha256 {facts.chat_template_sha256}{told}",
    ]  # fmt: skip
    return (
        f"Fine-tuned: {how}. {'; '.join(sums)}. Whether this file is that model is not said here, but by its "
        "certificate."
    )


def _base(base: BaseFacts, name: str) -> str:
    revision = f" revision {base.revision}" if base.revision else ""
    return f"base {name}{revision} sha256 {base.digest}"


def _adapter(adapter: Artifact[AdapterFacts]) -> list[str]:
    # The weights alone: the folder also holds times, which differ when the same training is run again.
    weights = adapter.folder / "adapter_model.safetensors"
    return [f"adapter sha256 {file_sha256(weights)}"] if weights.is_file() else []
