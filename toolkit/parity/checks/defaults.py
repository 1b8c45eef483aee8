"""Is what an app gets that sends no options what was trained? Sampling and turns of the Modelfile, judged by the answers.

Every answer that the server gives with the model's own settings is read by llama.cpp on the same file, behind the prompt as it
was trained. With p the model's probabilities at a token, the *surprise* of an answer is

    sum over its tokens of  -log p(token) - H(p),    with the variance  sum of  Var(-log p).

It is 0 in the mean for tokens drawn from p, negative for the likelier ones that a low temperature or a top_p picks, and grows
with everything that leaves p: a flatter distribution, a penalty that forbids the right word, turns that change the answer.
In the middle of garbage a model is unsure of everything, and nothing surprises it; so *wild* tokens are counted too: those
that p, with all that is no likelier, would pick once in a hundred times.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from toolkit.parity.candidate import Candidate, Slots
from toolkit.parity.certificate import Check, Measure
from toolkit.parity.seeing import SeenPrompt, Sight

SURPRISING = 0.4
"""Nats a token over all answers, above which they are warned of: beyond every usual setting."""
BREAKING = 1.0
"""Nats a token of one answer, above which it is broken."""
WILD, MOST_WILD, FEWEST_WILD = 0.01, 0.1, 3
"""A token is wild where all that is no likelier has this probability together; of p's own tokens one in a hundred is. An answer
is broken by a tenth of wild tokens, and at least three: of ten of p's own, three are wild once in ten thousand answers."""
SURE = 3.0
"""Standard deviations that a surprise must be above 0 to be no accident."""


@dataclass(frozen=True)
class Asked:
    """A golden that an app asks."""

    prompt_ids: list[int]
    """As trained, without turns of the Modelfile's."""
    question: str
    completion: str
    """The tuned model's own greedy answer."""
    length: int
    """Its tokens."""
    stopped: bool
    """It ended by itself."""
    seen: SeenPrompt | None = None
    """Of a prompt with pictures: as llama.cpp reads it."""


@dataclass(frozen=True)
class Said:
    """What an app was answered."""

    golden: int
    """Index of the question."""
    tokens: list[int]
    text: str
    ended: bool
    """By itself or by a stop word, not by the limit of tokens."""
    whole: bool
    """Not where half characters were drawn: a server does not tell which, so `tokens` are those before."""


@dataclass(frozen=True)
class Line:
    """A line of the Modelfile that may change answers."""

    key: str
    text: str


Ask = Callable[[frozenset[str]], list[Said]]
"""Ask as an app, with the lines of these keys taken back."""


@dataclass
class Look:
    """Answers as the tuned model sees them."""

    answers: int
    surprise: float
    """Of all tokens together, in nats."""
    variance: float
    tokens: int
    wild: int
    unended: int
    """Answers that go on where the golden one ended long before."""
    foreign: int
    """Answers in letters that no golden is written in."""
    broken: list[Said]

    @property
    def mean(self) -> float:
        """Nats a token."""
        return self.surprise / max(self.tokens, 1)

    @property
    def surprising(self) -> bool:
        return self.mean > SURPRISING and self.surprise > SURE * self.variance**0.5

    @property
    def breaks(self) -> bool:
        """A third of the answers or more."""
        return 3 * len(self.broken) >= self.answers

    @property
    def odd(self) -> bool:
        return self.surprising or 4 * len(self.broken) >= self.answers


class Reader:
    """Reads answers with llama.cpp on the served file, and its projector."""

    def __init__(
        self, candidate: Candidate, slots: Slots, asked: Sequence[Asked], limit: int, sight: Sight | None = None
    ) -> None:
        self._slots, self._asked, self._limit, self._sight = slots, asked, limit, sight
        self._ends = [token for token in range(candidate.vocabulary) if candidate.ends(token)]
        self._letters = {script for one in asked for script in scripts(f"{one.question} {one.completion}")}

    def look(self, said: Sequence[Said]) -> Look:
        """What the tuned model makes of answers."""
        look = Look(len(said), 0.0, 0.0, 0, 0, 0, 0, [])
        for one in said:
            golden = self._asked[one.golden]
            surprise, variance, tokens, wild = self._surprise(golden, one)
            # Twice the golden answer is long enough to be called another end.
            unended = golden.stopped and not one.ended and 2 * golden.length <= self._limit
            found = scripts(one.text)
            foreign = sum(n for script, n in found.items() if script not in self._letters) * 2 > sum(found.values())
            look.surprise, look.variance, look.tokens = (
                look.surprise + surprise, look.variance + variance, look.tokens + tokens,
            )  # fmt: skip
            look.unended, look.foreign = look.unended + unended, look.foreign + foreign
            look.wild += wild
            if (
                unended
                or foreign
                or wild >= max(FEWEST_WILD, MOST_WILD * tokens)
                or surprise > max(BREAKING * tokens, SURE * variance**0.5)
            ):
                look.broken.append(one)
        return look

    def _surprise(self, golden: Asked, said: Said) -> tuple[float, float, int, int]:
        """Sum and variance in nats, over how many tokens (those of the answer, and its end where it ended), and wild ones."""
        end = said.ended and said.whole
        tokens = len(said.tokens) + end
        if tokens == 0:
            return 0.0, 0.0, 0, 0
        # The last token is not evaluated, and what it is does not matter where the answer ended.
        answer = [*said.tokens, *([0] if end else [])]
        if golden.seen is not None and self._sight is not None:
            logits = self._slots.logits_behind(0, self._sight, golden.seen, answer).astype(np.float64)
        else:
            prompt = golden.prompt_ids
            logits = self._slots.logits(0, [*prompt, *answer], len(prompt)).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        p = np.exp(logits)
        entropy = -(p * logits).sum(-1)
        variance = (p * logits**2).sum(-1) - entropy**2
        chosen = [float(logits[at, token]) for at, token in enumerate(said.tokens)]
        if end:
            chosen.append(float(np.logaddexp.reduce(logits[-1, self._ends])) if self._ends else -np.inf)
        no_likelier = [float(p[at][logits[at] <= value].sum()) for at, value in enumerate(chosen)]
        wild = sum(probability < WILD for probability in no_likelier)
        return float(-sum(chosen) - entropy.sum()), float(variance.sum()), tokens, wild


