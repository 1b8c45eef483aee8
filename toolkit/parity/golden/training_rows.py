"""What the rows of the training tell, where they are known: the forward that trained, how long answers are, what is in them.

Files of the golden artifact:
    forward.jsonl   the rows of the training's own forward.jsonl, with `reference`: the loss of the same model in float32 (nats
                    per answer token), and `end`: the probability that it gives the end token where the row's answer ends
    written.npy     bool [vocabulary]: the tokens that trained answers hold before their ends
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from toolkit.models.chat_template import NOTHING_TOLD
from toolkit.models.pictures import PictureRules
from toolkit.models.reference import TeacherForced
from toolkit.models.seen import seen_rows
from toolkit.recipe.training import SAMPLED, Objective
from toolkit.run.artifacts import Artifact, read_jsonl, write_jsonl
from toolkit.run.facts import AdapterFacts, DatasetFacts
from toolkit.train.forward import FORWARD_FILE
from toolkit.train.rows import NOT_LEARNED, TokenizedRow, tokenize

WRITTEN_FILE = "written.npy"
ANSWERS = 2000
"""Rows that are looked at for lengths and tokens: it is to cost seconds."""


class Recorded(NamedTuple):
    """A row that the trainer recorded."""

    told: dict[str, Any]
    """As it stands in the training's forward.jsonl."""
    row: TokenizedRow

    @property
    def forced(self) -> TeacherForced:
        return TeacherForced(self.row.input_ids, self.row.first, self.row.pictures)


def recorded_rows(
    adapter: Artifact[AdapterFacts], dataset: Artifact[DatasetFacts] | None, tokenizer: Any
) -> list[Recorded]:
    """The rows whose losses the trainer recorded; none where another tool trained, or the rows are not here."""
    path = adapter.folder / FORWARD_FILE
    if dataset is None or not path.is_file():
        return []
    told = read_jsonl(path)
    rules = adapter.facts.pictures
    splits = {split: seen_rows(dataset.folder, split, rules) for split in {row["split"] for row in told}}
    fields = adapter.facts.chat_template_kwargs
    return [Recorded(row, tokenize(tokenizer, splits[row["split"]][row["index"]], fields)[row["part"]]) for row in told]


def write_forward(recorded: list[Recorded], logits: Iterable[torch.Tensor], ends: list[int], out: Path) -> None:
    """Write `forward.jsonl`; nothing where no row is known.

    Args:
        logits: float32 [tokens from the first answer's first on, vocabulary] for each row.
        ends: ids at which the tuned model ends.
    """
    if not recorded:
        return
    rows = []
    for (told, row), found in zip(recorded, logits, strict=True):
        answer = torch.tensor(row.labels[row.first :])
        loss = torch.nn.functional.cross_entropy(found, answer, ignore_index=NOT_LEARNED).item()
        at = [place for place, token in enumerate(answer.tolist()) if token in ends]
        end = float(found[at[-1]].softmax(-1)[ends].sum()) if at else None
        rows.append({**told, "reference": loss, "end": end})
    write_jsonl(out / FORWARD_FILE, rows)


class Answers(NamedTuple):
    """Answers that were trained on."""

    median: int | None
    longest: int | None
    """In tokens, the end included; None: no rows are known."""


def write_answers(
    dataset: Artifact[DatasetFacts] | None,
    objective: Objective,
    tokenizer: Any,
    max_length: int,
    ends: list[int],
    vocabulary: int,
    out: Path,
    fields: Mapping[str, Any] = NOTHING_TOLD,
    rules: PictureRules | None = None,
) -> Answers:
    """Look at the answers that were trained on, and write which tokens they hold into `written.npy`.

    Args:
        fields: what the chat template was told.
        rules: how a server shows the rows' pictures.
    """
    if dataset is None or objective in (*SAMPLED, "pretrain"):  # answers of its own, or none
        return Answers(None, None)
    rows = seen_rows(dataset.folder, "train", rules)
    step = max(1, len(rows) // ANSWERS)
    written: npt.NDArray[np.bool_] = np.zeros(vocabulary, dtype=np.bool_)
    lengths = []
    for row in rows[::step]:
        if row.get("label") is False or not row.get("completion", True):
            continue
        for part in tokenize(tokenizer, row, fields):
            trained = part.up_to(max_length)
            for begin, behind in trained.spans if trained else ():
                answer = part.input_ids[begin:behind]
                place = max((i for i, token in enumerate(answer) if token in ends), default=len(answer))
                written[[token for token in answer[:place] if token < vocabulary]] = True
                lengths.append(min(place + 1, len(answer)))
    np.save(out / WRITTEN_FILE, written)
    return Answers(int(median(lengths)), max(lengths)) if lengths else Answers(None, None)
