"""The Modelfile of a recipe: the user's partial one, checked and completed; and its parameters as a server shows them."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import ToolkitError, UsageError
from toolkit.models.bases import read_chat_template, settings_folder
from toolkit.models.chat_template import template_file
from toolkit.models.ends import is_mark
from toolkit.ollama.syntax import Modelfile, Value, read_modelfile
from toolkit.recipe.schema import Recipe

if TYPE_CHECKING:
    from toolkit.models.pictures import PictureRules

DEFAULT_CONTEXT = 2048
_CONTEXT_STEP = 1024
CANDIDATE = "candidate"
_HOST, _NAMESPACE, _NAME = (
    r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}",
    r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}",
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}",
)

_STORED = re.compile(r"^FROM .*sha256[-:]([0-9a-f]{64})$", re.MULTILINE)

_NOT_YOURS = {
    "models": ("FROM", "the tool names the GGUF file that the certificate is about"),
    "adapter": ("ADAPTER", "Ollama 0.34 refuses adapters; this tool merges the adapter into the GGUF"),
    "template": ("TEMPLATE", "the GGUF carries the chat template that was trained with, and that one is served"),
    "renderer": ("RENDERER", "the GGUF's own chat template is served"),
    "parser": ("PARSER", "the GGUF's own chat template is served"),
    "drafts": ("DRAFT", "the certificate is about one model"),
}


def check_name(model: str) -> list[str]:
    """Why Ollama would refuse this model name, or its candidate's; empty when it would not."""
    path, tag = full_name(model).rsplit(":", 1)
    parts = [*path.split("/"), tag]
    patterns = [_HOST, _NAMESPACE, _NAME, _NAME][-len(parts) :]
    if len(parts) > 4 or not all(re.fullmatch(pattern, part) for pattern, part in zip(patterns, parts)):
        return [
            f"ollama.model: Ollama refuses the name {model!r}: it takes [namespace/]name[:tag] of letters, digits, '.', '_' and "
            "'-' (no '.' in the namespace), at most 80 characters each"
        ]
    if has_tag(model) and len(tag) + len(CANDIDATE) + 1 > 80:
        return [f"ollama.model: the tag {tag!r} is too long: leave room for -{CANDIDATE}, 80 characters in all"]
    return []


def candidate_name(model: str) -> str:
    """`medical` → `medical:candidate`; `medical:v2` → `medical:v2-candidate`."""
    return f"{model}-{CANDIDATE}" if has_tag(model) else f"{model}:{CANDIDATE}"


def full_name(model: str) -> str:
    """With the tag that Ollama adds by itself."""
    return model if has_tag(model) else f"{model}:latest"


def has_tag(model: str) -> bool:
    """Whether a name says its tag; a colon before the last slash belongs to a host's port."""
    return ":" in model.rpartition("/")[2]


def check_modelfile(recipe: Recipe) -> list[UsageError]:
    """Faults of the model's name and of the recipe's partial Modelfile, all at once; empty when they can be used.

    Raises:
        UsageError: it cannot be read or parsed; names file and line.
    """
    source = recipe.ollama.modelfile
    names = [UsageError(fault, "Change ollama.model in the recipe.") for fault in check_name(recipe.ollama.model)]
    if source is None:
        return names
    partial = read_modelfile(Path(source), partial=True)
    faults = _faults(partial, recipe, _pictures(recipe)) + _stop_words(partial, recipe)
    return names + [UsageError(fault, f"Mend {source} and run again.") for fault in faults]


def _faults(partial: Modelfile, recipe: Recipe, pictures: PictureRules | None) -> list[str]:
    source = recipe.ollama.modelfile
    faults = [f"{source}: remove {name}: {why}" for field, (name, why) in _NOT_YOURS.items() if getattr(partial, field)]
    if partial.system is not None and partial.system != recipe.system:
        faults.append(
            f"{source}: SYSTEM differs from the recipe's system text, which was trained with; it has one place, "
            "the recipe: remove SYSTEM here"
        )
    if any(message.role == "system" for message in partial.messages):
        faults.append(f"{source}: MESSAGE system: the system text has one place, the recipe's `system`")
    context = partial.parameter("num_ctx")
    least = 0 if pictures is None else pictures.min_tokens
    needed = _needed_context(recipe, least)
    if context is not None and context < needed:  # type: ignore[operator]
        seen = f", {least} of which a picture takes at least" if least else ""
        faults.append(
            f"{source}: PARAMETER num_ctx {context} is too small: the recipe trains and proves up to "
            f"{needed} tokens (train.max_length, golden.max_new_tokens){seen}"
        )
    return faults