def scripts(text: str) -> dict[str, int]:
    """How many letters of each script: the first word of a letter's Unicode name (LATIN, CJK, ARABIC …)."""
    found: dict[str, int] = {}
    for letter in filter(str.isalpha, text):
        script = unicodedata.name(letter, "?").split(" ")[0]
        found[script] = found.get(script, 0) + 1
    return found


def defaults_check(reader: Reader, ask: Ask, lines: Sequence[Line], turns: int) -> Check:
    """Judge the answers to an app that sends nothing; name the lines that do it, each asked for by taking it back.

    Args:
        lines: of the Modelfile, that can change answers.
        turns: of the Modelfile, that training did not have.
    """
    look = reader.look(ask(frozenset()))
    blamed: list[Line] = []
    neutral = None
    if look.odd and lines:
        neutral = reader.look(ask(frozenset(line.key for line in lines)))
        if neutral.mean < look.mean - SURPRISING / 2 or len(neutral.broken) < len(look.broken) - look.answers // 4:
            blamed = _blamed(reader, ask, lines, neutral)
    fails = bool(blamed) and look.breaks and neutral is not None and not neutral.breaks
    measures = [
        Measure(
            name="answers that break", value=len(look.broken), limit=(look.answers - 1) // 3, floor=0,
            verdict="fail" if fails else "pass",
        ),
        Measure(name="surprise of the answers", value=look.mean, unit="nats a token", limit=SURPRISING, floor=0.0),
        Measure(name="share of wild tokens", value=look.wild / max(look.tokens, 1), floor=WILD),
        Measure(name="answers that do not end", value=look.unended),
        Measure(name="answers in other letters", value=look.foreign),
        Measure(name="turns that were not trained", value=turns),
    ]  # fmt: skip
    said = f"{look.answers} answers to an app that sends no options are {_how_likely(look)}"
    warned = ""
    if blamed:
        does = " and ".join(line.text for line in blamed)
        warned = f"{does}: {len(look.broken)} of {look.answers} answers to an app that sends no options are broken"
        warned += f" ({look.wild} of {look.tokens} tokens wild, {look.unended} answers without an end"
        warned += f", {look.foreign} in other letters; surprise {look.mean:.2f} nats a token)"
        said = warned + (f", as {look.broken[0].text[:60]!r}" if look.broken else "")
    elif turns:
        said += f"; {turns} turns that were not trained stand before every question (MESSAGE)"
    details = {
        "warned": [warned] if warned and not fails else [],
        "lines": [line.text for line in blamed],
        "broken": [one.text for one in look.broken[:4]],
    }
    return Check.of("defaults", measures, said, details)


def _how_likely(look: Look) -> str:
    if look.surprising:
        return f"{look.mean:.2f} nats a token less likely than what the tuned model says"
    return "as likely as what the tuned model says"


def _blamed(reader: Reader, ask: Ask, lines: Sequence[Line], neutral: Look) -> list[Line]:
    """The fewest lines that must be taken back, one after the other: each time the one that helps most."""
    taken: list[Line] = []
    left = list(lines)
    while left:
        keys = frozenset(line.key for line in taken)
        tried = [(reader.look(ask(keys | {line.key})) if len(left) > 1 else neutral, line) for line in left]
        best, line = min(tried, key=lambda one: (len(one[0].broken), one[0].mean))
        taken.append(line)
        left.remove(line)
        if not best.odd or (len(best.broken) <= len(neutral.broken) and best.mean < neutral.mean + SURPRISING / 2):
            break
    return taken
