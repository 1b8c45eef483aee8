"""Greedy answers of a GGUF file, for a tuned model that is too large to be asked itself."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.progress import track

from toolkit.models.seen import Picture
from toolkit.parity.candidate import Candidate
from toolkit.parity.checks.stops import Answer, finish
from toolkit.parity.showing import Showing

TOGETHER = 16


class Asked(NamedTuple):
    """A prompt."""

    ids: list[int]
    pictures: tuple[Picture, ...] = ()


def too_large(parameters: int) -> bool:
    """Whether a model of this size does not fit into the free memory in 16 bits, so that it cannot generate here."""
    return 2 * parameters > 0.8 * psutil.virtual_memory().available


def answers_of(
    path: Path, prompts: Sequence[Asked], new_tokens: int, showing: Showing | None = None
) -> list[list[int]]:
    """Greedy completions, token ids up to and with the end token.

    Args:
        showing: the projector, where prompts show pictures.

    Raises:
        DataError: the file cannot be loaded, or the projector does not go with it.
    """
    found: list[list[int]] = []
    batches = [prompts[i : i + TOGETHER] for i in range(0, len(prompts), TOGETHER)]
    longest = max(len(prompt.ids) for prompt in prompts) + new_tokens
    with contextlib.ExitStack() as stack:
        candidate = stack.enter_context(Candidate(path))
        sight = stack.enter_context(showing.sight(candidate)) if showing else None
        slots = stack.enter_context(candidate.slots(len(batches[0]), longest))
        for batch in track(batches, f"answers of {path.name}", console=Console(stderr=True), transient=True):
            begun = []
            for slot, (ids, pictures) in enumerate(batch):
                whole = [*ids, 0]  # the last token is not evaluated, so any will do
                if showing is not None and sight is not None and pictures:
                    with showing.placed(sight, whole, pictures) as placed:
                        logits = slots.logits_among(slot, sight, whole, len(ids), placed)
                else:
                    logits = slots.logits(slot, whole, len(ids))
                first = int(logits[0].argmax())
                golden = {"prompt_ids": ids, "completion_ids": [first]}
                begun.append(Answer(golden, [first], slots.behind.get(slot)))
            finish(slots, candidate, begun, new_tokens)
            found += [answer.tokens for answer in begun]
    return found
