"""What a server does with a model: the prompts that it renders and the answers that it gives, against the model itself."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.artifacts import read_jsonl
from toolkit.chat_template import asks_for_the_day, on_day, render_trained
from toolkit.errors import DataError, ExternalToolError, ParityError
from toolkit.ollama.asked import Endpoint
from toolkit.ollama.asked import answer as ask
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import first_difference
from toolkit.ollama.own_model import OwnModel, Row
from toolkit.ollama.syntax import Message

LARGEST_MEAN = 0.12
LARGEST_FLIP = 1.0
"""Limits in nats. With the server's own settings (F16 cache, flash attention) on the same kind of processor the measured
difference is 2e-4; between sound engines (with and without flash attention, SmolLM2-135M Q4_K_M) it is 0.06 in the mean and
0.5 at a near-tie. Twice that leaves room for a graphics card. Prompts and their token ids are judged exactly, so a
wrong template or a doubled BOS does not have to show here."""

_LOWEST = -7.0  # alternatives less likely than e^-7 are noise in every engine
_CANDIDATES = 40
GREEDY = {
    "temperature": 0.0, "seed": 1, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "top_k": 0, "top_p": 1.0, "min_p": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A golden prompt, as the server is asked it and as it must become tokens."""

    messages: list[dict[str, str]]
    """Without the system turn, which the served model brings itself."""
    prompt_text: str
    prompt_ids: list[int]


@dataclass(frozen=True)
class Served:
    """A model on the server, and the stop words it was given."""

    model: str
    stops: tuple[str, ...] = ()


@dataclass
class Agreement:
    """How far the served answers are from llama.cpp's own, in nats over all compared tokens."""

    answers: int = 0
    tokens: int = 0
    largest: float = 0.0
    total: float = 0.0
    largest_flip: float = 0.0
    """Largest lead of llama.cpp's own choice over the token that the server chose."""

    @property
    def mean(self) -> float:
        """Mean absolute difference of a log-probability."""
        return self.total / max(self.tokens, 1)


def read_questions(golden: Path, system: str) -> list[Question]:
    """The rows of golden.jsonl, without the system turn that the served model brings itself."""
    questions = []
    for number, row in enumerate(read_jsonl(golden), 1):
        messages = row["messages"]
        if messages and messages[0]["role"] == "system":
            if messages[0]["content"] != system:
                raise ParityError(
                    f"{golden}:{number}: the system text of the goldens is not the recipe's",
                    "Run the golden stage again.",
                )
            messages = messages[1:]
        questions.append(Question(messages, row["prompt_text"], [int(i) for i in row["prompt_ids"]]))
    return questions


def as_asked_today(
    questions: list[Question], messages: Sequence[Message], system: str, template: str, own: OwnModel, day: str
) -> list[Question]:
    """The questions as the server must make them: with the Modelfile's turns (MESSAGE), and today's date where the template writes it.

    Args:
        template: of the GGUF; it has to make the golden prompts as they were recorded.
        day: on which they were recorded; see `toolkit.chat_template.on_day`.

    Raises:
        ParityError: the GGUF's template does not even make the golden prompts.
    """
    if not messages and not asks_for_the_day(template):
        return questions
    before = [{"role": "system", "content": system}] if system else []
    between = [{"role": message.role, "content": message.content} for message in messages]

    def rendered(turns: list[dict[str, str]], **fields: Any) -> str | None:
        return render_trained(template, turns, own.bos_text, own.eos_text, **fields)

    made = []
    for question in questions:
        if rendered([*before, *question.messages], **on_day(day)) != question.prompt_text:
            raise ParityError(
                "the template in the GGUF does not make the golden prompts", "Run the convert stage again."
            )
        text = rendered([*before, *between, *question.messages])
        if text is None:
            raise DataError(
                "the chat template refuses the Modelfile's MESSAGE turns", "They must alternate user and assistant."
            )
        made.append(Question(question.messages, text, own.tokenize(_without_bos(text, own))))
    return made


def _without_bos(text: str, own: OwnModel) -> str:
    return text.removeprefix(own.bos_text) if own.adds_bos and own.bos_text else text


def check_rendering(
    client: Client, model: str, questions: list[Question], own: OwnModel, tick: Callable[[], None]
) -> int:
    """Have the server render every question; the bytes must be those of the training template.

    A BOS that the tokenizer adds by itself may be missing from the text, as llama.cpp leaves it to the tokenizer.

    Returns:
        How many prompts were equal: all.

    Raises:
        ParityError: the first that differs, with both texts from where they part.
    """
    for number, question in enumerate(questions, 1):
        found = client.rendered(model, question.messages)
        if found not in {question.prompt_text, _without_bos(question.prompt_text, own)}:
            raise ParityError(
                f"Ollama renders golden prompt {number} otherwise than the training template, "
                f"{first_difference(question.prompt_text, found)}",
                "Ollama took the template in the GGUF for another, or system text and messages differ. Nothing was published.",
            )
        tick()
    return len(questions)


