"""Adapter strength of a served model, from the twenty likeliest tokens that Ollama tells of each position.

`toolkit.parity.strength` compares whole vocabularies; a server tells 20 log-probabilities. Over those whose text belongs to
exactly one token (S), p being the tuned model's probabilities renormalised over S, and both changes centred under p,

    strength = sum_positions E_p[d_t d_e] / sum_positions E_p[d_t ** 2],   d_t = tuned - base,   d_e = served - base,

is the same slope, seen through a window. A position counts when the server has read exactly the golden's tokens before it: along
its own greedy answer as long as that is the golden one, and beyond it by asking for one token after the golden text so far.

A model's own answers follow the goldens where it agrees with them, so these positions alone flatter it. The others are asked
in rounds, drawn from all goldens alike; each of them then stands for its share of those that were not asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.errors import DataError, ExternalToolError, ToolkitError
from toolkit.ollama.asked import count_whole_prompts
from toolkit.ollama.client import Client
from toolkit.ollama.own_model import Vocabulary, as_shown, begun
from toolkit.ollama.pictures import NONE, Pictures, pictures_of
from toolkit.ollama.served import GREEDY
from toolkit.parity.certificate import Check, Measure, within
from toolkit.parity.checks.strength import WHOLE_HIGH, WHOLE_LOW, strength_verdict, texts_needed, undecided
from toolkit.parity.limits import Limits
from toolkit.parity.strength import SEED, Strength, moments, strength
from toolkit.run.artifacts import read_jsonl

TOLD = 20
"""Most that Ollama tells (server/routes.go refuses more)."""
ROUND = 60
"""Single tokens that are asked for before the interval is looked at again."""
MOST_FORCED = 600
"""Ten rounds. A lost, halved or whole adapter was told by the first (docs/ollama.md); each request reads a prompt."""


@dataclass(frozen=True)
class ServedStrength:
    """The slope with its interval, and what it rests on."""

    strength: Strength | None
    """None: the tuning changed nothing that the window shows, or no more than rounding does."""
    positions: int
    asked: int
    """Requests that were made."""
    window: float
    """Mean probability (tuned model) of the tokens that could be compared."""
    skipped: int
    """Positions where the server read other tokens than the golden's, told fewer than two that can be told apart, or ended."""
    left: int
    """Positions that were neither on the server's own way nor asked for."""


def served_strength(
    client: Client,
    model: str,
    golden: Path,
    vocabulary: Vocabulary,
    most_forced: int = MOST_FORCED,
    decided: Callable[[Strength], bool] = lambda _: False,
    block: str = "",
) -> ServedStrength:
    """Measure the adapter in what a server answers.

    Args:
        golden: the golden stage's folder: golden.jsonl, tuned.npy, base.npy.
        vocabulary: of the served GGUF.
        most_forced: requests for single tokens at most, where the server's greedy answer leaves the golden one.
        decided: whether an interval is narrow enough to stop asking.
        block: what the training template writes for a picture.

    Raises:
        DataError: the goldens are damaged, or of another vocabulary.
        ExternalToolError: the server gives no log-probabilities.
    """
    rows = read_jsonl(golden / "golden.jsonl")
    try:
        tuned, base = (np.load(golden / f"{name}.npy", mmap_mode="r") for name in ("tuned", "base"))
    except (OSError, ValueError) as error:
        raise DataError(f"{golden} has no reference logits: {error}", "Run the golden stage again.") from error
    if tuned.shape[1] != vocabulary.size:
        raise DataError(
            f"the served model has {vocabulary.size} tokens, the goldens have {tuned.shape[1]}: nothing can be compared",
            "Serve the file that was made of this adapter.",
        )
    seen = {int(row["first_row"]): pictures_of(row, golden, block) for row in rows if row.get("pictures")}
    window = _Window(client, model, vocabulary, tuned, base, seen)
    beyond = [place for row in rows for place in window.follow(row)]
    # In any order, so that each round is spread over all goldens; the same order each time.
    waiting = [beyond[i] for i in np.random.default_rng(SEED).permutation(len(beyond))]
    forced = _Window(client, model, vocabulary, tuned, base, seen)
    found = _slope(window, forced, len(beyond))
    while waiting and forced.asked < most_forced and not (forced.asked and found is not None and decided(found)):
        size = min(ROUND, most_forced - forced.asked)
        # Neighbours one after the other: the server keeps what it has read.
        for row, at in sorted(waiting[:size], key=lambda place: (place[0]["first_row"], place[1])):
            forced.force(row, at)
        waiting = waiting[size:]
        found = _slope(window, forced, len(beyond))
    covered = window.covered + forced.covered
    return ServedStrength(
        found, len(covered), window.asked + forced.asked, float(np.mean(covered)) if covered else 0.0,
        window.skipped + forced.skipped, len(waiting),
    )  # fmt: skip


