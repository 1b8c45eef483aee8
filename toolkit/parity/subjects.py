"""What is judged, and how: the adapter, a merged folder, a GGUF file, each against the tuned model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.models.adapters import LoraAdapter
from toolkit.models.chat_template import on_day, render_trained
from toolkit.models.ends import ends_of
from toolkit.models.gguf_file import UNQUANTIZED
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check, Subject
from toolkit.parity.checks.ends import file_ends_check, folder_ends_check, not_of_ends, tuned_ends_check
from toolkit.parity.checks.forward import forward_check
from toolkit.parity.checks.logits import Positions, logits_check
from toolkit.parity.checks.moved import moved_check
from toolkit.parity.checks.prompts import prompts_check, render
from toolkit.parity.checks.source import samples_of_converted, samples_of_tuning, source_check
from toolkit.parity.checks.stops import Answer, begin, finish, stops_check
from toolkit.parity.checks.strength import strength_check
from toolkit.parity.checks.structure import folder_structure_check, gguf_structure_check
from toolkit.parity.checks.tokens import recorded_tokens_check, tokens_check
from toolkit.parity.checks.weights import Expected, Part, weights_check
from toolkit.parity.comparison import Comparison
from toolkit.parity.exported import GGUFWeights
from toolkit.parity.eyes import Eyes
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.golden.record import as_merged
from toolkit.parity.heat import heat
from toolkit.parity.limits import fallback_share, limits_for
from toolkit.parity.metadata import Compared, compare_metadata
from toolkit.parity.more import Further, decide, read_rounds
from toolkit.parity.tuning import Tuning
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, GoldenFacts

EVALUATED_TOGETHER = 16
"""Goldens whose caches are held at once."""


@dataclass(frozen=True)
class Tuned:
    """The tuned model, as everything is compared with it."""

    trained: AdapterFacts
    """What the training said of itself."""
    goldens: Goldens
    tuning: Tuning
    adapter: LoraAdapter | None
    """None: a whole model was trained."""
    tokenizer: Any
    """As it was trained with."""
    new_tokens: int
    """Tokens of an answer at most."""
    answers_from: Path | None
    """The export whose answers the goldens are, where the tuned model does not fit into memory."""
    further: Further
    """More positions, where the goldens do not decide."""

    @property
    def parameters(self) -> int:
        return sum(math.prod(self.tuning.shape(name)) for name in self.tuning.names())

    @classmethod
    def of(
        cls, recipe: Recipe, adapter: Artifact[AdapterFacts], golden: Artifact[GoldenFacts], tokenizer: Any
    ) -> Tuned:
        """Read what the golden stage and the training left.

        Raises:
            DataError: goldens or adapter are damaged, or do not fit each other.
        """
        lora = None if adapter.facts.method == "full" else LoraAdapter(adapter.folder)
        tuning = Tuning(adapter, recipe.merge.chosen)
        goldens = Goldens.read(golden)
        further = Further(as_merged(adapter, recipe.merge.chosen), goldens, tokenizer)
        told = recipe.golden.answers_from
        answers_from = Path(told).resolve() if told is not None else None
        return cls(adapter.facts, goldens, tuning, lora, tokenizer, recipe.golden.max_new_tokens, answers_from, further)


@dataclass(frozen=True)
class GGUFUnderTest:
    """A GGUF file to be judged."""

    path: Path
    name: str
    """As the certificate calls it."""
    file_type: str
    served: bool = False
    made_from: str = ""
    """Name of the subject that it was made from, where that is known."""
    source: Path | None = None
    """The converted file that it was quantized from, where that is known."""
    imatrix: Path | None = None
    """The importance matrix that it was quantized with, where that is known."""

    @property
    def converted(self) -> bool:
        return self.file_type in UNQUANTIZED


def adapter_subject(tuned: Tuned, publishing: bool) -> Subject:
    """What was trained, before anything is made of it: an adapter, or a whole model."""
    started = time.monotonic()
    sees = tuned.trained.pictures is not None
    checks = [moved_check(tuned.adapter, sees)] if tuned.adapter is not None else []
    if forward := forward_check(tuned.trained, tuned.goldens.forward):
        checks.append(forward)
    if tuned.answers_from is None:  # else the answers are an export's
        checks.append(tuned_ends_check(tuned.goldens, tuned.new_tokens, publishing))
    folder = tuned.adapter.folder.name if tuned.adapter is not None else "train"
    return Subject(
        name="adapter" if tuned.adapter is not None else "tuned model", kind="adapter", file=folder, counts="everything",
        file_type="LoRA" if tuned.adapter is not None else "whole", checks=checks, seconds=_since(started),
    )  # fmt: skip


def merged_subject(tuned: Tuned, merged: Path, compared: Comparison) -> Subject:
    started = time.monotonic()
    own = load_tokenizer(merged)
    rendered = [
        render(own, messages, tuned.goldens.facts.day, tuned.goldens.facts.chat_template_kwargs, tools)
        for messages, tools in tuned.goldens.asked()
    ]
    checks = [
        prompts_check(tuned.goldens.texts(), rendered),
        recorded_tokens_check(own, tuned.tokenizer, tuned.goldens.recorded(), tuned.goldens.facts.end_tokens),
        folder_ends_check(ends_of(merged, own).listed, tuned.tokenizer, tuned.goldens),
        folder_structure_check(tuned.tuning, merged, compared, tuned.trained.pictures is not None),
        *_folder_weights(tuned, compared),
    ]
    kinds = {tensor.type for tensor in compared.tensors}
    return Subject(
        name="merged", kind="merged", file=merged.name, file_type="/".join(sorted(kinds)), counts="everything", checks=checks,
        seconds=_since(started),
    )  # fmt: skip


def _folder_weights(tuned: Tuned, compared: Comparison) -> list[Check]:
    """Of a model that sees, its language model and its vision part each for itself: the one would hide what the other lost."""
    expected = Expected.of(tuned.adapter, tuned.tuning.has_base)
    if tuned.trained.pictures is None:
        return [weights_check(compared, expected, alone=True)]
    vision, language = compared.split(tuned.tuning.seeing.__contains__)
    parts: tuple[tuple[Part, Comparison], ...] = (("language", language), ("vision", vision))
    return [
        weights_check(of_part, expected, alone=any(t.touched for t in of_part.tensors), part=part)
        for part, of_part in parts
    ]


def _file_checks(
    tuned: Tuned, file: GGUFUnderTest, weights: GGUFWeights, compared: Comparison, keys: Compared
) -> list[Check]:
    """What the file alone tells, without running it."""
    checks = [
        gguf_structure_check(compared, keys),
        weights_check(
            compared,
            Expected.of(tuned.adapter, tuned.tuning.has_base),
            importance_matrix=any(key.startswith("quantize.imatrix.") for key in weights.header.metadata),
            part="" if tuned.trained.pictures is None else "language",
        ),
    ]
    if file.converted:
        return checks
    if file.source is not None:
        checks.append(source_check(samples_of_converted(weights, GGUFWeights(file.source))))
    elif checks[-1].verdict == "pass":
        # Of weights that are not the tuned ones, it could not be told how they were rounded.
        checks.append(source_check(samples_of_tuning(weights, tuned.tuning)))
    return checks


def gguf_subject(
    tuned: Tuned,
    file: GGUFUnderTest,
    weights: GGUFWeights,
    compared: Comparison,
    tick: Callable[[int], None],
    eyes: Eyes | None = None,
) -> Subject:
    """A GGUF file: what it holds, and what it answers.

    Args:
        compared: its tensors with the tuned model's.
        eyes: shows it the golden pictures.
        tick: is told how many goldens were answered.
    """
    started = time.monotonic()
    share = fallback_share(weights.header, file.file_type)
    limits, relaxed = limits_for(file.file_type, tuned.parameters, share, pictures=bool(tuned.goldens.pictured))
    keys = compare_metadata(tuned.tuning.layout.metadata, weights.header)
    checks = _file_checks(tuned, file, weights, compared, keys)
    goldens = tuned.goldens
    with Candidate(file.path) as candidate:
        checks = [
            gguf_prompts_check(goldens, candidate),
            tokens_check(candidate, tuned.tokenizer, goldens.recorded(), goldens.facts.vocabulary, not_of_ends(keys)),
            file_ends_check(candidate, tuned.tokenizer, goldens, tuned.tuning.layout.metadata),
            *checks,
        ]
        blind = eyes.blind_with(candidate) if eyes is not None else ""
        if blind:
            checks.append(Check(name="logits", verdict="fail", message=f"not compared: {blind}"))
        elif candidate.vocabulary == goldens.facts.vocabulary:
            positions, answers = evaluate(goldens, candidate, tuned.new_tokens, tick, eyes)
            markers = [t.content for t in tuned.tokenizer.added_tokens_decoder.values() if t.special]
            whole, shown = whole_in_weights(checks), heat(positions, goldens.rows, candidate.piece)

            def judge(so_far: Positions) -> list[Check]:
                # Strength before the rest: a lost adapter is to be called so, not a lost end token.
                strength = [strength_check(so_far, limits, whole)] if tuned.tuning.has_base else []
                return [*strength, logits_check(so_far, limits, shown)]

            checks += [
                *decide(judge, positions, read_rounds(tuned.further, candidate, eyes)),
                stops_check(
                    candidate,
                    answers,
                    positions,
                    limits,
                    goldens.facts.end_tokens,
                    markers,
                    own=file.path.resolve() == tuned.answers_from,
                ),
            ]
        else:
            message = f"not compared: the vocabulary has {candidate.vocabulary} tokens, not {goldens.facts.vocabulary}"
            checks.append(Check(name="logits", verdict="fail", message=message))
    return Subject(
        name=file.name, kind="converted" if file.converted else "quantized", file=file.path.name,
        file_type=file.file_type, counts="everything", served=file.served, made_from=file.made_from, relaxed=relaxed,
        checks=checks, seconds=_since(started),
    )  # fmt: skip


def whole_in_weights(checks: list[Check]) -> bool:
    """Whether the weights alone show that the adapter is there, whole, once."""
    measures = [m for check in checks if check.name == "weights" and check.verdict == "pass" for m in check.measures]
    return any(m.name == "strength in the weights" and m.verdict == "pass" for m in measures)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)


def gguf_prompts_check(goldens: Goldens, candidate: Candidate) -> Check:
    """The GGUF's own template, with its own BOS and EOS texts, against the training template."""
    template = candidate.chat_template
    if template is None:
        return Check(name="prompts", verdict="fail", message="there is no chat template in the file")
    bos, eos = candidate.token_text(candidate.bos), candidate.token_text(candidate.eos)
    told = {**goldens.facts.chat_template_kwargs, **on_day(goldens.facts.day)}
    rendered = [render_trained(template, messages, bos, eos, tools, **told) for messages, tools in goldens.asked()]
    return prompts_check(goldens.texts(), rendered)


