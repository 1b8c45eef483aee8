"""From what was seen to figures: one a question, over the same rows for everybody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from toolkit.evaluate import pairs, texts
from toolkit.evaluate.figure import About, Figure
from toolkit.evaluate.general_texts import General
from toolkit.evaluate.held_out import HeldOut
from toolkit.evaluate.rewards import rewards_of
from toolkit.evaluate.seen import Seen


def figures_of(
    held_out: HeldOut, general: General | None, seen: Mapping[str, Seen], rewards: Mapping[str, Callable[..., Any]]
) -> list[Figure]:
    """Every figure that can be had of what was seen; those that say most come first.

    Args:
        rewards: functions that were trained with, by name.
    """
    found: list[Figure] = []
    told = {name: one.answers for name, one in seen.items() if one.answers is not None}
    if held_out.kind == "answers" and told and held_out.questions:
        references = [texts_reference(held_out, number) for number in range(len(held_out.questions))]
        found += rewards_of({name: seen[name].texts for name in told}, [q.content for q in held_out.questions], rewards)
        found += _calls(told, held_out, references) or _right(told, references, "help")
        losses = _losses(held_out, seen, "held-out loss", 0, "beside" if rewards else "help")
        found += [*losses, *_near(told, references, "beside" if rewards else "help")]
    elif held_out.rows:
        found += pairs.figures(held_out, seen) if held_out.kind in ("pairs", "labels") else []
        what = {"pairs": "loss of the chosen answers", "labels": "loss of all answers"}.get(
            held_out.kind, "held-out loss"
        )
        about: About = "help" if held_out.kind in ("answers", "texts") and not rewards else "beside"
        found += _losses(held_out, seen, what, 0, about)
    if general is not None:
        found += _forgetting(general, seen)
    return [figure for figure in found if figure.values]


def texts_reference(held_out: HeldOut, number: int) -> str:
    """A row's own answer, as answers are compared: without its thought."""
    question = held_out.questions[number]
    content = held_out.marks.split(question.text, question.reference).content if held_out.marks else question.reference
    return content.strip()


def _losses(held_out: HeldOut, seen: Mapping[str, Seen], name: str, side: int, about: About) -> list[Figure]:
    tokens = [float(sum(part.learnt for part in row[side])) for row in held_out.sides]
    values = {
        subject: [-row[side] / count for row, count in zip(one.log_probabilities, tokens)]
        for subject, one in seen.items()
        if one.log_probabilities
    }
    return [Figure(name, "nats a token", False, about, tokens, values, perplexity=True)]


def _right(told: Mapping[str, list[str]], references: list[str], about: About) -> list[Figure]:
    """Only where most rows have an answer that can be right; a few short ones among long ones are no examination."""
    places = [place for place, reference in enumerate(references) if texts.can_be_right(reference)]
    if 2 * len(places) < len(references) or not places:
        return []
    values = {
        name: [float(texts.is_right(answers[place], references[place])) for place in places]
        for name, answers in told.items()
    }
    return [Figure("right answers", "share", True, about, [1.0] * len(places), values, share=True)]


def _calls(told: Mapping[str, list[str]], held_out: HeldOut, references: list[str]) -> list[Figure]:
    """Of questions that bring functions: whether the calls are the row's own, or none where it has none."""
    places = [place for place, question in enumerate(held_out.questions) if question.tools]
    if not any(texts.same_calls("", references[place]) is False for place in places):
        return []
    values = {
        name: [float(texts.same_calls(answers[place], references[place])) for place in places]
        for name, answers in told.items()
    }
    return [Figure("right calls", "share", True, "help", [1.0] * len(places), values, share=True)]


def _near(told: Mapping[str, list[str]], references: list[str], about: About) -> list[Figure]:
    scores: tuple[tuple[str, Callable[[str, str], float], About], ...] = (
        ("ROUGE-L", texts.rouge_l, about), ("chrF", texts.chrf, "beside"), ("BLEU", texts.bleu, "beside"),
    )  # fmt: skip
    return [
        Figure(
            name, "0 to 1", True, counts, [1.0] * len(references),
            {subject: [score(*pair) for pair in zip(answers, references)] for subject, answers in told.items()},
        )
        for name, score, counts in scores
    ]  # fmt: skip


def _forgetting(general: General, seen: Mapping[str, Seen]) -> list[Figure]:
    tokens = [float(one.positions) for one in general.paragraphs]
    read = {name: one for name, one in seen.items() if one.paragraphs}
    losses = {name: [-nats / count for nats, count in zip(one.paragraphs, tokens)] for name, one in read.items()}
    right = {name: _chosen(general, one.choices) for name, one in read.items()}
    return [
        Figure("loss on general text", "nats a token", False, "forgetting", tokens, losses, perplexity=True),
        Figure("general questions", "share", True, "forgetting", [1.0] * len(general.choices), right, share=True),
    ]


def _chosen(general: General, choices: Sequence[Sequence[float]]) -> list[float]:
    """1 where the right choice is the likeliest by its characters: a long one is not less likely for its length."""
    lengths, found = iter(general.characters), []
    for question in choices:
        likely = [nats / next(lengths) for nats in question]
        # A tie, or no number at all, is not right.
        found.append(float(all(likely[0] > other for other in likely[1:])))
    return found
