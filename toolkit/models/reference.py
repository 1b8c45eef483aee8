"""Reference forwards in float32: what the tuned model says, without the rounding of any engine.

Whole in memory when the float32 weights fit into half of what is free; else layer by layer: the model is built without
weights (torch's meta device), all sequences go through it together, and each decoder layer is read from the shards just
before it acts and dropped just after. A 7B model then needs the embedding, the head and one layer (0.9 GB) at a time, and
reads its files once per pass.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import psutil
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from rich.console import Console
from rich.progress import track

from toolkit.errors import DataError, ResourceError
from toolkit.models.adapters import LoraAdapter
from toolkit.models.chat_template import NOTHING_TOLD
from toolkit.models.merged import MergedWeights, below_the_last
from toolkit.models.merging import stack_of
from toolkit.models.peft_layers import base_name, with_adapter
from toolkit.models.products import laid_out
from toolkit.models.safetensors_file import writing
from toolkit.models.seen import Picture, given
from toolkit.models.weights import TrainedWeights, attention_of, model_class, weights_of
from toolkit.run.artifacts import Artifact, new_file
from toolkit.run.bars import passing_bar
from toolkit.run.facts import AdapterFacts
from toolkit.train.rows import NOT_LEARNED, tokenize

TOKENS_PER_PASS = 8192
"""Padded tokens that go through the layers together."""

stderr = Console(stderr=True)


class TeacherForced(NamedTuple):
    """A sequence whose logits are wanted at the positions that predict ids[first], ids[first + 1], …"""

    ids: list[int]
    first: int
    pictures: tuple[Picture, ...] = ()
    """That the sequence shows."""

    @property
    def positions(self) -> int:
        return len(self.ids) - self.first


def fits_whole(parameters: int) -> bool:
    """Whether a float32 model of this size takes at most half of the free memory."""
    return 4 * parameters <= psutil.virtual_memory().available // 2


def parameter_count(weights: TrainedWeights | MergedWeights) -> int:
    """Parameters in a folder's files."""
    return sum(int(np.prod(weights.entry(name).shape)) for name in weights.names())


@torch.no_grad()
def model_logits(model: Any, sequences: Sequence[TeacherForced]) -> Iterator[torch.Tensor]:
    """Teacher-forced logits of a model in memory, one sequence at a time, so that nothing is padded.

    Args:
        model: a transformers causal model or PeftModel in eval mode, on any device.

    Yields:
        float32 [positions, vocabulary] on the CPU, per sequence.
    """
    device = next(model.parameters()).device
    with laid_out(model):
        for sequence in sequences:
            ids = torch.tensor([sequence.ids[:-1]], device=device)
            wanted = torch.arange(sequence.first - 1, len(sequence.ids) - 1, device=device)
            seen = given(ids, sequence.pictures)
            yield model(input_ids=ids, use_cache=False, logits_to_keep=wanted, **seen).logits[0].float().cpu()


def logits_behind(causal: Any, decoded: Any, ids: torch.Tensor) -> torch.Tensor:
    """What a causal model makes of its decoder's result: its own forward with that put in, so that whatever it does there
    (scaling, soft caps) is done.

    Args:
        decoded: what the decoder gave, of `last_hidden_state` [rows, length, width].
        ids: any tokens, [rows, length].

    Returns:
        float32 [rows, length, vocabulary]
    """
    decoder = causal.get_decoder()
    own = vars(decoder).get("forward")
    decoder.forward = lambda *_, **__: decoded
    try:
        return cast(torch.Tensor, causal(ids, use_cache=False).logits.float())
    finally:
        del decoder.forward
        if own is not None:
            decoder.forward = own


