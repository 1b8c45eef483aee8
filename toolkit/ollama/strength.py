"""Adapter strength of a served model, from the twenty likeliest tokens that Ollama tells of each position.

`toolkit.parity.strength` compares whole vocabularies; a server tells 20 log-probabilities. Over those whose text belongs to
exactly one token (S), p being the tuned model's probabilities renormalised over S, and both changes centred under p,

    strength = sum_positions E_p[d_t d_e] / sum_positions E_p[d_t ** 2],   d_t = tuned - base,   d_e = served - base,

is the same slope, seen through a window. A position counts when the server has read exactly the golden's tokens before it: along
its own greedy answer as long as that is the golden one, and then by asking for one token after the golden text so far.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.artifacts import read_jsonl
from toolkit.errors import DataError, ExternalToolError
from toolkit.ollama.client import Client
from toolkit.ollama.own_model import OwnModel
from toolkit.ollama.served import GREEDY
from toolkit.parity.strength import Strength, moments, strength

TOLD = 20
"""Most that Ollama tells (server/routes.go refuses more)."""


@dataclass(frozen=True)
class ServedStrength:
    """The slope with its interval, and what it rests on."""

    strength: Strength | None
    """None: the tuning changed nothing that the window shows."""
    positions: int
    asked: int
    """Requests that were made."""
    window: float
    """Mean probability (tuned model) of the tokens that could be compared."""
    skipped: int
    """Positions where the server read other tokens than the golden's, or told fewer than two that can be told apart."""


def served_strength(
    client: Client, model: str, golden: Path, own: OwnModel, most_forced: int = 100, most_rows: int | None = None
) -> ServedStrength:
    """Measure the adapter in what a server answers.

    Args:
        golden: the golden stage's folder: golden.jsonl, tuned.npy, base.npy.
        own: the served GGUF's vocabulary (its weights are not used).
        most_forced: requests for single tokens at most, where the server's greedy answer leaves the golden one.
        most_rows: golden prompts at most.

    Raises:
        DataError: the goldens are damaged, or of another vocabulary.
        ExternalToolError: the server gives no log-probabilities.
    """
    rows = read_jsonl(golden / "golden.jsonl")[:most_rows]
    try:
        tuned, base = (np.load(golden / f"{name}.npy", mmap_mode="r") for name in ("tuned", "base"))
    except (OSError, ValueError) as error:
        raise DataError(f"{golden} has no reference logits: {error}", "Run the golden stage again.") from error
    window = _Window(client, model, own, tuned, base, most_forced)
    for row in rows:
        window.follow(row)
    found = strength(np.array(window.together), np.array(window.alone)) if window.alone else None
    return ServedStrength(
        found,
        len(window.alone),
        window.asked,
        float(np.mean(window.covered)) if window.covered else 0.0,
        window.skipped,
    )


class _Window:
    def __init__(
        self, client: Client, model: str, own: OwnModel, tuned: np.ndarray, base: np.ndarray, forced: int
    ) -> None:
        self.client, self.model, self.own, self.tuned, self.base = client, model, own, tuned, base
        self.forced = forced
        self.asked = self.skipped = 0
        self.together: list[float] = []
        self.alone: list[float] = []
        self.covered: list[float] = []
        texts = [own.piece(i) for i in range(tuned.shape[1])]
        shared = Counter(texts)
        self.token_of = {text: i for i, text in enumerate(texts) if text and shared[text] == 1}

    def follow(self, row: dict[str, Any]) -> None:
        """Every position of one golden answer that can be reached."""
        ids, first = [int(i) for i in row["completion_ids"]], int(row["first_row"])
        reached = self._along(row, ids, first)
        for at in range(reached, len(ids)):
            if self.forced <= 0:
                return
            self.forced -= 1
            self._force(row, ids[:at], first + at)

    def _along(self, row: dict[str, Any], ids: list[int], first: int) -> int:
        """Positions of the server's own greedy answer while it is the golden one; gives how many."""
        answer = self._ask(row["prompt_text"], len(row["prompt_ids"]), len(ids))
        if answer is None:
            return 0
        for at, (entry, token) in enumerate(zip(answer, ids)):
            self._compare(entry, first + at)
            # Text that was held back for the rest of a character or of a stop word stands for several tokens.
            if str(entry["token"]).encode() != self.own.piece(token):
                return at + 1
        return min(len(answer), len(ids))

    def _force(self, row: dict[str, Any], before: list[int], place: int) -> None:
        text = b"".join(self.own.piece(token, special=True) for token in before)
        try:
            forced = row["prompt_text"] + text.decode()
        except UnicodeDecodeError:  # in the middle of a character
            self.skipped += 1
            return
        answer = self._ask(forced, len(row["prompt_ids"]) + len(before), 1)
        if answer:
            self._compare(answer[0], place)

    def _ask(self, text: str, tokens: int, predict: int) -> list[dict[str, Any]] | None:
        """The positions of an answer to a raw prompt; None when the server read another number of tokens."""
        self.asked += 1
        bos = self.own.bos_text if self.own.adds_bos else ""
        # Stop words of the model would hold text back.
        answer = self.client.generate(
            self.model, text.removeprefix(bos) if bos else text, raw=True, logprobs=True, top_logprobs=TOLD,
            options={**GREEDY, "num_predict": predict, "stop": []},
        )  # fmt: skip
        if answer.get("prompt_eval_count") != tokens:
            self.skipped += 1
            return None
        found: list[dict[str, Any]] = answer.get("logprobs") or []
        if not found and int(answer.get("eval_count", 0)) > 1:
            raise ExternalToolError(
                f"the Ollama at {self.client.address} gives no log-probabilities", "Update it, or: make ollama"
            )
        return found

    def _compare(self, entry: dict[str, Any], place: int) -> None:
        told = entry.get("top_logprobs") or []
        shown = Counter(str(one["token"]).encode() for one in told)
        served = {
            self.token_of[text]: float(one["logprob"])
            for one in told
            if shown[text := str(one["token"]).encode()] == 1 and text in self.token_of
        }
        if len(served) < 2:
            self.skipped += 1
            return
        ids = list(served)
        tuned = torch.from_numpy(self.tuned[place].astype(np.float64))
        base = torch.from_numpy(self.base[place][ids].astype(np.float64))
        self.covered.append(float(tuned.softmax(-1)[ids].sum()))
        export = torch.tensor([[served[i] for i in ids]], dtype=torch.float64)
        together, alone = moments(tuned[ids][None], base[None], export)
        self.together.append(float(together[0]))
        self.alone.append(float(alone[0]))
