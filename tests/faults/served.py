"""Faults that a server puts in: the clean file, created with something that changes what it renders or answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.faults.chains import fault_chain
from tests.parity_chain import SYSTEM
from toolkit.models.tokenizer import load_tokenizer
from toolkit.ollama.client import Client
from toolkit.ollama.judged import judge_served
from toolkit.ollama.served_model import ServedModel
from toolkit.parity.certificate import LinkName, Subject
from toolkit.parity.subjects import Tuned
from toolkit.run.artifacts import read_jsonl

NAME = "faulty"
GO_TEMPLATE = (
    "{{ range .Messages }}<|{{ .Role }}|>\n{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}\n{{ end }}"
    "<|assistant|>\n"
)
"""It can do what the file's own template can; one that could do less would not be used."""


@dataclass(frozen=True)
class ServedFault:
    """A fault, the link that broke, and what the certificate has to say about it."""

    name: str
    link: LinkName
    check: str
    measure: str
    says: str
    """A part of the message."""
    parameters: Callable[[], dict[str, Any]] = dict
    """Of the Modelfile."""
    template: str = ""
    """An explicit TEMPLATE."""


def _words_of_an_answer() -> dict[str, Any]:
    """Two tokens in the middle of the first golden answer, as a stop word."""
    clean = fault_chain()
    row = read_jsonl(clean.golden.folder / "golden.jsonl")[0]
    words = load_tokenizer(clean.adapter.folder).decode(row["completion_ids"][2:4])
    return {"stop": [str(words)]}


SERVED_FAULTS = [
    ServedFault("template swapped on the server", "server prompt", "prompts", "golden prompts that differ",
                "served 'system|>", template=GO_TEMPLATE),
    ServedFault("stop words that cut an answer", "server answers", "ends", "stop words that are no end",
                "is no end of the tuned model: it cuts", _words_of_an_answer),
    ServedFault("num_ctx too small for the prompt", "server answers", "answers", "num_ctx",
                "num_ctx is 16, but golden prompts and answers need", lambda: {"num_ctx": 16}),
    ServedFault("sampling that garbles answers", "defaults", "defaults", "answers that break", "PARAMETER temperature 2: ",
                lambda: {"temperature": 2.0, "top_p": 1.0, "top_k": 0}),
    ServedFault("num_predict cuts answers", "server answers", "answers", "num_predict",
                "the Modelfile's own limit cuts answers", lambda: {"num_predict": 5}),
]  # fmt: skip


def served(client: Client, parameters: dict[str, Any], template: str = "") -> Subject:
    """The clean chain's Q4_K_M with such parameters, judged on the server."""
    clean = fault_chain()
    file = clean.export.quantized.folder / clean.export.quantized.facts.files[0].name
    settings = {"num_ctx": 2048, "temperature": 0.0, "repeat_penalty": 1.0} | parameters
    request = {"files": {file.name: client.upload(file)}, "system": SYSTEM, "parameters": settings}
    client.create(NAME, request | ({"template": template} if template else {}))
    try:
        tuned = Tuned.of(clean.recipe, clean.adapter, clean.golden, load_tokenizer(clean.adapter.folder))
        model = ServedModel(client, NAME, client.show(NAME), file)
        return judge_served(model, tuned, clean.golden.folder, SYSTEM, whole=True)  # as its file's weights show
    finally:
        client.delete(NAME)
