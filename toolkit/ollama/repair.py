"""Mending a GGUF that Ollama would serve with another prompt than its own template's, and proving that it is mended.

An explicit TEMPLATE cannot carry it: Ollama takes Go templates there, and no Jinja (template/template.go, Parse). So the file's
own template is changed, in ways that change none of its texts:

- a comment at its head takes it out of reach of the templates that Ollama knows;
- variables that llama.cpp sets and training did not get another name, so that they stay undefined (`toolkit.chat_template`).

What no template can mend is said: an architecture whose prompts Ollama writes in Go by itself.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.chat_template import AS_TRAINED, THINKING, as_trained
from toolkit.errors import DataError, ParityError
from toolkit.export.convert import protect_template
from toolkit.gguf_file import GGUFHeader, read_gguf
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import Expected, Outcome, check_conversations, differing
from toolkit.ollama.predict import RENDERER_OF

_KEY = "tokenizer.chat_template"
_STRING = 8
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Repair:
    """A mended file, and what the server did before and after."""

    gguf: Path
    before: list[Outcome]
    after: list[Outcome]


def mended_template(template: str) -> str:
    """The template with the protecting comment, and with names that llama.cpp does not set; its texts are those of training."""
    return protect_template(as_trained(template))


def rewrite_template(gguf: Path, out: Path, template: str, header: GGUFHeader | None = None) -> Path:
    """Copy a GGUF with another chat template; tensors and all other metadata stay byte for byte.

    Args:
        out: the new file; written whole, or not at all.
        header: of `gguf`, where it was read before: that takes a second for a large vocabulary.

    Raises:
        DataError: no GGUF, damaged, or without a chat template to replace.
    """
    header = header or read_gguf(gguf)
    old = header.metadata.get(_KEY)
    if not isinstance(old, str):
        raise DataError(f"{gguf} has no chat template to replace", "Convert the model again, with its chat template.")
    partial = out.with_name(out.name + ".partial")
    try:
        with gguf.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
            begin, end = _value(data, old.encode(), header.data_begin, gguf)
            new = template.encode()
            head = data[:begin] + struct.pack("<Q", len(new)) + new + data[end : _end_of_list(data, header)]
            alignment = int(header.metadata.get("general.alignment", 32))
            with partial.open("wb") as sink:
                sink.write(head + b"\0" * (-len(head) % alignment))
                source.seek(header.data_begin)
                while chunk := source.read(_CHUNK):
                    sink.write(chunk)
                sink.flush()
                os.fsync(sink.fileno())
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _value(data: mmap.mmap, old: bytes, limit: int, gguf: Path) -> tuple[int, int]:
    """Where the template's length and text begin and end."""
    key = _KEY.encode()
    value = struct.pack("<Q", len(old)) + old
    at = data.find(struct.pack("<Q", len(key)) + key + struct.pack("<I", _STRING) + value, 0, limit)
    if at < 0:
        raise DataError(f"{gguf}: its chat template is not where its header says", "Convert the model again.")
    begin = at + 8 + len(key) + 4
    return begin, begin + len(value)


def _end_of_list(data: mmap.mmap, header: GGUFHeader) -> int:
    """Where the list of tensors ends: from there to the tensors there is only padding."""
    if not header.tensors:
        return header.data_begin
    size = sum(8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8 for tensor in header.tensors)
    first = header.tensors[0].name.encode()
    opening = struct.pack("<Q", len(first)) + first
    ends = range(header.data_begin, header.data_begin - int(header.metadata.get("general.alignment", 32)), -1)
    return next(end for end in ends if data[end - size : end - size + len(opening)] == opening)


def repaired(
    client: Client,
    name: str,
    gguf: Path,
    out: Path,
    expected: Sequence[Expected],
    bos: str = "",
) -> Repair:
    """Create the plain model, and if the server renders a conversation otherwise, mend the file and prove the mended one.

    Both models are removed again. What no file can change (`/api/generate` before Ollama 0.31) stays in the outcomes.

    Args:
        name: of the models that are made for the proof.
        out: the mended file; not written when nothing has to be mended.
        expected: what the training template makes of each conversation.

    Raises:
        ParityError: the mended file is served otherwise too; with the reason, as far as it is known.
    """
    before = _served(client, f"{name}:plain", gguf, expected, bos)
    version = client.version()
    if not differing(before, version):
        return Repair(gguf, before, before)
    header = read_gguf(gguf)
    template = str(header.metadata.get(_KEY, ""))
    mended = mended_template(template)
    rewrite_template(gguf, out, mended, header)
    after = _served(client, f"{name}:mended", out, _still_asked(expected, template, mended), bos)
    if wrong := differing(after, version):
        out.unlink()
        why = "this difference is not one that a template's own text can mend"
        if header.architecture in RENDERER_OF:
            why = f"Ollama writes every prompt of the architecture {header.architecture} itself, whatever the file says"
        raise ParityError(
            f"{gguf.name} cannot be mended: {why}; {wrong[0].endpoint}, {wrong[0].conversation}: {wrong[0].detail}",
            "Train with the template that is served, or serve the file with llama.cpp's own llama-server.",
        )
    return Repair(out, before, after)


def _still_asked(expected: Sequence[Expected], template: str, mended: str) -> list[Expected]:
    """Without `think`, where the mended template keeps to what training said about it."""
    if THINKING + AS_TRAINED not in mended or THINKING + AS_TRAINED in template:
        return list(expected)
    reason = "the mended template keeps to training's prompt, and `think` no longer changes it"
    return [one if one.conversation.think is None else Expected(one.conversation, None, reason) for one in expected]


def _served(client: Client, model: str, gguf: Path, expected: Sequence[Expected], bos: str) -> list[Outcome]:
    client.create(model, {"files": {"model.gguf": client.upload(gguf)}})
    try:
        return check_conversations(client, model, expected, bos)
    finally:
        client.delete(model)
