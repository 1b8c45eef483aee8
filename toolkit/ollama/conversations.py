"""Does the server make of every conversation, at every address that apps use, the text that the model was trained on?

Ollama shows what it renders (`_debug_render_only`) at `/api/chat`, `/api/generate` and, since before 0.30, `/v1/chat/completions`
as well, so all three are compared byte for byte. A conversation that cannot be asked is not left out: its outcome says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from toolkit.errors import ParityError, ToolkitError
from toolkit.models.chat_template import NOTHING_TOLD, render_trained
from toolkit.models.picture_block import picture_block, with_pictures
from toolkit.ollama.asked import ENDPOINTS, TOOLS, Conversation, Endpoint, Messages, has_picture, request_fields
from toolkit.ollama.client import Client
from toolkit.ollama.predict import GENERATE_RENDERS, RENDERER_OF, numbers, takes_tools, thinks
from toolkit.ollama.syntax import Message
from toolkit.ollama.thoughts import A_LEVEL, Think, keeps_to_training, told_by

Result = Literal["equal", "differs", "differs for every model", "not applicable"]
CALL = "call00001"
"""Nine letters and digits, the only form of a tool call's id that Mistral's templates accept."""
GOES_ON = "llama.cpp goes on with a turn of the assistant's, where training opens a new one"
TURN_A_PART = (
    "/v1 makes each part of a turn a turn of its own (openai/openai.go, FromChatRequest), for every model: "
    "ask with pictures at /api/chat"
)


@dataclass(frozen=True)
class Expected:
    """A conversation and the text that the training template makes of it."""

    conversation: Conversation
    text: str | None
    """None: it is not applicable, and `reason` says why."""
    reason: str = ""
    elsewhere: Mapping[Endpoint, str] = field(default_factory=dict)
    """The text at addresses where it is another. `/api/generate` puts a request's system text before the Modelfile's turns, the
    others after them; and a picture before the question, the others after it."""
    picture: str = ""
    """What the template writes where a server shows its marker of a picture."""
    always: Mapping[Endpoint, str] = field(default_factory=dict)
    """Addresses where every model is given another text, whatever its file says, and why."""


@dataclass(frozen=True)
class Outcome:
    """What one address made of one conversation."""

    conversation: str
    endpoint: Endpoint
    result: Result
    detail: str = ""


def further_conversations(system: str, markers: Sequence[str]) -> list[Conversation]:
    """The conversations of `toolkit.parity.checks.prompts`, and those that only a server can be asked.

    Args:
        system: the system text of the recipe; empty: some example.
        markers: texts of the model's special tokens, which a user may write too.
    """
    from toolkit.parity.checks.prompts import conversations

    user, said = "What helps against a cold?", system or "You are a careful doctor. Answer in one sentence."
    marked = " ".join(["Explain", *markers, "please."])
    call = {"type": "function", "id": CALL, "function": {"name": "look_up", "arguments": {"word": "cold"}}}
    asked: dict[str, Any] = {"role": "user", "content": user}
    answered: Messages = [
        asked,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": CALL, "name": "look_up", "content": "an infection"},
    ]
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image"}]
    return [
        *(Conversation(name, [dict(m) for m in messages]) for name, messages in conversations(system)),
        Conversation(
            "joined emoji", [{"role": "user", "content": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 a\u00a0b\u3000c"}]
        ),
        Conversation("text that contains special tokens", [{"role": "user", "content": marked}]),
        Conversation("tools", [{"role": "system", "content": said}, asked], tools=TOOLS),
        Conversation("tools, no system text", [asked], tools=TOOLS),
        Conversation("a tool's answer", answered, tools=TOOLS),
        Conversation("think", [asked], think=True),
        Conversation("no think", [asked], think=False),
        Conversation(f"think: {A_LEVEL}", [asked], think=A_LEVEL),
        Conversation("image", [{"role": "user", "content": parts}]),
    ]


def expected_texts(
    conversations: Sequence[Conversation],
    template: str,
    bos: str,
    eos: str,
    system: str = "",
    turns: Sequence[Message] = (),
    sees: bool = False,
    served: str = "",
    fields: Mapping[str, Any] = NOTHING_TOLD,
    architecture: str = "",
) -> list[Expected]:
    """What the training template makes of conversations as the served model completes them.

    Args:
        template: of the training.
        system, turns: the Modelfile's SYSTEM and MESSAGE, which Ollama puts before a conversation.
        sees: whether the served model has a projector.
        served: the template in the served file, where it is not the training's; see `keeps_to_training`.
        fields: what the template was told in training.
        architecture: of the served file. Where Ollama writes its prompts itself, nobody can change how functions are written, or
            the prompt of an app that wants other thoughts than were trained: these conversations are told, and not counted.
            What was trained, the goldens hold.
    """
    own_words = f"Ollama writes the prompts of {architecture} itself" if architecture in RENDERER_OF else ""
    trained = _Trained(template, bos, eos, sees, keeps_to_training(served or template), fields, own_words)
    between = [{"role": turn.role, "content": turn.content} for turn in turns]
    made = []
    for one in conversations:
        first = one.messages[0]["role"] == "system"
        found = _expected(one, [*opening(one.messages, system), *between, *one.messages], trained)
        if between and first and found.text is not None:
            other = _expected(one, [one.messages[0], *between, *one.messages[1:]], trained)
            found = replace(found, elsewhere={"/api/generate": other.text or ""})
        made.append(found)
    return made


def opening(messages: Messages, system: str) -> Messages:
    """The turn that a served model's SYSTEM puts before a conversation, if it does."""
    # server/routes.go, ChatHandler: SYSTEM goes first, unless the request begins with a system turn of its own.
    return [{"role": "system", "content": system}] if system and messages[0]["role"] != "system" else []


