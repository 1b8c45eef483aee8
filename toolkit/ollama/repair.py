"""Mending a GGUF that Ollama would serve with another prompt than the one of training, and proving that it is mended.

An explicit TEMPLATE cannot carry it: Ollama takes Go templates there, no Jinja (template/template.go, Parse). So the file gets
the template of training, changed in ways that change none of its texts:

- a comment at its head takes it out of reach of the templates that Ollama knows;
- variables that llama.cpp sets and training did not get another name, so that they stay undefined
  (`toolkit.models.chat_template`).

What no template can mend is said: an architecture whose prompts Ollama writes in Go by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ExternalToolError, ParityError
from toolkit.export.convert import protect_template
from toolkit.models.chat_template import NOTHING_TOLD, as_trained
from toolkit.models.gguf_file import GGUFHeader, read_gguf
from toolkit.models.gguf_metadata import copy_with_texts
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import (
    Expected,
    Outcome,
    check_conversations,
    differing,
    expected_texts,
    further_conversations,
)
from toolkit.ollama.own_model import Vocabulary
from toolkit.ollama.predict import RENDERER_OF
from toolkit.ollama.server import INSTALL, serving

_KEY = "tokenizer.chat_template"


@dataclass(frozen=True)
class Repair:
    """A mended file, and what the server did before and after."""

    gguf: Path
    before: list[Outcome]
    after: list[Outcome]


def mended_template(template: str, fields: Mapping[str, Any] = NOTHING_TOLD) -> str:
    """The template with the protecting comment, and with names that llama.cpp does not set; its texts are those of training."""
    return protect_template(as_trained(template, fields))


def rewrite_template(gguf: Path, out: Path, template: str, header: GGUFHeader | None = None) -> Path:
    """Copy a GGUF with another chat template, or with its first; see `toolkit.models.gguf_metadata.copy_with_texts`.

    Raises:
        DataError: no GGUF, or damaged.
    """
    return copy_with_texts(gguf, out, {_KEY: template}, header)


def repair_file(
    gguf: Path, out: Path, template: str, system: str, log: Path, fields: Mapping[str, Any] = NOTHING_TOLD
) -> str:
    """Mend a file for the Ollama of this machine, if it has to be.

    Args:
        template: of the training.
        system: that was trained with.
        log: gets what a server says that has to be started.
        fields: what the template was told in training.

    Returns:
        What was found and done, in a sentence.

    Raises:
        ExternalToolError: there is no Ollama to prove it with.
        ParityError: the file cannot be mended.
    """
    with serving(log) as client:
        if client is None:
            raise ExternalToolError("a repair is proved by an Ollama, and there is none here", INSTALL)
        vocabulary = Vocabulary(gguf)
        bos, eos, markers = vocabulary.bos_text, vocabulary.eos_text, vocabulary.markers
        adds_bos = vocabulary.adds_bos
        vocabulary.close()
        conversations = further_conversations(system, markers)

        def expected(served: str) -> list[Expected]:
            return expected_texts(conversations, template, bos, eos, served=served, fields=fields)

        name = f"tune2ollama-repair-{os.getpid()}"
        found = repaired(client, name, gguf, out, template, expected, bos if adds_bos else "", fields)
        version = client.version()
    wrong = differing(found.before, version)
    if not wrong:
        return f"Ollama {version} serves {gguf.name} as it was trained: there is nothing to mend, and {out} was not written."
    equal = sum(outcome.result == "equal" for outcome in found.after)
    return (
        f"Ollama {version} served {len(wrong)} of {gguf.name}'s conversations otherwise than trained; the first: "
        f"{wrong[0].endpoint}, {wrong[0].conversation}: {wrong[0].detail}. Mended: {out}, whose {equal} conversations are equal."
    )


def repaired(
    client: Client,
    name: str,
    gguf: Path,
    out: Path,
    template: str,
    expected: Callable[[str], Sequence[Expected]],
    bos: str = "",
    fields: Mapping[str, Any] = NOTHING_TOLD,
) -> Repair:
    """Create the plain model, and if the server renders a conversation otherwise, mend the file and prove the mended one.

    Both models are removed again. What no file can change (`/api/generate` before Ollama 0.31) stays in the outcomes.

    Args:
        name: of the models that are made for the proof.
        out: the mended file; not written when nothing has to be mended.
        template: of the training; the file may have another one, or none.
        expected: what the training template makes of each conversation, given the served file's template; see
            `toolkit.ollama.conversations.expected_texts`.

    Raises:
        ParityError: the mended file is served otherwise too; with the reason, as far as it is known.
    """
    header = read_gguf(gguf)
    before = _served(client, f"{name}:plain", gguf, expected(str(header.metadata.get(_KEY, ""))), bos)
    version = client.version()
    if not differing(before, version):
        return Repair(gguf, before, before)
    mended = mended_template(template, fields)
    rewrite_template(gguf, out, mended, header)
    after = _served(client, f"{name}:mended", out, expected(mended), bos)
    if wrong := differing(after, version):
        out.unlink()
        why = "this difference is not one that a template's own text can mend"
        if header.architecture in RENDERER_OF:
            why = f"Ollama writes every prompt of the architecture {header.architecture} itself, whatever the file says"
        raise ParityError(
            f"{gguf.name} cannot be mended: {why}; {wrong[0].endpoint}, {wrong[0].conversation}: {wrong[0].detail}",
            "Train with the template that is served, or serve the file with llama.cpp's own server:\n"
            f"  llama-server -m {gguf} --jinja",
        )
    return Repair(out, before, after)


def _served(client: Client, model: str, gguf: Path, expected: Sequence[Expected], bos: str) -> list[Outcome]:
    client.create(model, {"files": {"model.gguf": client.upload(gguf)}})
    try:
        return check_conversations(client, model, expected, bos)
    finally:
        client.delete(model)