def check_answers(
    client: Client,
    served: Served,
    questions: list[Question],
    own: OwnModel,
    limit: int,
    tick: Callable[[], None],
    endpoint: Endpoint = "/api/chat",
) -> Agreement:
    """Ask the server every question (greedy) and follow each answer token by token with llama.cpp on the same file.

    Args:
        limit: tokens of an answer at most.
        endpoint: the address that is asked.

    Raises:
        ParityError: a prompt has other tokens, an answer leaves llama.cpp's by more than a near-tie, or the difference
            of the log-probabilities is above the served floor.
    """
    agreement = Agreement()
    for number, question in enumerate(questions, 1):
        where = f"golden question {number}" + ("" if endpoint == "/api/chat" else f" at {endpoint}")
        answer = ask(client, endpoint, served.model, question.messages, GREEDY, limit)
        read, wanted = answer.get("prompt_eval_count"), len(question.prompt_ids)
        if read != wanted:
            raise ParityError(
                f"{where}: the served prompt has {read} tokens, the golden one {wanted}",
                "The server adds or loses a special token (BOS), or cut the prompt. Nothing was published.",
            )
        if not answer.get("logprobs") and answer.get("eval_count", 0) > 1:
            raise ExternalToolError(
                f"the Ollama at {client.address} gives no log-probabilities", "Update it, or: make ollama"
            )
        _Follower(own, served.stops, agreement, where).follow(answer, question)
        agreement.answers += 1
        tick()
    if agreement.mean > LARGEST_MEAN:
        raise ParityError(
            f"the served log-probabilities are {agreement.mean:.3f} nats from llama.cpp's on the same file in the mean "
            f"(limit {LARGEST_MEAN}), at most {agreement.largest:.3f}",
            "Look at the server's settings: OLLAMA_KV_CACHE_TYPE should be f16. Nothing was published.",
        )
    return agreement


@dataclass
class _Follower:
    """Follows one served answer with the model in this process."""

    own: OwnModel
    stops: tuple[str, ...]
    agreement: Agreement
    where: str

    def follow(self, answer: dict[str, Any], question: Question) -> None:
        """Raises ParityError where the answer leaves llama.cpp's by more than a near-tie."""
        own = self.own
        row = own.start(question.prompt_ids)
        pending = b""  # bytes of tokens that the server has not shown yet
        for entry in answer.get("logprobs") or []:
            shown = str(entry["token"]).encode()
            whole = False
            while not whole:
                token = self._token_for(shown, pending, row)
                if token is None:
                    choice = own.piece(int(row.argmax())).decode(errors="replace")
                    raise ParityError(
                        f"{self.where}: the server says {entry['token']!r} where llama.cpp says {choice!r}, and the "
                        "server's is not among its choices",
                        "The served model is not this GGUF, or its context was cut. Nothing was published.",
                    )
                self._flip(float(row.max() - row[token]), self.where)
                pending += own.piece(token)
                whole = not shown or pending == shown
                if whole:
                    self._compare(entry, token, row)
                    pending = pending if not shown else b""
                row = own.step([token])
        if answer.get("done_reason") == "stop" and not pending:
            lead = float(row.max() - max(row[i] for i in own.end_ids))
            self._flip(lead, f"{self.where}: the server stopped where llama.cpp goes on")

    def _token_for(self, shown: bytes, pending: bytes, row: Row) -> int | None:
        """The likeliest token that fits what the server shows.

        It shows several tokens as one when it had to wait: for the rest of a character, or because the text could have
        been the beginning of a stop word. Only the last of them has its log-probability told.
        """
        if not shown:
            return int(row.argmax())
        likeliest = np.argpartition(-row, _CANDIDATES)[:_CANDIDATES]
        for token in likeliest[np.argsort(-row[likeliest])]:
            text = pending + self.own.piece(int(token))
            if text == shown or (text != pending and shown.startswith(text) and self._held(text)):
                return int(token)
        return None

    def _held(self, text: bytes) -> bool:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(text)
        stops = [stop.encode() for stop in self.stops]
        begun = any(text.endswith(stop[:length]) for stop in stops for length in range(1, len(stop)))
        return begun or bool(decoder.getstate()[0])

    def _flip(self, lead: float, what: str) -> None:
        self.agreement.largest_flip = max(self.agreement.largest_flip, lead)
        if lead > LARGEST_FLIP:
            raise ParityError(
                f"{what}: its choice is {lead:.2f} nats less likely than llama.cpp's own (limit {LARGEST_FLIP})",
                "A stop word cuts the answer, or the server computes something else. Nothing was published.",
            )

    def _compare(self, entry: dict[str, Any], token: int, row: Row) -> None:
        differences = [abs(float(row[token]) - float(entry["logprob"]))]
        likely = [int(i) for i in np.flatnonzero(row > _LOWEST)]
        texts = Counter(own_text := [self.own.piece(i) for i in likely])
        ids = dict(zip(own_text, likely))
        alternatives = entry.get("top_logprobs") or []
        served = Counter(str(top["token"]).encode() for top in alternatives)
        for top in alternatives:
            # Texts are all that the server tells; one that several tokens share says nothing.
            text = str(top["token"]).encode()
            if text and texts[text] == 1 and served[text] == 1:
                differences.append(abs(float(row[ids[text]]) - float(top["logprob"])))
        self.agreement.tokens += 1
        self.agreement.total += differences[0]
        self.agreement.largest = max(self.agreement.largest, *differences)
