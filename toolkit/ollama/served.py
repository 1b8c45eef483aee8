"""What a server does with a model: the prompts that it renders and the answers that it gives, against the model itself."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import ExternalToolError, ParityError
from toolkit.models.chat_template import NOTHING_TOLD, asks_for_the_day, on_day, render_trained
from toolkit.models.picture_block import with_pictures
from toolkit.models.seen import with_files
from toolkit.models.tools import Tools
from toolkit.ollama.asked import ENDPOINTS, Conversation, Endpoint, raw_answer, request_fields
from toolkit.ollama.asked import answer as ask
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import first_difference, opening, rendered_at
from toolkit.ollama.own_model import OwnModel, Row, Vocabulary, as_shown, begun
from toolkit.ollama.pictures import NONE, Pictures, pictures_of
from toolkit.ollama.syntax import Message
from toolkit.run.artifacts import read_jsonl

LARGEST_FLIP = 1.0
_MEANS = {"F32": (0.006, 0.015), "F16": (0.006, 0.015), "BF16": (0.03, 0.06), "Q8_0": (0.09, 0.2)}
_OTHER_MEANS = (0.12, 0.3)
"""Limits in nats: a lead; then the mean difference of chosen tokens, and of all that is told, by file type.

With the server's own settings (F16 cache, flash attention) on the same kind of processor every type differs by 2e-4. Means
between sound engines (without flash attention), and of caches that were rounded, over 8 questions to SmolLM2-135M:

              without flash attention    q8_0 cache       q4_0 cache
    F16            0.0016  0.0033      0.012  0.027     0.18  0.39
    BF16           0.0080  0.019       0.014  0.034     0.18  0.39
    Q8_0           0.041   0.095       0.045  0.10      0.23  0.47
    Q4_K_M         0.060   0.13        0.064  0.14      0.15  0.40

Limits leave twice to four times the distance of sound engines (a graphics card was not measured), and are below what they are
there to catch: any rounded cache at 16 bits, a 4-bit one everywhere. A near-tie was seen to flip by 0.5. Prompts and
their token ids are judged exactly, so a wrong template or a doubled BOS does not have to show here."""
ELSEWHERE = 2
"""Questions that are answered at the other addresses too: these have been shown to render alike."""


def largest_means(file_type: str) -> tuple[float, float]:
    """What the mean difference of chosen tokens, and of all that is told, may be, in nats."""
    return _MEANS.get(file_type, _OTHER_MEANS)


_LOWEST = -7.0  # alternatives less likely than e^-7 are noise in every engine
_CANDIDATES = 40
GREEDY = {
    "temperature": 0.0, "seed": 1, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "top_k": 0, "top_p": 1.0, "min_p": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A golden prompt, as the server is asked it and as it must become tokens."""

    messages: list[dict[str, Any]]
    """Without the recipe's system turn, which the served model brings itself; one of its own stays, and is used instead."""
    prompt_text: str
    prompt_ids: list[int]
    tools: Tools | None = None
    """Functions that the app sends along."""
    pictures: Pictures = NONE
    seen_tokens: int = 0
    """Tokens of a prompt with pictures; `prompt_ids` are then those of its text alone, or the golden's."""

    @property
    def tokens(self) -> int:
        """Of the prompt, its pictures included."""
        return self.seen_tokens or len(self.prompt_ids)

    @property
    def calls(self) -> bool:
        """Whether it is about functions: a server may then take parts of the answer out of its text."""
        return bool(self.tools) or any(turn.get("tool_calls") for turn in self.messages)

    def conversation(self, name: str = "") -> Conversation:
        """As it is sent."""
        return Conversation(name, self.messages, self.tools)


@dataclass(frozen=True)
class Served:
    """A model on the server, and the stop words it was given."""

    model: str
    stops: tuple[str, ...] = ()
    repeat_penalty: float = 1.0
    """Its own, which counts where a request cannot say another."""