@dataclass(frozen=True)
class _Trained:
    """The training template, and what is known of the model that is served."""

    template: str
    bos: str
    eos: str
    sees: bool
    kept: bool
    """The served file's template was mended; see `keeps_to_training`."""
    fields: Mapping[str, Any]
    """What the template was told in training."""
    own_words: str
    """Why functions and thoughts are not written by the template; empty: they are."""

    def rendered(
        self, messages: Messages, tools: list[dict[str, Any]] | None = None, think: Think = None
    ) -> str | None:
        """None: the template refuses."""
        said = told_by(think, self.fields, self.kept)
        return render_trained(self.template, messages, self.bos, self.eos, tools, **said)


def _expected(one: Conversation, messages: Messages, trained: _Trained) -> Expected:
    if has_picture(one):
        return _with_picture(one, messages, trained)
    text = trained.rendered(messages, one.tools, one.think)
    if text is None:
        return Expected(one, None, "the training template refuses this conversation")
    if one.think and not thinks(trained.template):
        return Expected(one, None, "Ollama does not take it for a thinking model and refuses `think`")
    bare = trained.rendered(messages) if one.tools else None
    if one.tools and (text == bare or not takes_tools(trained.template)):
        if messages[-1]["role"] != "tool" or bare is None:
            return Expected(one, None, "the template ignores tools")
        # It ignores their definitions; a call and its answer are turns that it may write all the same.
        return Expected(replace(one, tools=None), bare)
    if one.messages[-1]["role"] == "assistant":
        return Expected(one, text, always=dict.fromkeys(ENDPOINTS, GOES_ON))
    if (one.tools or one.think is not None) and trained.own_words:
        return Expected(one, text, always=dict.fromkeys(ENDPOINTS, trained.own_words))
    return Expected(one, text)


