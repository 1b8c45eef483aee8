"""More positions where the goldens are too few to decide.

Strength, KL and likelihoods may be measured at any positions, not only at the tuned model's own answers. So the goldens are put
together anew: every prompt with its base's answer first, then with the answers to the prompts after it. The tuned model and its
base read them in float32, the export reads them too, and all are judged together.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from toolkit.models.pictures import PictureRules, size_of_picture
from toolkit.models.reference import Reference, TeacherForced, base_of, reference_of, write_logits
from toolkit.models.seen import Picture
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check
from toolkit.parity.checks.logits import Positions
from toolkit.parity.checks.tokens import encode
from toolkit.parity.eyes import Eyes
from toolkit.parity.golden.goldens import Goldens
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts

Logits = npt.NDArray[np.float32]
ROUNDS = 5
"""Each gives about as many positions as the goldens have, and costs about as much as recording their logits."""


def further_texts(goldens: Goldens, tokenizer: Any, rules: PictureRules | None = None) -> Iterator[list[TeacherForced]]:
    """Rounds of sequences, each over all prompts, in their order; none when there is nothing new to put together.

    Args:
        rules: how pictures are shown, where prompts have some.
    """
    rows = goldens.rows
    if rules is not None and not all(_shown_as_recorded(row, goldens.folder, rules) for row in rows):
        return  # the tuned model cannot read them; the check of the pictures says why

    def behind(row: dict[str, Any], ids: list[int]) -> TeacherForced:
        shown = pictures_in(row, goldens.folder, rules) if rules is not None else ()
        return TeacherForced(row["prompt_ids"] + ids, len(row["prompt_ids"]), shown)

    before = [encode(tokenizer, row["base_completion"]) for row in rows]
    if all(before):
        yield [behind(row, ids) for row, ids in zip(rows, before)]
    for shift in range(1, len(rows)):
        turned = rows[shift:] + rows[:shift]
        yield [behind(row, other["completion_ids"]) for row, other in zip(rows, turned)]


def _shown_as_recorded(row: dict[str, Any], folder: Path, rules: PictureRules) -> bool:
    """Whether a golden prompt's pictures take the tokens that they took when it was recorded."""
    pictures = row.get("pictures", ())
    tokens = [rules.tokens(*size_of_picture(folder / picture["image"])) for picture in pictures]
    return tokens == [picture["tokens"] for picture in pictures] and (
        not pictures or row["prompt_ids"].count(rules.image_token_id) == sum(tokens)
    )


def pictures_in(row: dict[str, Any], folder: Path, rules: PictureRules) -> tuple[Picture, ...]:
    """The pictures that a golden prompt shows, and where their tokens end."""
    found, end = [], 0
    for picture in row.get("pictures", ()):
        end = row["prompt_ids"].index(rules.image_token_id, end) + picture["tokens"]
        found.append(Picture(folder / picture["image"], rules, end))
    return tuple(found)


@dataclass(frozen=True)
class Round:
    """Sequences with the logits of the tuned model and of its base: memory maps, float32 [positions, vocabulary]."""

    texts: list[TeacherForced]
    tuned: Logits
    base: Logits


class Further:
    """The tuned model and its base, read again for more positions; each round is computed once, for all exports.

    Args:
        adapter: as the goldens were recorded with; see `toolkit.parity.golden.record.as_merged`.
    """

    def __init__(self, adapter: Artifact[AdapterFacts], goldens: Goldens, tokenizer: Any) -> None:
        self._adapter, self._vocabulary = adapter, goldens.facts.vocabulary
        self._texts = further_texts(goldens, tokenizer, adapter.facts.pictures)
        self.rows = goldens.rows
        """The prompts that each round goes through, in its order."""
        self._rounds: list[Round | None] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def round(self, number: int) -> Round | None:
        """One round; None: there are no more."""
        while len(self._rounds) <= number:
            texts = next(self._texts, [])
            self._rounds.append(self._read(texts) if texts else None)
        return self._rounds[number]

    def _read(self, texts: list[TeacherForced]) -> Round:
        model = reference_of(self._adapter)
        tuned = self._written(model, texts, "tuned")
        with base_of(model, self._adapter) as base:
            return Round(texts, tuned, self._written(base, texts, "base"))

    def _written(self, model: Reference, texts: list[TeacherForced], name: str) -> Logits:
        if self._folder is None:
            # On disk: the logits of a large vocabulary would fill the memory that the models need. Beside the run's results:
            # the system's own temporary folder is often in memory too.
            self._folder = tempfile.TemporaryDirectory(prefix=".more-", dir=self._adapter.folder.parent)
        path = Path(self._folder.name) / f"{name}-{len(self._rounds)}.npy"
        shape = (sum(text.positions for text in texts), self._vocabulary)
        write_logits(model.logits(texts), path, shape, f"more {name} logits")
        return cast(Logits, np.load(path, mmap_mode="r", allow_pickle=False))


Judge = Callable[[Positions], list[Check]]


def decide(judge: Judge, positions: Positions, rounds: Iterable[Positions]) -> list[Check]:
    """Judge, and add rounds of further texts while they may decide what is open.

    Args:
        judge: gives checks; `texts_needed` among the details of one says that more texts would decide it.
        rounds: read as they are taken.
    """
    checks, wider = judge(positions), None
    for found in itertools.islice(rounds, ROUNDS) if _open(checks) else ():
        wider = wider or copy.deepcopy(positions)
        wider.join(found)
        checks = judge(wider)
        if not _open(checks):
            break
    return checks


def _open(checks: list[Check]) -> bool:
    # What has failed needs no more witnesses.
    return all(check.verdict != "fail" for check in checks) and any(
        check.details.get("texts_needed") for check in checks
    )


def read_rounds(further: Further, candidate: Candidate, eyes: Eyes | None = None) -> Iterator[Positions]:
    """The rounds as an export reads them; `eyes` shows it the pictures."""
    for found in map(further.round, itertools.count()):
        if found is None:
            return
        yield read_round(found, candidate, further.rows, eyes)


def read_round(
    found: Round, candidate: Candidate, rows: list[dict[str, Any]] | None = None, eyes: Eyes | None = None
) -> Positions:
    """One round as an export reads it.

    Args:
        rows: the golden prompts, and `eyes` what shows their pictures, where they have some.
    """
    positions, first = Positions(), 0
    with contextlib.ExitStack() as stack:
        slots = stack.enter_context(candidate.slots(1, max(len(text.ids) for text in found.texts)))
        pictured = any(text.pictures for text in found.texts)
        sight = stack.enter_context(eyes.sight(candidate)) if eyes is not None and pictured else None
        for number, text in enumerate(found.texts):
            part = slice(first, first + text.positions)
            if text.pictures and eyes is not None and sight is not None and rows is not None:
                with eyes.read(sight, rows[number]) as prompt:
                    export = slots.logits_behind(0, sight, prompt, text.ids[text.first :])
            else:
                export = slots.logits(0, text.ids, text.first)
            positions.add(
                number, text.ids[text.first :], found.tuned[part], found.base[part], export, bool(text.pictures)
            )
            first += text.positions
    return positions
