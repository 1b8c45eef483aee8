"""A base's weights as they acted during training, one tensor at a time.

For QLoRA that is not what the files hold: bitsandbytes rounds every linear layer but the output head to NF4, and the
adapter learns to correct the rounded weights.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn

from toolkit.errors import DataError
from toolkit.models.checkpoint_names import CheckpointNames
from toolkit.models.nf4 import round_matrix
from toolkit.models.safetensors_file import Entry, model_entries, model_files
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, Quantization

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainedWeights:
    """Reads a model folder's safetensors, and quantizes and dequantizes where training did.

    Args:
        folder: a verified model folder (see `toolkit.models.bases`).
        base_dtype: the type that the weights were loaded in for training: float32, bfloat16 or float16.
        quantization: how the linear layers were quantized; None: not at all.
        vocabulary: rows of embedding and head, where they were resized for training; None: as in the files.

    Raises:
        DataError: damaged weights, or an architecture that transformers does not know.
    """

    def __init__(
        self, folder: Path, base_dtype: str, quantization: Quantization | None, vocabulary: int | None = None
    ) -> None:
        self.folder = folder
        self.dtype = TORCH_DTYPES[base_dtype]
        self.quantization = quantization
        self.vocabulary = vocabulary
        self._files = model_files(folder)
        self._entries = model_entries(self._files)
        model = self.structure()
        self.tied_head = tied_head(model)
        """Name of an output head that is the embedding itself; it is no tensor of its own. None: untied."""
        self.embedding = embedding_name(model)
        """Name of the token embedding's weight in memory; files may spell it otherwise (`spelled`)."""
        self.head = head_name(model)
        """The output head's weight, also where it is the embedding itself."""
        self.spelled = CheckpointNames(model, self._files)
        """The files' names and those of the parameters in memory."""
        self._quantized = quantized_names(model) if quantization else set()
        ends = () if vocabulary is None else (self.embedding, self.head)
        self._resized = {name for end in ends for name in self.spelled.sources(end)}

    def structure(self) -> Any:
        """The model without its weights (torch's meta device), as it was trained: resized where that was done."""
        return meta_model(self.folder, self.vocabulary)

    def names(self) -> list[str]:
        """Every tensor of the model, in the order of the files; a tied head that a file repeats is left out."""
        return [name for name in self._files if name != self.tied_head]

    def entry(self, name: str) -> Entry:
        """Shape and type of a tensor: of its file, but for a vocabulary that was resized.

        Raises:
            KeyError: the base has no such tensor.
        """
        found = self._entries[name]
        if self.vocabulary is not None and name in self._resized:
            return Entry(name, found.dtype, (self.vocabulary, *found.shape[1:]))
        return found

    def is_quantized(self, name: str) -> bool:
        """Whether training saw this tensor rounded to NF4."""
        return name in self._quantized

    def load(self, name: str) -> torch.Tensor:
        """One tensor as it acted during training, on the CPU: of `base_dtype`, or float32 where it was quantized."""
        with safe_open(self._files[name], framework="pt") as file:
            weight = file.get_tensor(name).to(self.dtype)
        if self.vocabulary is not None and name in self._resized:
            weight = resized(weight, self.vocabulary)
        if self.quantization is None or name not in self._quantized:
            return cast(torch.Tensor, weight)
        return round_to_nf4(weight, self.quantization)

    def parameter(self, name: str) -> torch.Tensor:
        """One parameter by its name in memory; see `load`.

        Raises:
            KeyError: the files do not hold it.
        """
        return self.spelled.assemble(name, self.load)


def resized(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """An embedding with so many rows: cut, or with the mean of its rows behind them.

    transformers starts new rows by chance, near that mean. What the adapter trained replaces them; the rows of the base are only
    for comparison.
    """
    if rows <= len(weight):
        return weight[:rows]
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), *mean.shape[1:])])


def weights_of(adapter: Artifact[AdapterFacts]) -> TrainedWeights:
    """What an adapter sits on, as it was trained; for method "full" the trained weights themselves."""
    facts = adapter.facts
    if facts.method == "full":
        return TrainedWeights(adapter.folder, facts.base_dtype, None)
    return TrainedWeights(Path(facts.base.folder), facts.base_dtype, facts.quantization, facts.vocabulary)


