"""The syntax of Ollama's Modelfile: parse and render. What goes into ours: `toolkit.ollama.modelfile`.

The grammar is Ollama 0.34's: an instruction a line, case-insensitive; a value is bare, or between one or three double quotes,
and a quoted value ends at the first line end that closes it. Two differences, both for the reader's sake: an error names the
line where the instruction began, and characters that Ollama's parser drops (ZWJ, NBSP, U+3000, control characters) are kept,
so that they can travel through the API. `render` refuses them, because a Modelfile cannot carry them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from toolkit.errors import UsageError
from toolkit.recipe.section import nearest

Value = int | float | bool | str

PARAMETERS: dict[str, type] = {
    "num_ctx": int, "num_batch": int, "num_gpu": int, "main_gpu": int, "use_mmap": bool, "num_thread": int,
    "draft_num_predict": int, "num_keep": int, "seed": int, "num_predict": int, "top_k": int, "top_p": float, "min_p": float,
    "repeat_last_n": int, "temperature": float, "repeat_penalty": float, "presence_penalty": float,
    "frequency_penalty": float, "stop": str,
}  # fmt: skip
"""Parameters of Ollama 0.34 and their types; `stop` may be given more than once."""

IGNORED_PARAMETERS = (
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
INSTRUCTIONS = (
    "FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES", "RENDERER", "PARSER", "DRAFT",
)  # fmt: skip
ROLES = ("system", "user", "assistant")

_PARAMETER = "Write it like: PARAMETER temperature 0.7"
_SPACE, _NEWLINE, _BLANK = " \t", "\r\n", " \t\r\n"
_SEMVER = re.compile(r"v?(0|[1-9]\d*)(\.(0|[1-9]\d*)(\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?)?)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST_FLOAT = 3.4028234663852886e38  # Ollama keeps 32 bits
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


@dataclass(frozen=True)
class Message:
    """A turn that Ollama puts between the system text and the user's first question."""

    role: str
    content: str


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says. Where Ollama keeps the last of several (SYSTEM, TEMPLATE …), so does `parse`."""

    models: tuple[str, ...] = ()
    """FROM: paths of GGUF files or a model's name; the second path of a vision model is its projector."""
    parameters: tuple[tuple[str, Value], ...] = ()
    template: str | None = None
    system: str | None = None
    adapter: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None
    drafts: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()

    def parameter(self, name: str) -> Value | None:
        """The value that Ollama uses (the last one), or None."""
        return next((value for known, value in reversed(self.parameters) if known == name), None)

    def api_parameters(self) -> dict[str, Any]:
        """As `POST /api/create` takes them: one value a name, `stop` a list."""
        found: dict[str, Any] = {}
        for name, value in self.parameters:
            if name == "stop":
                found.setdefault(name, []).append(value)
            else:
                found[name] = value
        return found


def read_modelfile(path: Path, partial: bool = False) -> Modelfile:
    """Read a file (UTF-8, or UTF-16 with a byte order mark, as Ollama does).

    Args:
        path: the file; its name is in every message.
        partial: whether FROM may be missing, because `complete` fills it in.

    Raises:
        UsageError: it is not there, not text, or no Modelfile.
    """
    try:
        raw = path.read_bytes()
        wide = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", "Check ollama.modelfile in the recipe.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}", "Save it as UTF-8.") from error
    return parse(text, str(path), partial)


def parse(text: str, source: str = "Modelfile", partial: bool = False) -> Modelfile:
    """Parse a Modelfile.

    Raises:
        UsageError: naming `source`, the line and the value.
    """
    single: dict[str, Any] = {}
    several: dict[str, list[Any]] = {"models": [], "parameters": [], "drafts": [], "licenses": [], "messages": []}
    for line, name, argument, value in _instructions(text, source):
        place = f"{source}:{line}"
        match name:
            case "FROM" | "DRAFT":
                if not value:
                    raise UsageError(f"{place}: {name} names no file", f"Name one: {name} ./model.gguf")
                several["models" if name == "FROM" else "drafts"].append(value)
            case "PARAMETER":
                several["parameters"].append((argument, _typed(place, argument, value)))
            case "MESSAGE":
                several["messages"].append(Message(argument, value))
            case "LICENSE":
                several["licenses"].append(value)
            case "REQUIRES" if not _SEMVER.fullmatch(value):
                raise UsageError(f"{place}: REQUIRES {value!r} is no version", "Write it like: REQUIRES 0.34.1")
            case _:
                single[name.lower()] = value
    if not several["models"] and not partial:
        raise UsageError(f"{source}: no FROM line", "Say which model it is about: FROM ./model.gguf")
    single.update({key: tuple(values) for key, values in several.items()})
    return Modelfile(**single)


def _instructions(text: str, source: str) -> Iterator[tuple[int, str, str, str]]:
    """Yield line (from 1), instruction, argument (parameter's name or message's role) and value."""
    at = 0
    while (at := _skip(text, at)) < len(text):
        line = _line(text, at)
        place = f"{source}:{line}"
        word, at = _word(text, at)
        name = word.upper()
        if name not in INSTRUCTIONS:
            raise UsageError(
                f"{place}: unknown instruction {word}{nearest(name, INSTRUCTIONS)}", f"Known: {', '.join(INSTRUCTIONS)}"
            )
        at = _one_space(text, at, f"{place}: {name} has no value")
        argument = ""
        if name in {"PARAMETER", "MESSAGE"}:
            argument, at = _word(text, at)
            if name == "MESSAGE" and argument not in ROLES:
                raise UsageError(
                    f"{place}: MESSAGE {argument!r}: the role must be one of {', '.join(ROLES)}, after one space",
                    "Write it like: MESSAGE user Hello",
                )
            if name == "PARAMETER" and not re.fullmatch("[A-Za-z0-9_]+", argument):
                raise UsageError(f"{place}: PARAMETER {argument!r} is no name; it follows after one space", _PARAMETER)
            at = _one_space(text, at, f"{place}: {name} {argument} has no value")
        value, at = _value(text, at)
        if value is None:
            raise UsageError(
                f"{place}: the quote that {name} opens is never closed",
                "End the value's last line with the same quote.",
            )
        yield line, name, argument, value


