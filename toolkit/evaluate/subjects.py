"""Whoever is measured, behind three questions: how likely are these tokens, and what do you answer to these prompts?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from toolkit.models.reference import TeacherForced, model_logits
from toolkit.ollama.client import Client
from toolkit.parity.candidate import Candidate
from toolkit.parity.golden.export_answers import answers_of
from toolkit.parity.golden.record import Prompt, greedy
from toolkit.train.rows import NOT_LEARNED, TokenizedRow


class Likelihood(NamedTuple):
    """Of the learnt tokens of a sequence."""

    loss: float
    """Negative log-likelihood, the sum over tokens, nats."""
    tokens: int


class Asked(NamedTuple):
    """A prompt as a server is sent it, and as the template renders it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    text: str
    ids: list[int]


class Subject(Protocol):
    """A model, whatever it lies in."""

    def likelihoods(self, rows: Sequence[TokenizedRow]) -> list[Likelihood]:
        """How likely the learnt tokens of each sequence are."""

    def answers(self, prompts: Sequence[Asked], new_tokens: int) -> list[str]:
        """Greedy answers without their ends."""


class Loaded:
    """A model of transformers, in float32."""

    def __init__(self, model: Any, tokenizer: Any, ends: list[int]) -> None:
        self._model, self._tokenizer, self._ends = model, tokenizer, ends

    def likelihoods(self, rows: Sequence[TokenizedRow]) -> list[Likelihood]:
        """See `Subject`."""
        forced = [TeacherForced(row.input_ids, row.first) for row in rows]
        return [_of(row, logits) for row, logits in zip(rows, model_logits(self._model, forced))]

    def answers(self, prompts: Sequence[Asked], new_tokens: int) -> list[str]:
        """See `Subject`."""
        given = [Prompt(p.messages, p.tools, p.text, p.ids) for p in prompts]
        return [self._text(ids) for ids in greedy(self._model, given, self._ends, new_tokens, "answers")]

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode([i for i in ids if i not in self._ends], skip_special_tokens=False))


class Exported:
    """A GGUF file, in the pinned llama.cpp."""

    def __init__(self, file: Path, tokenizer: Any, ends: list[int]) -> None:
        self._file, self._tokenizer, self._ends = file, tokenizer, ends

    def likelihoods(self, rows: Sequence[TokenizedRow]) -> list[Likelihood]:
        """See `Subject`."""
        longest = max(len(row.input_ids) for row in rows)
        with Candidate(self._file) as candidate, candidate.slots(1, longest) as slots:
            return [_of(row, torch.from_numpy(slots.logits(0, row.input_ids, row.first))) for row in rows]

    def answers(self, prompts: Sequence[Asked], new_tokens: int) -> list[str]:
        """See `Subject`."""
        found = answers_of(self._file, [prompt.ids for prompt in prompts], new_tokens)
        return [str(self._tokenizer.decode([i for i in ids if i not in self._ends])) for ids in found]


class Served:
    """A model in Ollama, asked as the certificate asks it: greedily, with no other option. It tells no likelihoods of texts."""

    def __init__(self, client: Client, model: str, think: bool | None = None) -> None:
        self._client, self._model, self._think = client, model, think

    def answers(self, prompts: Sequence[Asked], new_tokens: int) -> list[str]:
        """See `Subject`; the thought, where there is one, is left out."""
        options = {"temperature": 0, "top_k": 1, "repeat_penalty": 1.0, "seed": 1, "num_predict": new_tokens}
        told: dict[str, Any] = {"options": options} | ({"think": self._think} if self._think is not None else {})
        found = []
        for prompt in prompts:
            fields = told | ({"tools": prompt.tools} if prompt.tools else {})
            found.append(str(self._client.chat(self._model, prompt.messages, **fields)["message"].get("content", "")))
        return found


@contextmanager
def adapter_off(model: Any) -> Iterator[bool]:
    """The model without its adapter; yields False where it has none to turn off."""
    if not hasattr(model, "disable_adapter"):
        yield False
        return
    with model.disable_adapter():
        yield True


def _of(row: TokenizedRow, logits: torch.Tensor) -> Likelihood:
    labels = torch.tensor(row.labels[row.first :], device=logits.device)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, ignore_index=NOT_LEARNED, reduction="sum")
    return Likelihood(float(loss), row.learnt)


def per_token(found: Sequence[Likelihood]) -> list[float]:
    """Nats a token, row by row."""
    return [one.loss / max(one.tokens, 1) for one in found]


def best_choice(losses: Sequence[Likelihood]) -> int:
    """Of several answers to a question the one that is likeliest a token."""
    return int(np.argmin(per_token(losses)))
