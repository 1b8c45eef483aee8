"""What an Ollama will make of a GGUF's chat template, told offline: before anything is uploaded, and without a server.

The rules are those of Ollama's source, read in 0.30.0 to 0.34.1 (server/create.go, model.go, images.go, routes.go and
template/template.go of each); where versions differ, the difference is data below. What a server then does is proved by
`toolkit.ollama.conversations`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from toolkit.models.chat_template import THINKING
from toolkit.ollama.known import KnownTemplate
from toolkit.ollama.syntax import Modelfile

How = Literal[
    "own Jinja", "attached Go template", "TEMPLATE of the Modelfile", "renderer", "no template of its own", "unknown"
]
TOO_FAR = 100
"""A template at this edit distance or farther from every known one is left alone (template/template.go, Named)."""

RENDERER_OF = {
    "gemma4": "gemma4",
    "laguna": "laguna",
    "nemotron_h": "nemotron-3-nano",
    "nemotron_h_moe": "nemotron-3-nano",
    "nemotron_h_omni": "nemotron-3-nano",
}
"""Architectures whose prompts Ollama writes in Go, whatever template the file carries (server/create.go, createModel; the same in
0.30.0 to 0.34.1). No field of a create request turns that off."""
RENDERER_STOPS = {"gemma4": ("<turn|>",)}
_HARMONY = ("gptoss", "gpt-oss")  # server/routes.go, shouldUseHarmony

GENERATE_RENDERS = (0, 31, 0)
"""Since this version `/api/generate` uses the file's own template too; 0.30.0 gives the model the bare question there, whatever
the file says (server/routes.go, GenerateHandler)."""
COUNTS_WHAT_IT_KEPT = (0, 31, 0)
"""Since this version `prompt_eval_count` is the whole prompt; 0.30.0 leaves out what the server still had from the request before
(llm/llama_server.go)."""
_SAME_ABILITIES_COUNT = (0, 31, 0)
"""Since this version the file's own template also wins with the same abilities as the Go one when it alone gives tools' answers
back (server/images.go, shouldPreferChatTemplate; 0.30.0 wants more abilities)."""


@dataclass(frozen=True)
class Prediction:
    """What a plain `ollama create` leads to."""

    how: How
    name: str = ""
    """Of the known template or the renderer."""
    distance: int | None = None
    """Edit distance to the nearest known template; None: none nearer than `TOO_FAR`, or not looked at."""
    stops: tuple[str, ...] | None = ()
    """Stop words that Ollama adds unless the Modelfile names some itself; None: it adds some, and which is not known here."""
    reason: str = ""

    @property
    def serves_own(self) -> bool:
        """Whether prompts come from the GGUF's own template."""
        return self.how == "own Jinja"


def predict(
    template: str | None,
    metadata: Mapping[str, Any],
    modelfile: Modelfile,
    version: str,
    known: Sequence[KnownTemplate] | None,
) -> Prediction:
    """Say what an Ollama of this version will serve.

    Args:
        template: the GGUF's `tokenizer.chat_template`.
        metadata: the GGUF's; `general.architecture` decides about renderers.
        modelfile: what is sent along; TEMPLATE, RENDERER, PARSER and stop words count.
        version: of the server, like "0.34.1".
        known: of `known_templates`; None when this machine does not tell.
    """
    architecture = str(metadata.get("general.architecture", ""))
    if modelfile.renderer or modelfile.parser or architecture in RENDERER_OF:
        return _rendered(architecture, modelfile)
    own_stops = "stop" in modelfile.api_parameters()
    if modelfile.template is not None:
        return _explicit(template, architecture, modelfile.template, version)
    if not template:
        return Prediction(
            "no template of its own", reason="the file has no chat template: llama.cpp writes plain ChatML"
        )
    if known is None:
        return Prediction(
            "unknown",
            stops=None,
            reason=f"the templates that Ollama {version} knows are not on this machine: neither its program nor its source",
        )
    near = nearest_known(template, known)
    if near is None:
        return Prediction("own Jinja", reason=f"no known template is within an edit distance of {TOO_FAR}")
    found, distance = near
    stops = () if own_stops else found.stops
    if found.go is None:
        reason = f"its template is {distance} edits from the known {found.name}; what replaces it is not readable here"
        return Prediction("attached Go template", found.name, distance, stops, reason)
    if prefers_own(template, found.go, version):
        reason = f"{distance} edits from the known {found.name}, which can do less than the file's own: only its stop words come"
        return Prediction("own Jinja", found.name, distance, stops, reason)
    reason = f"its template is {distance} edits from the known {found.name}, and below {TOO_FAR} Ollama takes its own version"
    return Prediction("attached Go template", found.name, distance, stops, reason)


def _rendered(architecture: str, modelfile: Modelfile) -> Prediction:
    if modelfile.renderer or modelfile.parser:
        name = modelfile.renderer or RENDERER_OF.get(architecture, "")
        if name:
            return Prediction("renderer", name, reason="the Modelfile or the architecture names a renderer")
        how: How = "TEMPLATE of the Modelfile" if modelfile.template else "no template of its own"
        return Prediction(how, modelfile.parser or "", reason="with PARSER and no RENDERER, Ollama uses TEMPLATE only")
    name = RENDERER_OF[architecture]
    stops = () if "stop" in modelfile.api_parameters() else RENDERER_STOPS.get(architecture, ())
    return Prediction(
        "renderer", name, None, stops, f"Ollama writes every prompt of the architecture {architecture} itself"
    )


