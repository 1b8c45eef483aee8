"""Where the addresses put a picture: answers are judged behind the prompt that is shown there, and another order is told.

`/api/chat` writes a turn's text, then its pictures; `/api/generate`, which `ollama run NAME "… ./photo.png"` asks, its pictures,
then the text (server/prompt.go, imageTaggedMessages); `/v1/chat/completions` makes a turn of each part
(openai/openai.go, FromChatRequest). Nothing in a file or a Modelfile changes that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.errors import ParityError
from toolkit.models.chat_template import render_trained
from toolkit.models.picture_block import with_pictures
from toolkit.ollama.asked import ENDPOINTS, Endpoint, request_fields
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import first_difference, opening, rendered_at
from toolkit.ollama.own_model import OwnModel
from toolkit.ollama.served import ELSEWHERE, Agreement, Question, Served, check_answers, start, without_bos
from toolkit.parity.certificate import Measure

Turns = list[dict[str, Any]]
LOOKED_AT = 12
"""Tokens of an answer over which the two orders are compared, at most."""
SHOWN = {
    "/api/generate": "the picture before the text",
    "/v1/chat/completions": "text and picture as two turns",
}


@dataclass(frozen=True)
class Completed:
    """How a served model completes a conversation before it is rendered."""

    template: str
    """Of the training."""
    system: str
    turns: Turns
    """MESSAGE turns of the Modelfile."""
    fields: Mapping[str, Any]
    """What the template was told in training."""


@dataclass(frozen=True)
class Order:
    """What an address does to the place of pictures."""

    endpoint: Endpoint
    asked: int
    """Questions that it was asked."""
    trained: bool
    """It shows them as in training."""
    divergence: float = 0.0
    """Mean KL of the trained order's next-token distribution to this one's, along its own greedy answers, in nats."""
    others: int = 0
    """Answers that are others than in the trained order, within these tokens."""
    refused: str = ""
    """Why it cannot be asked; empty: it can."""

    def told(self) -> str:
        """As a warning; empty where the order is that of the goldens, or changes no answer."""
        if self.trained or not (self.others or self.refused):
            return ""
        if self.refused:
            return f"{self.endpoint} shows {SHOWN[self.endpoint]}: {self.refused}"
        return (
            f"{self.endpoint} shows {SHOWN[self.endpoint]}: {self.others} of {self.asked} answers are others than at /api/chat "
            f"(KL {self.divergence:.2g} nats a token)"
        )


def check_pictures_elsewhere(
    client: Client, served: Served, questions: Sequence[Question], own: OwnModel, completed: Completed, limit: int,
    tick: Callable[[], None],
) -> tuple[Agreement, list[Order]]:  # fmt: skip
    """Ask some questions with pictures at the other addresses, and judge the answers behind the prompt that is shown there.

    Returns:
        How near the answers are to llama.cpp's own; and what each address does to the pictures' place.

    Raises:
        ParityError: an address shows another prompt than these, or answers as another model does.
    """
    agreement, orders = Agreement(), []
    for endpoint in ENDPOINTS[1:]:
        if endpoint == "/v1/chat/completions" and served.repeat_penalty != 1.0:
            continue  # a request cannot take it back there
        fits = [q for q in questions if q.pictures and _fits(q, endpoint)]
        pairs = [(question, shown_at(question, endpoint, own, completed)) for question in fits[:ELSEWHERE]]
        refused = any(shown is None for _, shown in pairs)
        told = "the training template refuses such turns, and the server answers with an error" if refused else ""
        there = [(question, shown) for question, shown in pairs if shown is not None]
        for _, shown in there:
            _require_prompt(client, served.model, shown, endpoint, own)
        agreement += check_answers(client, served, [shown for _, shown in there], own, limit, tick, endpoint)
        same = bool(there) and all(question.prompt_text == shown.prompt_text for question, shown in there)
        compared = [] if same else [_compared(own, question, shown, limit) for question, shown in there]
        orders.append(
            Order(
                endpoint, len(there), same and not refused, float(np.mean([kl for kl, _ in compared])) if compared else 0.0,
                sum(other for _, other in compared), told,
            )
        )  # fmt: skip
    return agreement, orders


def shown_at(question: Question, endpoint: Endpoint, own: OwnModel, completed: Completed) -> Question | None:
    """A question as the training template writes it in the order of an address; None: the template refuses."""
    between, before = completed.turns, opening(question.messages, completed.system)
    turns = [*before, *between, *(turn for one in question.messages for turn in _ordered(one, endpoint))]
    text = render_trained(completed.template, turns, own.bos_text, own.eos_text, None, **completed.fields)
    if text is None:
        return None
    pictures = question.pictures
    with own.sight.read(without_bos(text, own), pictures.block, pictures.bytes()) as prompt:
        return replace(question, prompt_text=text, seen_tokens=prompt.tokens)


def _ordered(turn: dict[str, Any], endpoint: Endpoint) -> Turns:
    if not isinstance(turn["content"], list):
        return [turn]
    if endpoint == "/api/generate":
        return [{**turn, "content": sorted(turn["content"], key=lambda part: part["type"] != "image")}]
    return [{**turn, "content": [part] if part["type"] == "image" else part["text"]} for part in turn["content"]]


def _fits(question: Question, endpoint: Endpoint) -> bool:
    """Not where /api/generate does more than put the picture first: with a system text of the question's own it changes the order
    of turns, and with "[img]" in a text it puts the picture there."""
    plain = len(question.messages) == 1 and "[img" not in question.prompt_text
    return (plain or endpoint != "/api/generate") and not isinstance(_request(question, endpoint), str)


def _request(question: Question, endpoint: Endpoint) -> dict[str, Any] | str:
    return request_fields(question.conversation(), endpoint)


def _require_prompt(client: Client, model: str, shown: Question, endpoint: Endpoint, own: OwnModel) -> None:
    request = _request(shown, endpoint)
    if isinstance(request, str):
        raise ParityError(request, "")
    found = with_pictures(rendered_at(client, model, endpoint, request), shown.pictures.block)
    if found not in {shown.prompt_text, without_bos(shown.prompt_text, own)}:
        raise ParityError(f"{endpoint}: {first_difference(shown.prompt_text, found)}", "")


def _compared(own: OwnModel, trained: Question, shown: Question, limit: int) -> tuple[float, bool]:
    """KL in nats a token along the trained order's greedy answer; whether the other order's answer is another."""
    row = start(own, trained)
    rows, tokens = [row], [int(row.argmax())]
    while len(tokens) < min(limit, LOOKED_AT) and tokens[-1] not in own.end_ids:
        row = own.step([tokens[-1]])
        rows.append(row)
        tokens.append(int(row.argmax()))
    divergences, other = [], False
    row = start(own, shown)
    for at, (before, token) in enumerate(zip(rows, tokens)):
        row = own.step([tokens[at - 1]]) if at else row
        divergences.append(float((np.exp(before) * (before - row)).sum()))
        other = other or int(row.argmax()) != token
    return float(np.mean(divergences)), other


def measures_of(orders: Sequence[Order]) -> list[Measure]:
    """For the certificate."""
    return [
        Measure(
            name=f"KL of the order of {order.endpoint} to the trained one", value=order.divergence, unit="nats a token"
        )
        for order in orders
        if order.asked
    ]