class Reference:
    """A base as it acted during training, in float32, with its adapter on or off.

    Args:
        weights: the base (or a whole model).
        adapter: a PEFT folder; None: none.
        whole: keep all weights in memory; None: decide by `fits_whole`.

    Raises:
        DataError: the folder's tensors are not those of its architecture.
    """

    def __init__(
        self, weights: TrainedWeights | MergedWeights, adapter: Path | None = None, whole: bool | None = None
    ) -> None:
        self._weights = weights
        whole = fits_whole(parameter_count(weights)) if whole is None else whole
        self.forward: Literal["whole", "layer by layer"] = "whole" if whole else "layer by layer"
        config = weights.structure().config
        # Buffers are made for real: rotary frequencies are in no file.
        with init_empty_weights(include_buffers=False):
            self._causal: Any = model_class(config).from_config(
                config, dtype=torch.float32, attn_implementation=attention_of(config), trust_remote_code=False
            )
        self._model: Any = self._causal
        if adapter is not None:
            self._model = with_adapter(self._causal, LoraAdapter(adapter))
            for parameter in self._model.parameters():
                if not parameter.is_meta:
                    parameter.data = parameter.data.float()
        self._model.eval().requires_grad_(False)
        self._decoder: Any = self._causal.get_decoder()
        layers = list(self._decoder.layers)
        streamed = set() if whole else {id(p) for layer in layers for p in layer.parameters() if p.is_meta}
        self._materialize(self._causal, "", streamed)
        if not whole:
            for index, layer in enumerate(layers):
                self._stream(layer, f"{self._layers_name()}.{index}.")

    def _layers_name(self) -> str:
        return next(str(name) for name, module in self._causal.named_modules() if module is self._decoder.layers)

    def _materialize(self, module: Any, prefix: str, leave: set[int]) -> None:
        head = self._weights.tied_head
        for name, parameter in list(module.named_parameters(remove_duplicate=False)):
            source = base_name(prefix + name)
            if not parameter.is_meta or id(parameter) in leave or source == head:
                continue
            try:
                value = self._weights.parameter(source)
            except KeyError as error:
                raise DataError(
                    f"{self._weights.folder} has no tensor {source}",
                    "The folder is not the model its config.json names.",
                ) from error
            set_module_tensor_to_device(module, name, "cpu", value.float())
        if head is not None and not prefix:
            self._tie(head)

    def _tie(self, head: str) -> None:
        """Let a tied head, and what an adapter keeps of it, be the embedding's own parameter."""
        places: dict[str, list[tuple[Any, str]]] = {}
        for path, module in self._causal.named_modules():
            for leaf in module._parameters:
                if ".modules_to_save." not in f"{path}.":
                    places.setdefault(base_name(f"{path}.{leaf}"), []).append((module, leaf))
        for (module, leaf), (of, name) in zip(places[head], places[self._weights.embedding]):
            module._parameters[leaf] = of._parameters[name]

    def _stream(self, layer: Any, prefix: str) -> None:
        empty = [name for name, parameter in layer.named_parameters() if parameter.is_meta]

        def read(*_: Any) -> None:
            self._materialize(layer, prefix, set())

        def drop(*_: Any) -> None:
            for name in empty:
                set_module_tensor_to_device(layer, name, "meta")

        layer.register_forward_pre_hook(read)
        layer.register_forward_hook(drop)

    @property
    def tuned(self) -> Any:
        """The model itself, where it is whole in memory: with an adapter a PeftModel."""
        return self._model

    @contextlib.contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Within it, the base alone acts. Without an adapter nothing changes."""
        with contextlib.nullcontext() if self._model is self._causal else self._model.disable_adapter():
            yield

    @torch.no_grad()
    def logits(self, sequences: Sequence[TeacherForced]) -> Iterator[torch.Tensor]:
        """Teacher-forced logits: float32 [positions, vocabulary] per sequence, in order."""
        if self.forward == "whole":
            yield from model_logits(self._causal, sequences)
            return
        if any(sequence.pictures for sequence in sequences):
            raise ResourceError(
                f"the float32 weights of {self._weights.folder} take more than half of the free memory, and behind pictures a "
                "model is not read layer by layer",
                "Close other programs, or take a machine with more memory.",
            )
        for batch in _batches(sequences):
            longest = max(len(sequence.ids) for sequence in batch) - 1
            # Padded at the end, where nothing of the sequence itself can see it.
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, sequence in enumerate(batch):
                ids[row, : len(sequence.ids) - 1] = torch.tensor(sequence.ids[:-1])
            output = self._decoder(input_ids=ids, use_cache=False)
            for row, sequence in enumerate(batch):
                wanted = slice(sequence.first - 1, len(sequence.ids) - 1)
                decoded = type(output)(last_hidden_state=output.last_hidden_state[row : row + 1, wanted])
                yield logits_behind(self._causal, decoded, ids[row : row + 1, wanted])[0]


def reference_of(adapter: Artifact[AdapterFacts], whole: bool | None = None) -> Reference:
    """The tuned model of an artifact: an adapter, a stack of them, or a whole model."""
    if adapter.facts.method == "full":
        return Reference(weights_of(adapter), None, whole)
    return Reference(below_the_last(adapter), stack_of(adapter)[-1], whole)


@contextlib.contextmanager
def base_of(reference: Reference, adapter: Artifact[AdapterFacts]) -> Iterator[Reference]:
    """The base of an artifact's model, read as `reference` is. Without its adapter a reference is its base, but for a whole model
    and for a stack."""
    facts = adapter.facts
    if facts.method == "full" or facts.stacked:
        plain = TrainedWeights(Path(facts.base.folder), facts.base_dtype, facts.quantization, facts.vocabulary)
        yield Reference(plain, None, reference.forward == "whole")
        return
    with reference.adapter_off():
        yield reference


def _batches(sequences: Sequence[TeacherForced]) -> Iterator[list[TeacherForced]]:
    batch: list[TeacherForced] = []
    for sequence in sequences:
        longest = max(len(s.ids) for s in [*batch, sequence])
        if batch and longest * (len(batch) + 1) > TOKENS_PER_PASS:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def write_logits(logits: Iterator[torch.Tensor], path: Path, shape: tuple[int, int], title: str) -> None:
    """Stream logits into a .npy file, float32 [positions, vocabulary]; never more than a sequence in memory.

    Args:
        shape: (positions over all sequences, vocabulary).
        title: shown beside the progress bar.

    Raises:
        ResourceError: the disk has no room for the file; told before anything is computed.
    """
    # Written, not mapped: when the disk is full, a map of a file ends the process with a signal.
    with writing(path), new_file(path) as partial, partial.open("wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        os.posix_fallocate(stream.fileno(), 0, stream.tell() + 4 * shape[0] * shape[1])
        done = 0
        with contextlib.closing(_with_progress(logits, shape[0], title)) as shown:
            for part in shown:
                stream.write(np.ascontiguousarray(part.numpy(), dtype="<f4").data)
                done += len(part)
        if done != shape[0]:
            raise AssertionError(f"{done} rows of logits, expected {shape[0]}")


def _with_progress(logits: Iterator[torch.Tensor], positions: int, title: str) -> Any:
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

    count = TextColumn("{task.completed}/{task.total} positions")
    with passing_bar(TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=positions)
        for part in logits:
            yield part
            progress.advance(task, len(part))


def held_out_loss(
    weights: TrainedWeights,
    adapter: Path | None,
    rows: list[dict[str, Any]],
    tokenizer: Any,
    max_length: int,
    limit: int = 64,
    fields: Mapping[str, Any] = NOTHING_TOLD,
) -> float | None:
    """Mean negative log-likelihood in nats per answer token, the end token included, in float32.

    Args:
        weights: the base as it was trained on, or a merged folder (`TrainedWeights(folder, "float32", None)`).
        adapter: the PEFT folder on top; None: the weights alone.
        rows: of the dataset (prompt, completion); answers that end behind `max_length` tokens are left out.
        limit: at most so many sequences.
        fields: what the chat template is told.

    Returns:
        None when no row is left.
    """
    parts = (part.up_to(max_length) for row in rows for part in tokenize(tokenizer, row, fields))
    kept = [part for part in parts if part is not None][:limit]
    if not kept:
        return None
    sequences = [TeacherForced(row.input_ids, row.first, row.pictures) for row in kept]
    reference = Reference(weights, adapter)
    total = 0.0
    shown = track(reference.logits(sequences), "held-out loss", len(sequences), console=stderr, transient=True)
    for row, logits in zip(kept, shown):
        answer = torch.tensor(row.labels[row.first :])
        total += torch.nn.functional.cross_entropy(logits, answer, ignore_index=NOT_LEARNED, reduction="sum").item()
    return total / sum(row.learnt for row in kept)