@dataclass
class Agreement:
    """How far the served answers are from llama.cpp's own, in nats."""

    answers: int = 0
    tokens: int = 0
    """That the server chose."""
    total: float = 0.0
    told: int = 0
    """Log-probabilities of those tokens, and of the others that the server tells beside each."""
    told_total: float = 0.0
    largest: float = 0.0
    largest_flip: float = 0.0
    """Largest lead of llama.cpp's own choice over the token that the server chose."""
    texts: list[str] = field(default_factory=list)
    """The answers at `/api/chat`, in the order of the questions; where thoughts or calls are in play, as the model writes."""

    @property
    def mean(self) -> float:
        """Mean absolute difference, over chosen tokens."""
        return self.total / max(self.tokens, 1)

    @property
    def mean_told(self) -> float:
        """Mean absolute difference, over everything that was told."""
        return self.told_total / max(self.told, 1)

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.answers + other.answers, self.tokens + other.tokens, self.total + other.total, self.told + other.told,
            self.told_total + other.told_total, max(self.largest, other.largest), max(self.largest_flip, other.largest_flip),
            [*self.texts, *other.texts],
        )  # fmt: skip


def read_questions(golden: Path, system: str, block: str = "") -> list[Question]:
    """The rows of golden.jsonl, without the system turn that the served model brings itself.

    Args:
        block: what the training template writes for a picture.
    """
    questions = []
    for row in read_jsonl(golden):
        messages = row["messages"]
        if messages and messages[0] == {"role": "system", "content": system}:
            messages = messages[1:]
        ids = [int(i) for i in row["prompt_ids"]]
        pictures = pictures_of(row, golden.parent, block)
        messages = with_files(messages, pictures.files)
        seen = len(ids) if pictures else 0
        questions.append(Question(messages, row["prompt_text"], ids, row.get("tools"), pictures, seen))
    return questions


def as_asked_today(
    questions: list[Question], messages: Sequence[Message], system: str, template: str, own: Vocabulary, day: str,
    told: Mapping[str, Any] = NOTHING_TOLD,
) -> list[Question]:  # fmt: skip
    """The questions as the server must make them: with the Modelfile's turns (MESSAGE), and today's date instead of the goldens'.

    Args:
        template: of the training; it has to make the golden prompts as they were recorded.
        day: on which they were recorded; see `toolkit.models.chat_template.on_day`.
        told: what the template was told in training.

    Raises:
        ParityError: the template does not even make the golden prompts, or refuses the turns.
    """
    if not messages and not asks_for_the_day(template):
        return questions
    between = [{"role": message.role, "content": message.content} for message in messages]

    def rendered(turns: list[dict[str, Any]], tools: Tools | None, **fields: Any) -> str | None:
        return render_trained(template, turns, own.bos_text, own.eos_text, tools, **{**told, **fields})

    made = []
    for question in questions:
        # server/routes.go, ChatHandler: a system turn of the question's own comes after the Modelfile's turns.
        before = opening(question.messages, system)
        if rendered([*before, *question.messages], question.tools, **on_day(day)) != question.prompt_text:
            raise ParityError(
                "the template in the GGUF does not make the golden prompts", "Run the convert stage again."
            )
        text = rendered([*before, *between, *question.messages], question.tools)
        if text is None:
            raise ParityError(
                "the chat template refuses the Modelfile's MESSAGE turns", "They must alternate user and assistant."
            )
        ids = own.tokenize(without_bos(text, own))
        seen = 0
        if question.pictures:  # the same ones, so they take as many tokens as before
            seen = question.tokens - len(own.tokenize(without_bos(question.prompt_text, own))) + len(ids)
        made.append(replace(question, prompt_text=text, prompt_ids=ids, seen_tokens=seen))
    return made


def without_bos(text: str, own: Vocabulary) -> str:
    """A prompt as llama.cpp's server shows it: a BOS that the tokenizer puts there by itself is left to it."""
    return text.removeprefix(own.bos_text) if own.adds_bos and own.bos_text else text


def check_rendering(
    client: Client, model: str, questions: list[Question], own: Vocabulary, tick: Callable[[], None]
) -> list[tuple[str, str]]:
    """Have the server render every question; the bytes must be those of the training template.

    Returns:
        Each that differs: what it is called, and where the texts part.
    """
    wrong = []
    for number, question in enumerate(questions, 1):
        found = rendered_for_chat(client, model, question)
        if question.pictures:
            found = with_pictures(found, question.pictures.block)
        if found not in {question.prompt_text, without_bos(question.prompt_text, own)}:
            wrong.append((f"golden {number}", first_difference(question.prompt_text, found)))
        tick()
    return wrong


def rendered_for_chat(client: Client, model: str, question: Question) -> str:
    """The prompt that `/api/chat` makes of a question, with its functions; it takes every conversation."""
    request = request_fields(question.conversation(), "/api/chat")
    if isinstance(request, str):
        raise ParityError(request, "")
    return rendered_at(client, model, "/api/chat", request)


