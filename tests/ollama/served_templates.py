"""One chat template on one real server: what was predicted, what a plain `FROM model.gguf` does, what the mended file does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ollama.tiny import special_texts, tiny_gguf, vocabulary_of
from toolkit.errors import ParityError
from toolkit.ollama.client import Client
from toolkit.ollama.conversations import (
    Expected,
    Outcome,
    check_conversations,
    differing,
    expected_texts,
    further_conversations,
)
from toolkit.ollama.known import KnownTemplate
from toolkit.ollama.predict import Prediction, predict
from toolkit.ollama.repair import repaired
from toolkit.ollama.syntax import Modelfile

SYSTEM = "You are a careful doctor. Answer in one sentence."


@dataclass(frozen=True)
class Reality:
    """What the server stored and chose."""

    attached: str
    """The Go template that it put beside the file; empty: none."""
    stops: tuple[str, ...]
    selected: str
    """By its log: gguf_chat_template, go_template, renderer …; empty where this version does not tell."""


@dataclass(frozen=True)
class Row:
    """A template's result on one server."""

    name: str
    version: str
    predicted: Prediction
    real: Reality
    plain: list[Outcome]
    mended: list[Outcome]
    unmended: str = ""
    """Why the repair was refused."""

    @property
    def as_predicted(self) -> bool:
        """Whether the server stored, and chose, what was predicted."""
        predicted, real = self.predicted, self.real
        chosen = {"own Jinja": "gguf_chat_template", "attached Go template": "go_template"}.get(predicted.how, "")
        attached = predicted.distance is not None
        same = attached == bool(real.attached) and tuple(predicted.stops or ()) == real.stops
        return same and real.selected in {"", chosen}


def expected_of(template: str, vocabulary: str = "qwen2") -> tuple[Callable[[str], list[Expected]], str]:
    """What the training template makes of the conversations, given the served one, and the BOS text that the tokenizer adds."""
    bos, eos, by_itself = special_texts(vocabulary)
    conversations = further_conversations(SYSTEM, [text for text in (bos, eos) if text])

    def expected(served: str) -> list[Expected]:
        return expected_texts(conversations, template, bos, eos, served=served)

    return expected, bos if by_itself else ""


def measure(
    client: Client,
    version: str,
    name: str,
    template: str,
    known: Sequence[KnownTemplate] | None,
    folder: Path,
    vocabulary: str = "",
) -> Row:
    """Predict, create plainly, mend where it differs, prove.

    Args:
        folder: for the models; the server has its own `models` and `log` in it.
        vocabulary: of the tree; empty: the one that goes with the template's name.
    """
    vocabulary = vocabulary or vocabulary_of(name)
    gguf = tiny_gguf(folder, "plain", template, vocabulary)
    prediction = predict(template, {"general.architecture": "llama"}, Modelfile(), version, known)
    expected, bos = expected_of(template, vocabulary)
    before = (folder / "log").stat().st_size
    client.create("template", {"files": {"model.gguf": client.upload(gguf)}})
    plain = check_conversations(client, "template", expected(template), bos)
    real = _real(folder / "models", (folder / "log").read_bytes()[before:].decode(errors="replace"))
    client.delete("template")
    if not differing(plain, version):
        return Row(name, version, prediction, real, plain, plain)
    try:
        repair = repaired(client, "template", gguf, folder / "mended.gguf", template, expected, bos)
        return Row(name, version, prediction, real, plain, repair.after)
    except ParityError as error:
        return Row(name, version, prediction, real, plain, [], error.message)


def _real(models: Path, log: str) -> Reality:
    """From the model's manifest, where each part is a file, and from what the server wrote while it loaded."""
    manifest = json.loads((models / "manifests/registry.ollama.ai/library/template/latest").read_text(encoding="utf-8"))

    def layer(kind: str) -> str:
        digest = next((x["digest"] for x in manifest["layers"] if x["mediaType"].endswith(f".image.{kind}")), None)
        return (models / "blobs" / digest.replace(":", "-")).read_text(encoding="utf-8") if digest else ""

    selected = re.findall(r'msg="template selection".* selected=(\w+)', log)
    stops = json.loads(layer("params") or "{}").get("stop") or ()
    return Reality(layer("template"), tuple(stops), selected[-1] if selected else "")


def counted(outcomes: Sequence[Outcome]) -> tuple[int, int, str]:
    """How many conversations differ somewhere, of how many that could be asked, and the first difference."""
    asked = {o.conversation for o in outcomes if o.result != "not applicable"}
    wrong = differing(outcomes)
    first = f"{wrong[0].conversation}: {wrong[0].detail}" if wrong else ""
    return len({o.conversation for o in wrong}), len(asked), first