def evaluate(
    goldens: Goldens,
    candidate: Candidate,
    new_tokens: int,
    tick: Callable[[int], None] = lambda _: None,
    eyes: Eyes | None = None,
) -> tuple[Positions, list[Answer]]:
    """Teacher-force every golden through an export and let it finish its own answers: each prompt is evaluated once.

    Args:
        eyes: for goldens with pictures.
    """
    positions = Positions()
    answers: list[Answer] = []
    longest = max(len(row["prompt_ids"]) + max(len(row["completion_ids"]), new_tokens) for row in goldens.rows)
    groups = [goldens.rows[i : i + EVALUATED_TOGETHER] for i in range(0, len(goldens.rows), EVALUATED_TOGETHER)]
    with contextlib.ExitStack() as stack:
        sight = stack.enter_context(eyes.sight(candidate)) if eyes is not None and goldens.pictured else None
        slots = stack.enter_context(candidate.slots(len(groups[0]), longest))
        for group in groups:
            begun = []
            for slot, row in enumerate(group):
                wanted = row["completion_ids"]
                part = slice(row["first_row"], row["first_row"] + len(wanted))
                number = len(answers) + slot
                if row.get("pictures") and eyes is not None and sight is not None:
                    with eyes.read(sight, row) as prompt:
                        export = slots.logits_behind(slot, sight, prompt, wanted)
                else:
                    export = slots.logits(slot, row["prompt_ids"] + wanted, len(row["prompt_ids"]))
                best = positions.add(
                    number, wanted, goldens.tuned[part], goldens.base[part], export, bool(row.get("pictures"))
                )
                begun.append(begin(row, best, candidate, slots.behind.get(slot)))
            finish(slots, candidate, begun, new_tokens)
            answers += begun
            tick(len(group))
    return positions, answers