def check_everywhere(
    client: Client, served: Served, questions: list[Question], own: OwnModel, limit: int, tick: Callable[[], None],
    thinks: bool = False,
) -> tuple[Agreement, Agreement]:  # fmt: skip
    """`check_answers` of all questions at `/api/chat`, and of the first few at the other addresses.

    Args:
        thinks: the server may take thoughts out of what the addresses show, and of their tokens it tells nothing: the text is
            asked for as the model writes it, and the addresses are left to `toolkit.ollama.thoughts`.

    Returns:
        The first, and the others together.
    """
    elsewhere = Agreement()
    agreement = check_answers(client, served, questions, own, limit, tick, raw=thinks)
    if thinks:
        return agreement, elsewhere
    for endpoint in ENDPOINTS[1:]:
        if endpoint == "/v1/chat/completions" and served.repeat_penalty != 1.0:
            continue  # it takes no repeat_penalty from a request: there the model's own counts, and the answer is another
        # Where a picture stands is another place there: see `toolkit.ollama.elsewhere`.
        plain = [q for q in questions if not q.calls and not q.pictures]
        some = [q for q in plain if endpoint != "/api/generate" or len(q.messages) == 1][:ELSEWHERE]
        elsewhere = elsewhere + check_answers(client, served, some, own, limit, tick, endpoint)
    return agreement, elsewhere


def check_answers(
    client: Client,
    served: Served,
    questions: list[Question],
    own: OwnModel,
    limit: int,
    tick: Callable[[], None],
    endpoint: Endpoint = "/api/chat",
    raw: bool = False,
) -> Agreement:
    """Ask the server every question (greedy) and follow each answer token by token with llama.cpp on the same file.

    Args:
        limit: tokens of an answer at most.
        endpoint: the address that is asked.
        raw: ask with the prompt as it is, instead; where functions are in play this is always done.

    Raises:
        ParityError: a prompt has other tokens, or an answer leaves llama.cpp's by more than a near-tie.
    """
    agreement = Agreement()
    for number, question in enumerate(questions, 1):
        where = f"golden question {number}" + ("" if endpoint == "/api/chat" else f" at {endpoint}")
        if raw or question.calls:
            text = question.pictures.marked(without_bos(question.prompt_text, own))
            answer = raw_answer(client, served.model, text, GREEDY, limit, **question.pictures.sent)
        else:
            answer = ask(client, endpoint, served.model, question.messages, GREEDY, limit)
        read, wanted = answer.get("prompt_eval_count"), question.tokens
        if read != wanted:
            pictures = ", with its pictures" if question.pictures else ""
            raise ParityError(
                f"{where}: the served prompt has {read} tokens, the golden one {wanted}{pictures}",
                "The server adds or loses a special token (BOS), cut the prompt, or shows pictures in another size.",
            )
        if not answer.get("logprobs") and _text(answer):
            raise ExternalToolError(
                f"the Ollama at {client.address} gives no log-probabilities", "Update it, or: make ollama"
            )
        _Follower(own, served.stops, agreement, where).follow(answer, question)
        agreement.answers += 1
        agreement.texts.append(_text(answer))
        tick()
    return agreement


def _text(answer: dict[str, Any]) -> str:
    """What an answer says; of `/v1`, whose answers come in another form, nothing is known here."""
    return str((answer.get("message") or {}).get("content") or answer.get("response") or "")


