"""A golden artifact, read: what every comparison is made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.errors import DataError
from toolkit.parity.golden.training_rows import WRITTEN_FILE
from toolkit.run.artifacts import Artifact, read_jsonl
from toolkit.run.facts import GoldenFacts
from toolkit.train.forward import FORWARD_FILE

LET_GO_ON, GOES_ON = 2, 4
"""Where no golden answer ends, so many of them are let go on, up to so many times `golden.max_new_tokens`."""


@dataclass(frozen=True)
class Goldens:
    """A golden artifact, read. Logits are memory maps, float32 [positions, vocabulary]."""

    facts: GoldenFacts
    rows: list[dict[str, Any]]
    conversations: list[dict[str, Any]]
    tuned: npt.NDArray[np.float32]
    base: npt.NDArray[np.float32]
    forward: list[dict[str, Any]] = field(default_factory=list)
    """What the trainer's own model and the reference lose on rows of the training; empty where these are not known."""
    trained: frozenset[int] = frozenset()
    """Tokens that the answers hold which were trained on; empty where these are not known."""

    @classmethod
    def read(cls, golden: Artifact[GoldenFacts]) -> Goldens:
        """Read a golden artifact.

        Raises:
            DataError: its files do not fit together.
        """
        folder = golden.folder
        rows, conversations = (read_jsonl(folder / name) for name in ("golden.jsonl", "conversations.jsonl"))
        tuned, base = (np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in ("tuned", "base"))
        shape = (sum(len(row["completion_ids"]) for row in rows), golden.facts.vocabulary)
        if not rows or tuned.shape != shape or base.shape != shape:
            raise DataError(
                f"{folder}: logits {tuned.shape} do not fit the answers {shape}", "Record the goldens again."
            )
        forward = read_jsonl(folder / FORWARD_FILE) if (folder / FORWARD_FILE).is_file() else []
        trained: frozenset[int] = frozenset()
        if (folder / WRITTEN_FILE).is_file():
            trained = frozenset(np.flatnonzero(np.load(folder / WRITTEN_FILE, allow_pickle=False)).tolist())
        return cls(golden.facts, rows, conversations, tuned, base, forward, trained)

    def written(self) -> frozenset[int]:
        """Tokens inside answers: of those that were trained on, and of the goldens before their ends. An answer that does not
        end is left out: what it runs on into is no part of an answer.
        """
        said = (row["completion_ids"][:-1] for row in self.rows if row["stopped"])
        return self.trained.union(*said)

    def texts(self) -> list[tuple[str, str | None]]:
        """(name, text of the training template) of every golden and every further conversation."""
        goldens = [(f"golden {i + 1}", row["prompt_text"]) for i, row in enumerate(self.rows)]
        return goldens + [(row["name"], row["text"]) for row in self.conversations]

    def asked(self) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
        """(messages, tools) of the conversations of `texts`, in its order."""
        return [(row["messages"], row.get("tools")) for row in self.rows + self.conversations]

    def recorded(self) -> list[tuple[str, list[int]]]:
        """(text, token ids) as the model was trained to read them."""
        goldens = [(row["prompt_text"], row["prompt_ids"]) for row in self.rows]
        return goldens + [(row["text"], row["ids"]) for row in self.conversations if row["text"] is not None]
