"""Whoever is asked: a model in memory, a model that is read a layer at a time, a GGUF file. All read the same tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import track

from toolkit.errors import DataError
from toolkit.evaluate.names import BASE, TUNED
from toolkit.models.ends import ends_of
from toolkit.models.greedy import greedy
from toolkit.models.packing import pack_rows
from toolkit.models.processor import causal_of, sped_up
from toolkit.models.reference import (
    Reference,
    TeacherForced,
    base_of,
    logits_behind,
    model_logits,
    reference_of,
    stderr,
)
from toolkit.models.tokenizer import load_tokenizer
from toolkit.models.weights import TrainedWeights, weights_of
from toolkit.parity.candidate import Candidate
from toolkit.parity.golden.export_answers import Asked, answers_of
from toolkit.parity.golden.record import base_beside, can_answer, computed_whole
from toolkit.parity.showing import Showing
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts
from toolkit.train.model import load_tuned

LogProbabilities = npt.NDArray[np.float64]
_LOGITS_AT_ONCE = 2**26
"""Numbers (256 MB in float32): as many padded tokens are read together as their logits allow."""


class Read(NamedTuple):
    """What a sequence is to somebody, of its tokens ids[first], ids[first + 1], …"""

    nats: LogProbabilities
    """The natural logarithm of the probability of each: [positions]."""
    greedy: bool
    """Whether each of them is the likeliest."""


class Said(NamedTuple):
    """A greedy answer."""

    tokens: list[int]
    """Without the end token."""
    ended: bool
    """It ended by itself; else it was cut."""


class Reader(Protocol):
    """Somebody who reads tokens and goes on from them."""

    answers: bool
    """Whether it can be asked for answers; a model that is read a layer at a time cannot."""

    def read(self, sequences: Sequence[TeacherForced]) -> list[Read]:
        """Read sequences, each by itself."""
        ...

    def say(self, prompts: list[Asked], new_tokens: int) -> list[Said]:
        """Greedy answers."""
        ...


class ModelReader:
    """A transformers model or PeftModel in memory, in eval mode.

    Args:
        ends: tokens at which it ends.
    """

    answers = True

    def __init__(self, model: Any, ends: list[int], title: str) -> None:
        self._model, self._ends, self._title = model, ends, title
        if next(model.parameters()).device.type == "cpu":
            pack_rows(model, bfloat16=next(model.parameters()).dtype != torch.float32)

    @torch.no_grad()
    def read(self, sequences: Sequence[TeacherForced]) -> list[Read]:
        """See `Reader`; batches are padded at their ends, where no token of a sequence can see it. Who is shown pictures reads
        alone."""
        with sped_up(self._model):
            return self._read(sequences)

    def _read(self, sequences: Sequence[TeacherForced]) -> list[Read]:
        if any(one.pictures for one in sequences):
            shown = track(sequences, f"{self._title} reads", console=stderr, transient=True)
            return [_of_tokens(next(model_logits(self._model, [one])), one) for one in shown]
        device = next(self._model.parameters()).device
        causal = causal_of(self._model)
        found: dict[int, Read] = {}
        batches = _batches(sequences, _LOGITS_AT_ONCE // int(causal.get_output_embeddings().weight.shape[0]))
        for batch in track(batches, f"{self._title} reads", console=stderr, transient=True):
            some = [sequences[place] for place in batch]
            ids = torch.zeros(len(some), max(len(one.ids) for one in some) - 1, dtype=torch.long)
            mask, wanted = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
            for row, one in enumerate(some):
                ids[row, : len(one.ids) - 1] = torch.tensor(one.ids[:-1])
                mask[row, : len(one.ids) - 1] = 1
                wanted[row, one.first - 1 : len(one.ids) - 1] = True
            ids, wanted = ids.to(device), wanted.to(device)
            decoded = causal.get_decoder()(input_ids=ids, attention_mask=mask.to(device), use_cache=False)
            # The head is a fifth of a small model, and most of what is read is not asked for.
            behind = type(decoded)(last_hidden_state=decoded.last_hidden_state[wanted][None])
            logits = logits_behind(causal, behind, ids[wanted][None])[0].cpu()
            for place, one, own in zip(batch, some, torch.split(logits, [one.positions for one in some])):
                found[place] = _of_tokens(own, one)
        return [found[place] for place in range(len(sequences))]

    def say(self, prompts: list[Asked], new_tokens: int) -> list[Said]:
        """See `Reader`."""
        asked = [TeacherForced(one.ids, len(one.ids), one.pictures) for one in prompts]
        said = greedy(self._model, asked, self._ends, new_tokens, f"{self._title} answers")
        return [
            Said(
                tokens[:-1] if tokens and tokens[-1] in self._ends else tokens,
                bool(tokens) and tokens[-1] in self._ends,
            )
            for tokens in said
        ]


class LayerReader:
    """A model that is read from its files a layer at a time: it reads, and is too slow to answer."""

    answers = False

    def __init__(self, reference: Reference, title: str) -> None:
        self._reference, self._title = reference, title

    def read(self, sequences: Sequence[TeacherForced]) -> list[Read]:
        """See `Reader`."""
        shown = track(
            self._reference.logits(sequences), f"{self._title} reads", len(sequences), console=stderr, transient=True
        )
        return [_of_tokens(logits, one) for logits, one in zip(shown, sequences, strict=True)]

    def say(self, prompts: list[Asked], new_tokens: int) -> list[Said]:
        """Raises AssertionError: `answers` says that it cannot."""
        raise AssertionError("a model that is read a layer at a time is not asked")


class FileReader:
    """A GGUF file, through llama.cpp.

    Args:
        showing: its projector, for sequences with pictures.

    Raises:
        DataError: it cannot be loaded; or, when it reads, it does not know a token.
    """

    answers = True

    def __init__(self, path: Path, showing: Showing | None = None) -> None:
        self._path, self._showing = path, showing
        with Candidate(path, vocab_only=True) as candidate:
            self._ends, self._vocabulary = candidate.end_tokens, candidate.vocabulary

    def read(self, sequences: Sequence[TeacherForced]) -> list[Read]:
        """See `Reader`. What the last sequence and the next begin with alike is evaluated once, unless it shows a picture."""
        if not sequences:
            return []
        if (largest := max(max(one.ids) for one in sequences)) >= self._vocabulary:
            raise DataError(
                f"{self._path} knows {self._vocabulary} tokens, and is to read the token {largest}",
                "It was made of another base: name that one.",
            )
        found = []
        with contextlib.ExitStack() as stack:
            candidate = stack.enter_context(Candidate(self._path))
            sight = stack.enter_context(self._showing.sight(candidate)) if self._showing else None
            slots = stack.enter_context(candidate.slots(1, max(len(one.ids) for one in sequences)))
            for one in track(sequences, f"{self._path.name} reads", console=stderr, transient=True):
                if not one.pictures:
                    logits = slots.logits_after(0, one.ids, one.first)
                elif self._showing is None or sight is None:
                    raise DataError(f"{self._path} is to read pictures without a projector", "Name its mmproj file.")
                else:
                    with self._showing.placed(sight, one.ids, one.pictures) as placed:
                        logits = slots.logits_among(0, sight, one.ids, one.first, placed)
                found.append(_of_tokens(torch.from_numpy(logits), one))
        return found

    def say(self, prompts: list[Asked], new_tokens: int) -> list[Said]:
        """See `Reader`."""
        return [
            Said(tokens[:-1], True) if tokens and tokens[-1] in self._ends else Said(tokens, False)
            for tokens in answers_of(self._path, prompts, new_tokens, self._showing)
        ]


def tuned_and_base(adapter: Artifact[AdapterFacts], ends: list[int]) -> Iterator[tuple[str, Reader]]:
    """The tuned model under the name `TUNED`, then its base under `BASE`, each as training saw it. They are one model in memory:
    use the first before the second is taken.

    In float32 where that fits into memory (NF4 weights are unpacked once, which reads twice as fast as the packed layers); else
    in bfloat16 where that does; else layer by layer.
    """
    weights = weights_of(adapter)
    if computed_whole(weights):
        reference = reference_of(adapter, whole=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        yield TUNED, ModelReader(reference.tuned.to(device), ends, "the tuned model")
        with base_of(reference, adapter) as base:
            if base is not reference:
                reference.tuned.to("cpu")  # a card that holds one of them may not hold both
            yield BASE, ModelReader(base.tuned.to(device), ends, "the base")
    elif can_answer(weights):
        model, _ = load_tuned(adapter, torch.bfloat16)
        yield TUNED, ModelReader(model, ends, "the tuned model")
        with base_beside(model, adapter, torch.bfloat16) as plain:
            yield BASE, ModelReader(plain, ends, "the base")
    else:
        reference = reference_of(adapter, whole=False)
        yield TUNED, LayerReader(reference, "the tuned model")
        with base_of(reference, adapter) as base:
            yield BASE, LayerReader(base, "the base")


def base_reader(folder: Path) -> Reader:
    """A plain base in float32: whole where it fits into memory, else layer by layer."""
    weights = TrainedWeights(folder, "float32", None)
    reference = Reference(weights)
    if reference.forward != "whole":
        return LayerReader(reference, "the base")
    return ModelReader(reference.tuned, ends_of(folder, load_tokenizer(folder)).tokens, "the base")


def _batches(sequences: Sequence[TeacherForced], tokens: int) -> list[list[int]]:
    """Places of sequences, those that begin alike beside each other, together at most so many padded tokens."""
    batches: list[list[int]] = []
    longest = 0
    for place in sorted(range(len(sequences)), key=lambda place: sequences[place].ids):
        longer = max(longest, len(sequences[place].ids))
        if batches and longer * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(place)
            longest = longer
        else:
            batches.append([place])
            longest = len(sequences[place].ids)
    return batches


def _of_tokens(logits: torch.Tensor, one: TeacherForced) -> Read:
    wanted = torch.tensor(one.ids[one.first :])
    chosen = logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1)
    return Read(np.asarray(chosen.double().numpy(), dtype=np.float64), bool((logits.argmax(1) == wanted).all()))
