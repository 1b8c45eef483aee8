"""A golden artifact, read: what every comparison is made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
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


def golden_name(number: int) -> str:
    """As people call it."""
    return f"golden {number + 1}"


def shown_name(image: str) -> str:
    """The file of a golden picture as the model was shown it: of the server's size, 8 bits, before it was normalised."""
    return f"{image.removesuffix('.png')}-shown.png"


def as_written(row: dict[str, Any]) -> list[int]:
    """The prompt's token ids with each picture's tokens as one, as the template's text has it.

    Raises:
        DataError: there is no place for a picture's tokens.
    """
    ids, at = list(row["prompt_ids"]), 0
    for picture in row.get("pictures", ()):
        count = picture["tokens"]
        runs = (i for i in range(at, len(ids) - count + 1) if ids[i : i + count] == [ids[i]] * count)
        if (begin := next(runs, None)) is None:
            raise DataError(
                f"a golden prompt has no {count} tokens for {picture['image']}: {row['prompt_text'][:80]!r}",
                "Record the goldens again.",
            )
        ids[begin : begin + count] = [ids[begin]]
        at = begin + 1
    return ids


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
    folder: Path = Path()
    """Holds the files, and the pictures that rows name."""

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
        return cls(golden.facts, rows, conversations, tuned, base, forward, trained, folder)

    @property
    def pictured(self) -> list[int]:
        """Which goldens show pictures."""
        return [number for number, row in enumerate(self.rows) if row.get("pictures")]

    def written(self) -> frozenset[int]:
        """Tokens inside answers: of those that were trained on, and of the goldens before their ends. An answer that does not
        end is left out: what it runs on into is no part of an answer.
        """
        said = (row["completion_ids"][:-1] for row in self.rows if row["stopped"])
        return self.trained.union(*said)

    def texts(self) -> list[tuple[str, str | None]]:
        """(name, text of the training template) of every golden and every further conversation."""
        goldens = [(golden_name(i), row["prompt_text"]) for i, row in enumerate(self.rows)]
        return goldens + [(row["name"], row["text"]) for row in self.conversations]

    def asked(self) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]]:
        """(messages, tools) of the conversations of `texts`, in its order."""
        return [(row["messages"], row.get("tools")) for row in self.rows + self.conversations]

    def recorded(self) -> list[tuple[str, list[int]]]:
        """(text, token ids) as the model was trained to read them; a picture is one token, as the text has it."""
        goldens = [(row["prompt_text"], as_written(row)) for row in self.rows]
        return goldens + [(row["text"], row["ids"]) for row in self.conversations if row["text"] is not None]