def _with_picture(one: Conversation, messages: Messages, trained: _Trained) -> Expected:
    if not trained.sees:
        return Expected(one, None, "the model has no projector: it sees no pictures")
    block = picture_block(trained.template, trained.bos, trained.eos)
    first = [
        {**m, "content": sorted(m["content"], key=lambda part: part["type"] != "image")}
        if isinstance(m["content"], list)
        else m
        for m in messages
    ]
    text, generate = trained.rendered(messages), trained.rendered(first)
    if block is None or text is None or generate is None:
        return Expected(one, None, "the training template writes no picture")
    always: dict[Endpoint, str] = {"/v1/chat/completions": TURN_A_PART}
    return Expected(one, text, elsewhere={"/api/generate": generate}, picture=block, always=always)


def check_conversations(
    client: Client,
    model: str,
    expected: Sequence[Expected],
    bos: str = "",
    endpoints: Sequence[Endpoint] = ENDPOINTS,
) -> list[Outcome]:
    """Have the server render every conversation at every address.

    Args:
        bos: text of the token that the tokenizer puts first by itself (empty: it does not); the text may be without it, as
            llama.cpp leaves it to the tokenizer.
    """
    return [_outcome(client, model, one, endpoint, bos) for one in expected for endpoint in endpoints]


def _outcome(client: Client, model: str, one: Expected, endpoint: Endpoint, bos: str) -> Outcome:
    name = one.conversation.name
    if one.text is None:
        return Outcome(name, endpoint, "not applicable", one.reason)
    request = request_fields(one.conversation, endpoint)
    if isinstance(request, str):
        return Outcome(name, endpoint, "not applicable", request)
    try:
        found = rendered_at(client, model, endpoint, request)
    except ToolkitError as error:
        told = f"the server refuses: {error.message[-300:]}"
        # A picture that is refused is no turn in two parts.
        return Outcome(name, endpoint, "differs", told) if one.picture else _different(one, endpoint, told)
    text = one.elsewhere.get(endpoint) or one.text
    if one.picture:
        found = with_pictures(found, one.picture)
    if found in {text, text.removeprefix(bos)}:
        return Outcome(name, endpoint, "equal")
    wanted = text if bos and found.startswith(bos) else text.removeprefix(bos)
    return _different(one, endpoint, first_difference(wanted, found))


def _different(one: Expected, endpoint: Endpoint, told: str) -> Outcome:
    if endpoint in one.always:
        return Outcome(one.conversation.name, endpoint, "differs for every model", f"{one.always[endpoint]}; {told}")
    return Outcome(one.conversation.name, endpoint, "differs", told)


def require_prompt(
    client: Client, model: str, where: str, prompt: str, endpoint: Endpoint, request: dict[str, Any], bos: str
) -> None:
    """Raise ParityError where an address makes another prompt of a request.

    Args:
        where: how the message begins.
        bos: text of the token that the tokenizer puts first by itself; the server may leave it to that.
    """
    found = rendered_at(client, model, endpoint, request)
    if found not in {prompt, prompt.removeprefix(bos)}:
        raise ParityError(f"{where}: {first_difference(prompt, found)}", "")


def rendered_at(client: Client, model: str, endpoint: Endpoint, request: dict[str, Any]) -> str:
    """The prompt that an address makes of a request, without answering it."""
    fields = {**request, "_debug_render_only": True}
    if endpoint == "/api/chat":
        return client.shown_prompt(client.chat(model, fields.pop("messages"), **fields))
    if endpoint == "/api/generate":
        return client.shown_prompt(client.generate(model, fields.pop("prompt"), **fields))
    return client.shown_prompt(client.openai(model, fields.pop("messages"), **fields))


def first_difference(wanted: str, found: str) -> str:
    """Where two texts part, with what stands there."""
    at = next((i for i, (a, b) in enumerate(zip(wanted, found)) if a != b), min(len(wanted), len(found)))
    return f"from character {at + 1}: trained {wanted[at : at + 40]!r}, served {found[at : at + 40]!r}"


def differing(outcomes: Sequence[Outcome], version: str = "") -> list[Outcome]:
    """Those that differ; with a version, only what a file can do something about there."""
    bare = bool(version) and numbers(version) < GENERATE_RENDERS
    return [o for o in outcomes if o.result == "differs" and not (bare and o.endpoint == "/api/generate")]