def served_strength_check(
    client: Client, model: str, golden: Path, vocabulary: Vocabulary, limits: Limits, whole: bool, block: str = ""
) -> Check:
    """Is the adapter there, whole, once, in what a server answers?

    Args:
        whole: whether the served file's weights show it whole; see `toolkit.parity.checks.strength.WHOLE_LOW`.
    """

    low, high = (WHOLE_LOW, WHOLE_HIGH) if whole else (limits.strength_low, limits.strength_high)

    def needed(found: Strength) -> int:
        """Goldens that would about decide; 0: decided, or none would."""
        open_still = strength_verdict(found, limits, whole) == "inconclusive"
        return texts_needed(found, limits, round(found.texts), low, high) if open_still else 0

    try:
        found = served_strength(
            client, model, golden, vocabulary, decided=lambda so_far: not needed(so_far), block=block
        )
    except ToolkitError as error:
        return Check(name="strength", verdict="inconclusive", message=error.message)
    value = found.strength
    if value is None:
        return Check(
            name="strength",
            verdict="inconclusive",
            message="the tuning changed nothing that the server shows, or no more than rounding does",
        )
    verdict = strength_verdict(value, limits, whole)
    measures = [
        Measure(
            name="strength", value=value.value, low=value.low, high=value.high, limit=low, floor=1.0, verdict=verdict
        ),
        Measure(name="strength low", value=value.low, limit=low),
        Measure(name="strength high", value=value.high, limit=high),
        Measure(name="positions", value=found.positions),
        Measure(name="requests", value=found.asked),
        Measure(name="positions that could not be compared", value=found.skipped),
        Measure(name="probability in the 20 tokens told", value=found.window),
    ]
    said = f"{within(value.value, value.low, value.high, (low, high))}, over {found.positions} positions"
    if whole:
        said += ", since the weights show the adapter whole, and rounding moves the answers"
    if verdict == "inconclusive":
        said += f"; {undecided(needed(value), round(value.texts))}"
    return Check(name="strength", verdict=verdict, message=said, measures=measures)


def _slope(window: _Window, forced: _Window, beyond: int) -> Strength | None:
    share = beyond / len(forced.alone) if forced.alone else 1.0
    together = [*window.together, *(share * moment for moment in forced.together)]
    alone = [*window.alone, *(share * moment for moment in forced.alone)]
    return strength(np.array(together), np.array(alone), np.array([*window.text, *forced.text]))


