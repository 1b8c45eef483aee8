"""Greedy answers of a GGUF file, for a tuned model that is too large to be asked itself."""

from __future__ import annotations

from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import track

from toolkit.parity.candidate import Candidate
from toolkit.parity.checks.stops import Answer, finish

TOGETHER = 16


def too_large(parameters: int) -> bool:
    """Whether a model of this size does not fit into the free memory in 16 bits, so that it cannot generate here."""
    return 2 * parameters > 0.8 * psutil.virtual_memory().available


def answers_of(path: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy completions, token ids up to and with the end token.

    Args:
        prompts: token ids.

    Raises:
        DataError: the file cannot be loaded.
    """
    found: list[list[int]] = []
    batches = [prompts[i : i + TOGETHER] for i in range(0, len(prompts), TOGETHER)]
    longest = max(len(prompt) for prompt in prompts) + new_tokens
    with Candidate(path) as candidate, candidate.slots(len(batches[0]), longest) as slots:
        for batch in track(batches, f"answers of {path.name}", console=Console(stderr=True), transient=True):
            begun = []
            for slot, ids in enumerate(batch):
                # The last token is not evaluated, so any will do.
                first = int(slots.logits(slot, [*ids, 0], len(ids))[0].argmax())
                begun.append(Answer({"prompt_ids": ids, "completion_ids": [first]}, [first]))
            finish(slots, candidate, begun, new_tokens)
            found += [answer.tokens for answer in begun]
    return found