def start(own: OwnModel, question: Question) -> Row:
    """Have the model in this process read a question, with its pictures; log-probabilities of the next token."""
    if not question.pictures:
        return own.start(question.prompt_ids)
    text = without_bos(question.prompt_text, own)
    with own.sight.read(text, question.pictures.block, question.pictures.bytes()) as prompt:
        if prompt.tokens != question.tokens:
            raise ParityError(
                f"llama.cpp reads {prompt.tokens} tokens where the golden prompt has {question.tokens}",
                "The projector is another model's, or shows pictures in another size.",
            )
        return own.start_seeing(prompt)


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
        row = start(own, question)
        pending, taken, ended = b"", 0, False  # bytes of tokens that the server has not shown yet; tokens so far
        for entry in answer.get("logprobs") or []:
            shown = str(entry["token"])
            whole = False
            while not whole:
                token = self._token_for(shown, pending, row)
                if token is None:
                    choice = own.piece(int(row.argmax())).decode(errors="replace")
                    raise ParityError(
                        f"{self.where}: the server says {entry['token']!r} where llama.cpp says {choice!r}, and the "
                        "server's is not among its choices",
                        "The served model is not this GGUF, or its context was cut.",
                    )
                self._flip(float(row.max() - row[token]), self.where)
                pending += own.piece(token)
                taken += 1
                ended = token in own.end_ids
                told = not begun(pending) if not shown else ended or not self._held(pending)
                whole = told and (not shown or as_shown(pending) == shown)
                if whole:
                    self._compare(entry, token, row)
                    pending = pending if not shown else b""
                row = own.step([token])
        if answer.get("done_reason") == "stop" and not pending and not ended:
            row = self._after_what_is_not_shown(row, int(answer.get("eval_count", 0)) - taken)
            # Without an end token of its own, llama.cpp would never have stopped here.
            lead = float(row.max() - max((row[i] for i in own.end_ids), default=-np.inf))
            self._flip(lead, f"{self.where}: the server stopped where llama.cpp goes on")

    def _after_what_is_not_shown(self, row: Row, most: int) -> Row:
        """The end of an answer whose last character was never completed, or that ends with control tokens."""
        pending = b""
        for _ in range(most):
            token = int(row.argmax())
            piece = self.own.piece(token)
            pending += piece
            if token in self.own.end_ids or (piece and not begun(pending)):
                break
            row = self.own.step([token])
        return row

    def _token_for(self, shown: str, pending: bytes, row: Row) -> int | None:
        """The likeliest token that fits what the server shows.

        It shows several tokens as one when it had to wait: for the rest of a character, or because the text could have
        been the beginning of a stop word. Only the last of them has its log-probability told, which may be that of the end:
        what is held back is never shown by its own last token (tools/server/server-context.cpp, `process_token`).
        """
        best = int(row.argmax())
        if not shown:
            return best
        if best in self.own.end_ids and pending and not begun(pending) and as_shown(pending) == shown:
            return best  # what could have been a stop word is shown with the end
        likeliest = np.argpartition(-row, _CANDIDATES)[:_CANDIDATES]
        for token in likeliest[np.argsort(-row[likeliest])]:
            piece = self.own.piece(int(token))
            text = pending + piece
            if piece and (_leads_to(text, shown) if self._held(text) else as_shown(text) == shown):
                return int(token)
            if (
                not piece and token not in self.own.end_ids
            ):  # a control token within an answer: the server is silent on it
                return int(token)
        return None

    def _held(self, text: bytes) -> bool:
        stops = [stop.encode() for stop in self.stops]
        return begun(text) > 0 or any(text.endswith(stop[:n]) for stop in stops for n in range(1, len(stop)))

    def _flip(self, lead: float, what: str) -> None:
        self.agreement.largest_flip = max(self.agreement.largest_flip, lead)
        if lead > LARGEST_FLIP:
            raise ParityError(
                f"{what}: its choice is {lead:.2f} nats less likely than llama.cpp's own (limit {LARGEST_FLIP})",
                "A stop word cuts the answer, or the server computes something else.",
            )

    def _compare(self, entry: dict[str, Any], token: int, row: Row) -> None:
        chosen = abs(float(row[token]) - float(entry["logprob"]))
        differences = [chosen]
        told: dict[str, list[float]] = defaultdict(list)
        for top in entry.get("top_logprobs") or []:
            told[str(top["token"])].append(float(top["logprob"]))
        for text, theirs in told.items():
            # Which of the tokens with this text is meant is not told, but the server tells its likeliest ones: rank by rank.
            ours = heapq.nlargest(len(theirs), self.own.shown_as.get(text, []), key=row.__getitem__)
            for other, logprob in zip(ours, sorted(theirs, reverse=True)):
                if other != token and max(float(row[other]), logprob) > _LOWEST:
                    differences.append(abs(float(row[other]) - logprob))
        self.agreement.tokens += 1
        self.agreement.total += chosen
        self.agreement.told += len(differences)
        self.agreement.told_total += sum(differences)
        self.agreement.largest = max(self.agreement.largest, *differences)


def _leads_to(text: bytes, shown: str) -> bool:
    """Whether what a server shows can begin with these bytes."""
    if "\ufffd" in shown:  # bytes that are no character's: which ones is not told
        return shown.startswith(as_shown(text))
    return shown.encode().startswith(text)