def _can_be_sent(text: bytes) -> bool:
    """Not where it ends in the middle of a character: what an app sends is text."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


Place = tuple[dict[str, Any], int]
"""A golden, and the index of a token of its answer."""


class _Window:
    def __init__(
        self, client: Client, model: str, vocabulary: Vocabulary, tuned: np.ndarray, base: np.ndarray,
        seen: dict[int, Pictures],
    ) -> None:  # fmt: skip
        self.client, self.model, self.vocabulary, self.tuned, self.base = client, model, vocabulary, tuned, base
        self.seen = seen
        self.asked = self.skipped = 0
        self.together: list[float] = []
        self.alone: list[float] = []
        self.covered: list[float] = []
        self.text: list[int] = []
        """The golden of each, by its first row."""

    def follow(self, row: dict[str, Any]) -> list[Place]:
        """Compare along the server's own answer; the places of the golden one that it does not reach, and can be asked for."""
        ids = [int(i) for i in row["completion_ids"]]
        reached = self._along(row, ids, int(row["first_row"]))
        beyond, text = [], b""
        for at, token in enumerate(ids):
            if at >= reached and _can_be_sent(text):
                beyond.append((row, at))
            text += self.vocabulary.piece(token, special=True)
        self.skipped += len(ids) - reached - len(beyond)
        return beyond

    def _along(self, row: dict[str, Any], ids: list[int], first: int) -> int:
        """Positions of the server's own greedy answer while it is the golden one; gives how many."""
        at = 0
        for entry in self._ask(row, "", len(row["prompt_ids"]), len(ids)) or []:
            after, text = at, b""
            while after < len(ids) and (after == at or begun(text)):
                text += self.vocabulary.piece(ids[after])
                after += 1
            shown = entry["token"] == as_shown(text)
            told = entry.get("top_logprobs") or [{}]
            if shown and after - at == 1 and told[0].get("token") == entry["token"]:
                self._compare(entry, first, at)
                at += 1
                if "\ufffd" in entry["token"]:
                    return at
            elif shown and after - at > 1:
                # The golden character of several tokens: it speaks of the last one's place, and nothing of the others.
                self._compare(entry, first, after - 1)
                self.skipped += after - 1 - at
                at = after
            else:  # another text: behind tokens that a server does not show, it would speak of a later place
                return at
        return at

    def force(self, row: dict[str, Any], at: int) -> None:
        """Compare at one place, by asking for the token after the golden text before it."""
        before = [int(i) for i in row["completion_ids"][:at]]
        text = b"".join(self.vocabulary.piece(token, special=True) for token in before)
        answer = self._ask(row, text.decode(), len(row["prompt_ids"]) + at, 1)
        if answer:
            self._compare(answer[0], int(row["first_row"]), at)
        elif answer is not None:  # it ends here, or begins a character: nothing is told of that
            self.skipped += 1

    def _ask(self, row: dict[str, Any], behind: str, tokens: int, predict: int) -> list[dict[str, Any]] | None:
        """The positions of what comes behind a golden's prompt and text; None when the server read another number of tokens."""
        self.asked += 1
        pictures = self.seen.get(int(row["first_row"]), NONE)
        text = pictures.marked(row["prompt_text"]) + behind
        bos = self.vocabulary.bos_text if self.vocabulary.adds_bos else ""
        count_whole_prompts(self.client, self.model)
        # Stop words of the model would hold text back.
        answer = self.client.generate(
            self.model, text.removeprefix(bos) if bos else text, raw=True, logprobs=True, top_logprobs=TOLD,
            options={**GREEDY, "num_predict": predict, "stop": []}, **pictures.sent,
        )  # fmt: skip
        if answer.get("prompt_eval_count") != tokens:
            self.skipped += 1
            return None
        found: list[dict[str, Any]] = answer.get("logprobs") or []
        if not found and answer.get("response"):
            raise ExternalToolError(
                f"the Ollama at {self.client.address} gives no log-probabilities", "Update it, or: make ollama"
            )
        return found

    def _compare(self, entry: dict[str, Any], first: int, at: int) -> None:
        told = [(str(one["token"]), float(one["logprob"])) for one in entry.get("top_logprobs") or []]
        token_of = self.vocabulary.token_of
        served = {token_of[text]: logprob for text, logprob in told if text in token_of}
        if len(served) < 2:
            self.skipped += 1
            return
        ids = list(served)
        place = first + at
        tuned = torch.from_numpy(self.tuned[place].astype(np.float64))
        base = torch.from_numpy(self.base[place][ids].astype(np.float64))
        self.covered.append(float(tuned.softmax(-1)[ids].sum()))
        export = torch.tensor([[served[i] for i in ids]], dtype=torch.float64)
        together, alone = moments(tuned[ids][None], base[None], export)
        self.together.append(float(together[0]))
        self.alone.append(float(alone[0]))
        self.text.append(first)
