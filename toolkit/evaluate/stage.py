"""Did it help, did it forget? The base, the tuned model, its exports and what is served, on rows that were held out and on
general texts that no recipe trains on.

`evaluation.json`: measures, a record each (name, unit, better: higher or lower, rows, values: subject → value, low, high), and
sentences in plain words.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from toolkit.errors import ParityError
from toolkit.evaluate.comparison import Interval, difference, mean
from toolkit.evaluate.general import paragraphs, questions
from toolkit.evaluate.subjects import Asked, Exported, Likelihood, Loaded, Served, adapter_off, best_choice, per_token
from toolkit.evaluate.texts import chrf, has_result, right, rouge_l
from toolkit.evaluate.words import sentences
from toolkit.models.ends import end_tokens
from toolkit.models.tokenizer import load_tokenizer
from toolkit.recipe.prompts_file import prompts_of
from toolkit.recipe.schema import SAMPLED, Recipe
from toolkit.run.artifacts import Artifact, read_jsonl, write_json
from toolkit.run.facts import EvaluationFacts, Measured
from toolkit.train.model import load_base, load_tuned
from toolkit.train.own_rewards import Reward
from toolkit.train.rows import TokenizedRow, answers_of, encode, tokenize

BASE, TUNED, SERVED = "base", "tuned", "served"
_LONGEST_PARAGRAPH = 256


class Rows(NamedTuple):
    """What is asked."""

    held_out: list[TokenizedRow]
    pairs: list[tuple[TokenizedRow, TokenizedRow]]
    prompts: list[Asked]
    references: list[str]


@dataclass(frozen=True)
class Found:
    """What a subject showed."""

    losses: list[Likelihood] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    """Of each pair, log-likelihood of the chosen answer less that of the rejected one, nats."""
    answers: list[str] = field(default_factory=list)
    general: list[Likelihood] = field(default_factory=list)
    known: list[float] = field(default_factory=list)
    """Of each general question, 1 where the right answer is the likeliest."""


def evaluate(
    recipe: Recipe, have: Mapping[str, Artifact[Any]], out: Path, rewards: Path | None = None
) -> EvaluationFacts:
    """Measure all subjects and write `evaluation.json`.

    Args:
        have: train, convert, quantize, verify, create; prepare where the data was given.
        rewards: a user's own rewards; those of the recipe are measured again.

    Raises:
        ParityError: what is served earns other rewards than the tuned model, beyond what these rows leave open.
    """
    adapter = have["train"]
    tokenizer = load_tokenizer(adapter.folder, adapter.facts.base.folder)
    ends = end_tokens(adapter, tokenizer).tokens
    rows = _rows(recipe, have.get("prepare"), tokenizer)
    general = _general(tokenizer) if recipe.evaluate.forgetting else []
    choices = _choices(tokenizer) if recipe.evaluate.forgetting else []
    new_tokens = recipe.evaluate.max_new_tokens or recipe.golden.max_new_tokens
    found = _of_models(adapter, tokenizer, ends, rows, general, choices, new_tokens)
    made = [(have[stage].folder, file) for stage in ("convert", "quantize") for file in have[stage].facts.files]
    files = {file.file_type: folder / file.name for folder, file in made}
    served_type = next((name for name, file in files.items() if file.name == have["verify"].facts.served_file), None)
    for name in (one for one in recipe.export.file_types if one in files):
        Console(stderr=True).print(f"evaluating {name}", style="dim")
        subject = Exported(files[name], tokenizer, ends)
        whole = name == served_type
        found[name] = _of(
            subject, rows._replace(prompts=[]), general if whole else [], choices if whole else [], new_tokens
        )
    if have["create"].facts.published and rows.prompts:
        found[SERVED] = Found(answers=_served(have["create"].facts.model, rows.prompts, new_tokens, adapter, out))
    measures = _measures(recipe, rows, found, rewards)
    told = sentences(measures, recipe.train.objective, served_type)
    write_json(out / "evaluation.json", {"measures": [one.model_dump() for one in measures], "sentences": told})
    _check_rewards(recipe, rows, found, rewards)
    return EvaluationFacts(measures=measures, sentences=told, served_type=served_type or "")


def _rows(recipe: Recipe, dataset: Artifact[Any] | None, tokenizer: Any) -> Rows:
    """Rows of the validation split, then of the test split, as many as `evaluate.rows`."""
    if dataset is None:
        return Rows([], [], [], [])
    fields, longest = recipe.train.chat_template_kwargs, recipe.train.max_length
    both = [row for side in ("validation", "test") for row in read_jsonl(dataset.folder / f"{side}.jsonl")]
    chosen = [row for row in both if row.get("label", True)][: recipe.evaluate.rows]
    parts = (part.up_to(longest) for row in chosen for part in tokenize(tokenizer, row, fields))
    held_out = [part for part in parts if part is not None]
    pairs = []
    if any("rejected" in row for row in chosen):
        from toolkit.train.methods.pairs import pair_of

        pairs = [pair_of(tokenizer, row, fields) for row in chosen]
    asked = [row for row in chosen if "text" not in row]
    prompts, references = [], []
    for row in asked:
        prompt, answer = prompts_of(row)[-1], answers_of(tokenizer, row, fields)[-1]
        if not answer.turn.get("tool_calls"):  # a call is compared by the certificate, whole
            prompts.append(Asked(prompt.turns, prompt.tools, answer.prompt, encode(tokenizer, answer.prompt)))
            references.append(str(answer.turn["content"]))
    return Rows(held_out, pairs, prompts, references)


def _general(tokenizer: Any) -> list[TokenizedRow]:
    ids = [list(tokenizer(text, verbose=False)["input_ids"])[:_LONGEST_PARAGRAPH] for text in paragraphs()]
    return [TokenizedRow(one, ((1, len(one)),)) for one in ids if len(one) > 1]


def _choices(tokenizer: Any) -> list[list[TokenizedRow]]:
    """For each question a sequence for each of its answers, the right one first."""
    found = []
    for question in questions():
        before = list(tokenizer(question.text, verbose=False)["input_ids"])
        of_question = []
        for choice in question.choices:
            ids = before + encode(tokenizer, f" {choice}" if choice.isascii() else choice)
            of_question.append(TokenizedRow.one_answer(ids, len(before)))
        found.append(of_question)
    return found


def _of(
    subject: Any, rows: Rows, general: list[TokenizedRow], choices: list[list[TokenizedRow]], new_tokens: int
) -> Found:
    of_pairs = [row for pair in rows.pairs for row in pair]
    of_choices = [row for one in choices for row in one]
    asked = [*rows.held_out, *of_pairs, *general, *of_choices]
    told = iter(subject.likelihoods(asked) if asked else [])
    losses = [next(told) for _ in rows.held_out]
    margins = [-next(told).loss + next(told).loss for _ in rows.pairs]
    of_general = [next(told) for _ in general]
    known = [float(best_choice([next(told) for _ in one]) == 0) for one in choices]
    answers = subject.answers(rows.prompts, new_tokens) if rows.prompts else []
    return Found(losses, margins, answers, of_general, known)


def _of_models(
    adapter: Artifact[Any], tokenizer: Any, ends: list[int], rows: Rows, general: list[TokenizedRow],
    choices: list[list[TokenizedRow]], new_tokens: int,
) -> dict[str, Found]:  # fmt: skip
    model, _ = load_tuned(adapter, torch.float32)
    tuned = _of(Loaded(model, tokenizer, ends), rows, general, choices, new_tokens)
    with adapter_off(model) as off:
        if off and not adapter.facts.stacked:
            return {BASE: _of(Loaded(model, tokenizer, ends), rows, general, choices, new_tokens), TUNED: tuned}
    del model
    gc.collect()
    base = load_base(adapter, torch.float32)
    return {BASE: _of(Loaded(base, tokenizer, ends), rows, general, choices, new_tokens), TUNED: tuned}


def _served(model: str, prompts: list[Asked], new_tokens: int, adapter: Artifact[Any], out: Path) -> list[str]:
    from toolkit.ollama.server import serving

    think = adapter.facts.chat_template_kwargs.get("enable_thinking")
    with serving(out.parent / "ollama-server.log") as client:
        return [] if client is None else Served(client, model, think).answers(prompts, new_tokens)


def _measures(recipe: Recipe, rows: Rows, found: Mapping[str, Found], own: Path | None) -> list[Measured]:
    tokens = [float(row.learnt) for row in rows.held_out]
    measures: list[Measured] = []

    def add(
        name: str, unit: str, better: str, of: Callable[[Found], list[float]], weights: list[float] | None = None
    ) -> None:
        per_row = {subject: values for subject, one in found.items() if (values := of(one))}
        if TUNED not in per_row:
            return
        changes = {
            subject: difference(values, per_row[BASE], weights)
            for subject, values in per_row.items()
            if subject != BASE and BASE in per_row
        }
        measures.append(
            Measured(
                name=name, unit=unit, better=better, rows=len(per_row[TUNED]),
                values={subject: mean(values, weights) for subject, values in per_row.items()},
                changes=changes,
            )
        )  # fmt: skip

    for name, reward in _rewards(recipe, own).items():
        add(f"reward {name}", "", "higher", _earned(reward, rows.references))
    if rows.references and all(map(has_result, rows.references)):
        add("right answers", "", "higher", lambda one: [right(a, r) for a, r in zip(one.answers, rows.references)])
    if rows.pairs:
        add("margin of the better answer", "nats", "higher", lambda one: one.margins)
        add("better answer likelier", "", "higher", lambda one: [float(margin > 0) for margin in one.margins])
    if recipe.train.objective not in SAMPLED:
        add("held-out loss", "nats a token", "lower", lambda one: per_token(one.losses), tokens)
    add("ROUGE-L", "", "higher", lambda one: [rouge_l(a, r) for a, r in zip(one.answers, rows.references)])
    add("chrF", "", "higher", lambda one: [chrf(a, r) for a, r in zip(one.answers, rows.references)])
    add("loss of general texts", "nats a token", "lower", lambda one: per_token(one.general))
    add("general questions right", "", "higher", lambda one: one.known)
    return measures


def _earned(reward: Reward, references: list[str]) -> Callable[[Found], list[float]]:
    return lambda found: reward(found.answers, references) if found.answers else []


def _rewards(recipe: Recipe, own: Path | None) -> dict[str, Reward]:
    if recipe.train.objective not in SAMPLED or not recipe.train.rewards:
        return {}
    from toolkit.train.rewards import named

    rewards = named(recipe.train.rewards, own)

    def together(answers: list[str], references: list[str]) -> list[float]:
        return [sum(parts) for parts in zip(*(reward(answers, references) for reward in rewards.values()))]

    return {"all together": together, **rewards}


def _check_rewards(recipe: Recipe, rows: Rows, found: Mapping[str, Found], own: Path | None) -> None:
    """What is served must earn what the tuned model earns, as far as these rows can tell."""
    if SERVED not in found or not found[SERVED].answers:
        return
    for name, reward in _rewards(recipe, own).items():
        served, tuned = (reward(found[who].answers, rows.references) for who in (SERVED, TUNED))
        change: Interval = difference(served, tuned)
        if change.decided:
            raise ParityError(
                f"what Ollama answers earns {mean(served).value:.2f} of the reward {name}, the tuned model "
                f"{mean(tuned).value:.2f} (difference {change.low:.2f} to {change.high:.2f})",
                f"Do not use {recipe.ollama.model}. Serve a larger file type: --set export.serve={recipe.export.converted}",
            )