def _pictures(recipe: Recipe) -> PictureRules | None:
    """What the server makes of pictures, as far as the base can be asked already."""
    from toolkit.models.pictures import rules_of

    with contextlib.suppress(ToolkitError, OSError, ValueError, KeyError):
        return rules_of(settings_folder(recipe.base))
    return None


def _stop_words(partial: Modelfile, recipe: Recipe) -> list[str]:
    """Stop words at which the tuned model does not end, as far as the base alone tells: neither a token of its own nor a mark of
    its template, as '### Instruction:'. The server's model is judged by `toolkit.parity.checks.ends` in any case.
    """
    words = [str(value) for name, value in partial.parameters if name == "stop"]
    if not words or recipe.adapter is not None:  # an adapter may bring tokens and a template of its own
        return []
    with contextlib.suppress(ToolkitError, OSError, ValueError, KeyError):
        folder = settings_folder(recipe.base)
        tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
        named = recipe.train.chat_template
        own = {token["content"] for token in tokens}
        template = str(read_chat_template(folder)) if named is None else template_file(named)
        return [
            f"{recipe.ollama.modelfile}: PARAMETER stop {json.dumps(word, ensure_ascii=False)}: the tuned model does not end "
            "there, so answers would be cut; its own ends are added by themselves"
            for word in words
            if word not in own and not is_mark(word, template)
        ]
    return []


def _needed_context(recipe: Recipe, picture: int = 0) -> int:
    """Tokens of a prompt and its answer.

    Args:
        picture: tokens of a picture; a `train.max_length` that is more holds one, since pictures are never cut.
    """
    length = recipe.train.max_length
    return (length if length > picture else length + picture) + recipe.golden.max_new_tokens


def complete(
    partial: Modelfile,
    recipe: Recipe,
    files: tuple[str, ...],
    stops: Sequence[str],
    gguf_license: str | None = None,
    pictures: PictureRules | None = None,
) -> Modelfile:
    """Fill in what the user's partial Modelfile leaves to the tool.

    FROM, SYSTEM, `num_ctx` (always: Ollama's default depends on the machine), `temperature` and `repeat_penalty` (Ollama's
    defaults differ between versions; 0 and 1 serve what the certificate is about: the greedy answer), a stop word for
    each end token, and LICENSE. No TEMPLATE: the GGUF's own is served. A model that sees gets a second FROM, its projector,
    and a context for the largest picture that the server may make of a photo.

    Args:
        files: the GGUF file, and the projector of a model that sees, as FROM shall name them.
        stops: texts of the model's end tokens.
        gguf_license: `general.license` of the GGUF, which joins the base's and the recipe's.
        pictures: what the server makes of pictures; None: it sees none.

    Raises:
        UsageError: with every fault of the partial Modelfile.
    """
    faults = _faults(partial, recipe, pictures)
    if faults:
        raise UsageError("\n".join(faults), f"Mend {recipe.ollama.modelfile} and run again.")
    needed = _needed_context(recipe)
    if pictures is not None:
        needed = _needed_context(recipe, pictures.min_tokens) + pictures.max_tokens - pictures.min_tokens
    context = max(DEFAULT_CONTEXT, math.ceil(needed / _CONTEXT_STEP) * _CONTEXT_STEP)
    defaults: list[tuple[str, Value]] = [("num_ctx", context), ("temperature", 0.0), ("repeat_penalty", 1.0)]
    parameters = [*partial.parameters, *((n, v) for n, v in defaults if partial.parameter(n) is None)]
    parameters += [("stop", stop) for stop in dict.fromkeys(stops) if stop and ("stop", stop) not in parameters]
    names = f"base model: {recipe.base}; tuning and its data: {recipe.license}"
    return replace(
        partial,
        models=files,
        system=recipe.system or None,
        parameters=tuple(parameters),
        licenses=partial.licenses or (f"{gguf_license or recipe.license} ({names})",),
    )


def stored_files(shown: dict[str, Any]) -> list[str]:
    """Digests of the files behind a model, `sha256:…`, in the order of the FROM lines of `/api/show`."""
    return [f"sha256:{digest}" for digest in _STORED.findall(str(shown.get("modelfile", "")))]


def shown_parameters(text: str) -> dict[str, Any]:
    """`/api/show` lists a parameter a line: its name and its value as Go prints it."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "stop":
            found.setdefault(name, []).append(_go_text(value.strip()))
        else:
            found[name] = json.loads(value)
    return found


def _go_text(quoted: str) -> str:
    # Go's %#v uses back quotes where it can, and \x and \a, which JSON has not.
    if quoted.startswith("`"):
        return quoted[1:-1]
    with contextlib.suppress(ValueError):
        return str(json.loads(quoted))
    return quoted[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")
