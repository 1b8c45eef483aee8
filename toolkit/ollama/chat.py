"""`tune2ollama chat`: talk to a published model through Ollama, or to a GGUF file without any server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from toolkit.errors import ToolkitError, UsageError

Messages = list[dict[str, str]]
Answer = Callable[[Messages], Iterator[str]]

HELP = "Ctrl-D or /bye ends, /clear forgets what was said."
_CONTEXT = 4096


def chat_with(model: str | None, think: bool | str | None = None) -> None:
    """Chat until the user ends it. Answers go to standard output, everything else to standard error.

    Args:
        model: an Ollama model, or the path of a GGUF file; None takes the newest published model.
        think: whether to ask for thoughts, or a level; None: nothing is said.

    Raises:
        UsageError: no such model, or there is none yet.
        ExternalToolError: the server went away.
    """
    if model is not None and model.endswith(".gguf"):
        if think is not None:
            raise UsageError("--think is for a server", "Publish the model, and name it instead of the file.")
        _converse(Path(model).name, gguf_answers(Path(model)), system_of(Path(model)))
        return
    from toolkit.ollama.server import serving
    from toolkit.run.places import cache_home

    with serving(cache_home() / "logs" / "chat-server.log") as client:
        if client is None:
            raise UsageError(
                "no Ollama is installed here",
                "Chat with the file itself: tune2ollama chat runs/<name>/quantize/<file>.gguf",
            )
        known = client.models()
        name = model or _newest_published()
        if name is None or not {name, f"{name}:latest"} & set(known):
            have = ", ".join(sorted(known)) or "none"
            raise UsageError(f"Ollama has no model {name or 'yet'}; it has: {have}", "Make one: make medical")

        def answer(messages: Messages) -> Iterator[str]:
            said = {} if think is None else {"think": think}
            request = {"model": name, "messages": messages, **said}
            story, thinking = Console(stderr=True), False
            for line in client.stream("/api/chat", request, f"asking {name}"):
                message = line.get("message") or {}
                if thought := str(message.get("thinking") or ""):
                    thinking = True
                    story.print(Text(thought, style="dim"), end="", soft_wrap=True)
                content = str(message.get("content") or "")
                if thinking and content:
                    thinking = False
                    story.print()
                yield content

        _converse(name, answer, "")  # the server has the system text


def _newest_published() -> str | None:
    from toolkit.run.artifacts import read_artifact
    from toolkit.run.facts import OllamaFacts

    made = sorted(Path("runs").glob("*/create/artifact.json"), key=lambda path: path.stat().st_mtime)
    found = [a.facts.model for path in made if (a := read_artifact(path.parent, OllamaFacts)) and a.facts.published]
    return found[-1] if found else None


def gguf_answers(path: Path) -> Answer:
    """Greedy answers of a GGUF file, in pieces, with the chat template that it carries.

    Raises:
        UsageError: there is no such file, or it carries no chat template.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "Look for one: ls runs/*/quantize/*.gguf")
    from llama_cpp import Llama
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    from toolkit.parity.candidate import Candidate

    with Candidate(path, vocab_only=True) as file:
        template, end = file.chat_template, file.token_text(file.eos)
        begin = file.token_text(file.bos) if file.bos >= 0 else ""
    if not template:
        raise UsageError(f"{path} carries no chat template", "Export it with tune2ollama.")
    model = Llama(str(path), n_ctx=_CONTEXT, verbose=False)
    # Not create_chat_completion: for known templates it would use its own rendering instead of the file's.
    render: Any = Jinja2ChatFormatter(template=template, eos_token=end, bos_token=begin)

    def answer(messages: Messages) -> Iterator[str]:
        prompt = model.tokenize(render(messages=messages).prompt.encode(), add_bos=False, special=True)
        room = _CONTEXT - len(prompt)
        if room < 16:
            raise UsageError("the conversation fills the context", "Start over with /clear.")
        for piece in model.create_completion(prompt, max_tokens=room, temperature=0.0, stop=[end], stream=True):
            yield str(piece["choices"][0]["text"])

    return answer


def system_of(path: Path) -> str:
    """The system text that the run of a GGUF (runs/<name>/quantize/…) was trained with; empty when it is not known."""
    from toolkit.run.artifacts import read_artifact
    from toolkit.run.facts import AdapterFacts

    try:
        artifact = read_artifact(path.resolve().parent.parent / "train", AdapterFacts)
    except ToolkitError:
        return ""
    return artifact.facts.system if artifact else ""


def _converse(name: str, answer: Answer, system: str) -> None:
    screen, story = Console(highlight=False), Console(stderr=True)
    story.print(f"{name}. {HELP}", style="dim")
    opening: Messages = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while True:
        try:
            said = story.input("[bold]>>> [/]").strip()
        except EOFError:
            return
        if said in {"/bye", "/exit", "/quit"}:
            return
        if said == "/clear":
            messages = list(opening)
        elif said:
            messages.append({"role": "user", "content": said})
            messages.append({"role": "assistant", "content": _show(screen, answer(messages))})


def _show(screen: Console, pieces: Iterator[str]) -> str:
    told = ""
    try:
        for piece in pieces:
            told += piece
            screen.print(Text(piece), end="", soft_wrap=True)
    except KeyboardInterrupt:  # ends this answer, not the chat
        pass
    screen.print()
    return told