def _explicit(template: str | None, architecture: str, go: str, version: str) -> Prediction:
    if architecture in _HARMONY and "<|start|>" in go and "<|end|>" in go:
        return Prediction("TEMPLATE of the Modelfile", "harmony", reason="a gpt-oss model with a harmony TEMPLATE")
    if template and prefers_own(template, go, version):
        return Prediction("own Jinja", reason="the file's own template can do more than TEMPLATE, so Ollama prefers it")
    return Prediction("TEMPLATE of the Modelfile", reason="the Modelfile says so")


def told_before_training(architecture: str, template: str, fields: Mapping[str, Any]) -> str:
    """What to know of an architecture whose prompts Ollama writes itself; empty where it takes the file's template.

    Args:
        template: of the base.
        fields: what it is told in training.
    """
    if architecture not in RENDERER_OF:
        return ""
    told = f"Ollama writes every prompt of the architecture {architecture} itself, whatever template the file carries"
    if THINKING in template and fields.get(THINKING) is not True:
        told += ", and asks for thoughts unless an app says otherwise; to train the prompts that it writes: "
        told += f"--set 'train.chat_template_kwargs={{{THINKING}: true}}'"
    return told


def nearest_known(template: str, known: Sequence[KnownTemplate]) -> tuple[KnownTemplate, int] | None:
    """The nearest known template and its distance (the first of several, as Ollama takes it); None when all are too far."""
    best: tuple[KnownTemplate, int] | None = None
    for one in known:
        distance = edit_distance(template, one.jinja, (best[1] if best else TOO_FAR) - 1)
        if distance is not None:
            best = (one, distance)
    return best


def edit_distance(a: str, b: str, most: int) -> int | None:
    """Levenshtein distance in characters, as github.com/agnivade/levenshtein counts it; None when it is above `most`.

    By furthest-reaching points on diagonals (Ukkonen 1985): with a small limit, time is about the texts' length.
    """
    if abs(len(a) - len(b)) > most:
        return None
    goal = len(b) - len(a)
    reached: dict[int, int] = {}  # diagonal (column - row) → row reached with so many edits
    for edits in range(most + 1):
        new: dict[int, int] = {}
        for diagonal in range(-edits, edits + 1):
            if edits == 0:
                row = 0
            else:
                # One more: replaced, only in a, only in b.
                row = max(
                    reached.get(diagonal, -2) + 1, reached.get(diagonal + 1, -2) + 1, reached.get(diagonal - 1, -2)
                )
            row = min(row, len(a), len(b) - diagonal)
            if row < 0 or row + diagonal < 0:
                continue
            row = _slide(a, b, row, row + diagonal)
            new[diagonal] = row
            if diagonal == goal and row == len(a):
                return edits
        reached = new
    return None


def _slide(a: str, b: str, row: int, column: int) -> int:
    step = 256  # long equal stretches by slices: Python compares them much faster than characters
    while step:
        while a[row : row + step] == b[column : column + step] and row + step <= len(a) and column + step <= len(b):
            row, column = row + step, column + step
        step //= 4
    return row


def prefers_own(template: str, go: str, version: str) -> bool:
    """Whether Ollama uses the file's own template although a Go template is attached, because it can do more."""
    mine, theirs = abilities(template), _go_abilities(go)
    if len(mine) > len(theirs):
        return not _go_round_trip(go) or _round_trip(template)
    if numbers(version) < _SAME_ABILITIES_COUNT or mine != theirs or "tools" not in mine:
        return False
    return _round_trip(template) and not _go_round_trip(go)


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers, to compare; empty when it is none."""
    return tuple(int(part) for part in re.split("[-+]", version, maxsplit=1)[0].split(".") if part.isdigit())


def thinks(template: str) -> bool:
    """Whether Ollama takes a Jinja template for one of a thinking model; it then asks for thoughts unless told otherwise."""
    if "<think>" in template and "</think>" in template:
        return True
    split = "content.split('</think>')" in template or 'content.split("</think>")' in template
    return split and "reasoning_content" not in template and "<SPECIAL_12>" not in template


def abilities(template: str) -> set[str]:
    """What Ollama lists of a model with this Jinja template (`ollama show`)."""
    found = {"tools"} if takes_tools(template) else set()
    return found | ({"thinking"} if thinks(template) else set())


def takes_tools(template: str) -> bool:
    """Whether Ollama sends tools to a model with this Jinja template; it refuses them otherwise."""
    return "tools" in template or "tool_call" in template


def _round_trip(template: str) -> bool:
    if not takes_tools(template) or not ("tool_calls" in template or "assistant_tool_call" in template):
        return False
    marks = ["tool_response", "tool_results", "ipython"]
    marks += [f"role{q}] == {r}tool{r}" for q in "'\"" for r in "'\""] + [f"message.role == {r}tool{r}" for r in "'\""]
    return any(mark in template for mark in marks)


def _fields(go: str) -> set[str]:
    # Names after a dot within actions; Ollama lowers their case too (template/template.go, Vars).
    return {name.lower() for action in re.findall(r"\{\{.*?\}\}", go, re.S) for name in re.findall(r"\.(\w+)", action)}


def _go_abilities(go: str) -> set[str]:
    fields = _fields(go)
    found = {"tools"} if "tools" in fields else set()
    found |= {"insert"} if "suffix" in fields else set()
    # Ollama looks for constant text around .Thinking inside the loop over messages.
    return found | ({"thinking"} if "thinking" in fields and "messages" in fields else set())


def _go_round_trip(go: str) -> bool:
    fields = _fields(go)
    told = 'eq .Role "tool"' in go or "tool_response" in go or "TOOL_RESULTS" in go
    return "tools" in fields and "toolcalls" in fields and told