def loaded_bytes(weights: TrainedWeights, dtype: torch.dtype) -> int:
    """Memory of a model that computes in `dtype`: NF4 stays packed, 4.5 bits a weight where its scales are not quantized too."""
    sizes = ((math.prod(weights.entry(name).shape), weights.is_quantized(name)) for name in weights.names())
    return sum(count * 9 // 16 if packed else count * dtype.itemsize for count, packed in sizes)


def round_to_nf4(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """Quantize to NF4 and back, as `bitsandbytes.nn.Linear4bit` does when transformers loads a model.

    Done on the card where there is one, as in training.

    Returns:
        float32, the shape of `weight`, on the CPU: the NF4 values themselves, not rounded to 16 bits once more, because a
        float32 forward of bitsandbytes computes with these.
    """
    if not torch.cuda.is_available():
        return torch.from_numpy(round_matrix(weight.float().numpy(), quantization))
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(
        weight.contiguous().to("cuda"),
        blocksize=quantization.blocksize,
        compress_statistics=quantization.double_quantization,
        quant_type=quantization.quant_type,
    )
    return unpacked(packed, state).cpu()


def unpacked(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """What bitsandbytes holds in 4 bits, float32: the values themselves, whatever type the base was loaded in.

    Args:
        packed, state: `weight.data` and `weight.quant_state` of a `Linear4bit`.
    """
    import bitsandbytes.functional as bnb

    state = copy.copy(state)
    state.dtype = torch.float32
    return cast(torch.Tensor, bnb.dequantize_4bit(packed, state))


def model_config(folder: Path, vocabulary: int | None = None) -> Any:
    """transformers' configuration of a folder; `vocabulary`: with so many tokens instead."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if vocabulary is not None:
        config.get_text_config().vocab_size = vocabulary
    return config


def model_class(config: Any) -> Any:
    """transformers' auto class of a configuration: of a text model; where it has none, of a model that sees."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    text, seeing = AutoModelForCausalLM._model_mapping, AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if type(config) in seeing and type(config) not in text else AutoModelForCausalLM


def meta_model(folder: Path, vocabulary: int | None = None, untied: bool = False) -> Any:
    """The model's structure without its weights (torch's meta device).

    Args:
        vocabulary: so many tokens instead of the configuration's.
        untied: with a head of its own, whatever the configuration says.

    Raises:
        DataError: transformers has no such architecture.
    """
    try:
        config = model_config(folder, vocabulary)
        if untied:
            config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
        with torch.device("meta"):
            return model_class(config).from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{folder / 'config.json'}: {reason}", "Choose a base that transformers knows.") from error


def quantized_names(model: nn.Module) -> set[str]:
    """The weights that transformers gives to bitsandbytes: of every linear layer but the output head."""
    head = cast(Any, model).get_output_embeddings()
    return {f"{n}.weight" for n, module in model.named_modules() if type(module) is nn.Linear and module is not head}


def tied_head(model: nn.Module) -> str | None:
    """The output head's weight when it shares the embedding's values."""
    head = cast(Any, model).get_output_embeddings()
    # Of the model's own configuration: what that of a text part says, transformers does not follow.
    if head is None or not getattr(cast(Any, model).config, "tie_word_embeddings", False):
        return None
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def head_name(model: nn.Module) -> str:
    """The output head's weight; the embedding's where there is no head."""
    head = cast(Any, model).get_output_embeddings() or cast(Any, model).get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def embedding_name(model: nn.Module) -> str:
    """The token embedding's weight."""
    embedding = cast(Any, model).get_input_embeddings()
    return next(f"{name}.weight" for name, module in model.named_modules() if module is embedding)


def attention_of(config: Any) -> str | None:
    """The implementation of attention that computes what the config says; None: transformers' own choice does.

    Torch's fused attention, which transformers prefers, has no cap of the attention's logits and drops Gemma 2's without a word.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if capped is not None else None