def _skip(text: str, at: int) -> int:
    while at < len(text) and (text[at] in _BLANK or text[at] == "#"):
        if text[at] == "#":
            while at < len(text) and text[at] not in _NEWLINE:
                at += 1
        else:
            at += 1
    return at


def _line(text: str, at: int) -> int:
    before = text[:at].replace("\r\n", "\n")
    return before.count("\n") + before.count("\r") + 1


def _word(text: str, at: int) -> tuple[str, int]:
    end = at
    while end < len(text) and text[end] not in _BLANK:
        end += 1
    return text[at:end], end


def _one_space(text: str, at: int, message: str) -> int:
    if at >= len(text) or text[at] not in _SPACE:
        raise UsageError(message, "Put the value on the same line, after one space; or remove the line.")
    return at + 1


def _value(text: str, start: int) -> tuple[str | None, int]:
    """The value that begins at `start` and where it ends; None when its quote is never closed."""
    at = start
    while True:
        while at < len(text) and text[at] not in _NEWLINE:
            at += 1
        value = _unquote(text[start:at].strip(_BLANK))
        if value is not None or at >= len(text):
            return value, at
        at += 1


def _unquote(text: str) -> str | None:
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text


def _typed(place: str, name: str, text: str) -> Value:
    if name == "typical_p" or name in IGNORED_PARAMETERS:
        what = "refuses" if name == "typical_p" else "ignores"
        raise UsageError(f"{place}: PARAMETER {name}: Ollama 0.34 {what} it", "Remove the line.")
    if name not in PARAMETERS:
        known = tuple(PARAMETERS)
        raise UsageError(f"{place}: unknown PARAMETER {name}{nearest(name, known)}", f"Known: {', '.join(known)}")
    kind = PARAMETERS[name]
    if kind is str:
        return text
    if kind is bool and text in _TRUE + _FALSE:
        return text in _TRUE
    if kind is int and re.fullmatch(r"[+-]?\d+", text, re.ASCII) and -(2**63) <= int(text) < 2**63:
        return int(text)
    if kind is float and _NUMBER.fullmatch(text) and abs(float(text)) <= _LARGEST_FLOAT:
        return float(text)
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
    raise UsageError(f"{place}: PARAMETER {name} must be {wanted}, not {text!r}", "Mend the value, or remove the line.")


def render(modelfile: Modelfile) -> str:
    """Write a Modelfile that parses, here and in Ollama, to the same again.

    Raises:
        UsageError: a value that no Modelfile can hold; `tune2ollama create` still carries it, through Ollama's API.
    """
    lines, refused = _render(modelfile)
    if refused:
        raise UsageError("\n".join(refused), "tune2ollama create sends such text through Ollama's API, where it fits.")
    return lines


def render_for_people(modelfile: Modelfile) -> str:
    """Like `render`, but a value that no Modelfile can hold is replaced by a comment that says so."""
    return _render(modelfile)[0]


def _render(modelfile: Modelfile) -> tuple[str, list[str]]:
    lines, refused = [], []
    for head, value in _heads(modelfile):
        fault = _unwritable(value)
        quoted = None if fault else _quote(value, prefer_quotes=head.startswith("PARAMETER stop"))
        if quoted is None:
            fault = fault or 'a line of it ends in `"""`, which closes every quote'
            refused.append(f"{head}: a Modelfile cannot hold this text: {fault}")
            lines.append(f"# {head} is left out: a Modelfile cannot hold it ({fault}). Ollama's API got it whole.")
        else:
            lines.append(f"{head} {quoted}")
    return "\n".join(lines) + "\n", refused


def _heads(modelfile: Modelfile) -> Iterator[tuple[str, str]]:
    yield from (("FROM", model) for model in modelfile.models)
    yield from (("DRAFT", draft) for draft in modelfile.drafts)
    for field in fields(modelfile):
        value = getattr(modelfile, field.name)
        if isinstance(value, str):
            yield field.name.upper(), value
    for name, parameter in modelfile.parameters:
        yield f"PARAMETER {name}", parameter if isinstance(parameter, str) else str(parameter).lower()
    yield from ((f"MESSAGE {message.role}", message.content) for message in modelfile.messages)
    yield from (("LICENSE", text) for text in modelfile.licenses)


def _unwritable(text: str) -> str:
    # Ollama's parser keeps what Go's strconv.IsPrint accepts (Python's isprintable is the same set), and tabs and line ends.
    for index, character in enumerate(text):
        if not (character.isprintable() or character in "\t\r\n"):
            return f"Ollama's parser drops U+{ord(character):04X}, its character {index + 1}"
    return ""


def _quote(text: str, prefer_quotes: bool) -> str | None:
    """The first way of quoting that parses back to `text`."""
    ways = [text, f'"{text}"', f'"""{text}"""']
    if any(c in text for c in _NEWLINE):
        ways = [ways[2], ways[1]]
    elif prefer_quotes or not text:
        ways = ways[1:]
    return next((way for way in ways if _value(way + "\n", 0) == (text, len(way))), None)
