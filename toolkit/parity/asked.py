"""What a user wants compared, and what can be known to be wrong of it before anything is computed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, UsageError
from toolkit.models.gguf_file import read_gguf
from toolkit.models.tokenizer import load_tokenizer
from toolkit.recipe.schema import Recipe

NOTHING = "there is nothing to compare: no export is named"
NAME_ONE = "Name --gguf FILE, --hf FOLDER or --ollama NAME."


@dataclass(frozen=True)
class Asked:
    """What the user wants compared."""

    adapter: Path | None = None
    """A PEFT folder: what was trained."""
    base: str = ""
    hf: Path | None = None
    """A merged folder; without an adapter it is what everything else is compared with."""
    ggufs: tuple[Path, ...] = ()
    mmproj: Path | None = None
    """The file that sees, beside those of language models."""
    ollama: str = ""
    system: str = ""
    prompts: Path | None = None
    load_in_4bit: bool | None = None
    """Whether the adapter was trained on the base in NF4; None: told from its files."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template was told in training."""
    repair: Path | None = None
    """Gets a copy of the GGUF file that Ollama serves as it was trained, where it would not serve the file itself so."""

    @property
    def exports(self) -> bool:
        """Whether anything is named that could be compared with what was trained."""
        return bool(self.hf or self.ggufs or self.ollama)

    @classmethod
    def of(cls, ggufs: tuple[Path, ...] = (), others: tuple[Path, ...] = (), **options: Any) -> Asked:
        """From the command's options as they come."""
        return cls(ggufs=(*ggufs, *others), **options)


def refuse_ignored(asked: Asked, with_recipe: bool, of_recipe: dict[str, Any]) -> None:
    """Refuse options that would change nothing.

    Args:
        of_recipe: options that only a recipe can follow (--profile, --set, --force), by name.

    Raises:
        UsageError: naming all of them.
    """
    if not with_recipe:
        ignored = [name for name, value in of_recipe.items() if value]
        if ignored:
            raise UsageError(
                f"{', '.join(ignored)}: there is no recipe to change", "Name the recipe first, or leave it out."
            )
        return
    of_others = {
        "--adapter": asked.adapter, "--base": asked.base, "--system": asked.system, "--prompts": asked.prompts,
        "--load-in-4bit": asked.load_in_4bit is not None, "--chat-template-kwargs": asked.chat_template_kwargs,
        "--force": asked.exports and of_recipe.get("--force"),
    }  # fmt: skip
    ignored = [name for name, value in of_others.items() if value]
    if ignored:
        raise UsageError(
            f"{', '.join(ignored)}: beside a recipe this changes nothing",
            "The recipe names all that: leave it out, or change the recipe with --set (golden.prompts, system, base, "
            "train.chat_template_kwargs).",
        )


def check_mmproj(asked: Asked) -> None:
    """Raises UsageError where the file that sees is none, or stands alone."""
    if asked.mmproj is None:
        return
    if not (asked.ggufs or asked.ollama):
        raise UsageError(
            "--mmproj names the file that sees, and its language model is not named", "Name that too: --gguf FILE."
        )
    if not asked.mmproj.is_file():
        raise UsageError(f"there is no file {asked.mmproj}", "Name a GGUF file.")
    kind = read_gguf(asked.mmproj).metadata.get("general.type")
    if kind != "mmproj":
        raise UsageError(
            f"{asked.mmproj} is no file that sees: its general.type is {kind or 'missing'}, not mmproj",
            "Name the file that the converter writes with --mmproj.",
        )


def check_repair(asked: Asked) -> None:
    """Raises UsageError where a repair cannot be: more than one file, or a place that is taken."""
    if asked.repair is None:
        return
    if len(asked.ggufs) != 1:
        raise UsageError("--repair mends one file", "Name exactly one --gguf FILE.")
    if asked.repair.exists():
        raise UsageError(f"--repair: {asked.repair} is there already", "Name another file, or remove it.")


def recipe_of(asked: Asked) -> Recipe:
    """The recipe under which an adapter, or a merged folder, is compared; its name tells other inputs apart.

    Raises:
        UsageError: neither is given.
    """
    from toolkit.recipe.adopted import recipe_for_adapter

    tuned = asked.adapter or asked.hf
    if tuned is None:
        raise UsageError(
            "there is nothing to compare with: name what was trained",
            "--adapter FOLDER (a PEFT adapter), --hf FOLDER (a merged model), or a recipe. Two exports alone cannot tell "
            "which of them is right.",
        )
    if asked.adapter is not None and not asked.exports:
        raise UsageError("there is nothing to compare with the adapter", NAME_ONE)
    if asked.adapter is None and not (asked.ggufs or asked.ollama):
        raise UsageError(
            f"there is nothing to compare {asked.hf} with: alone, a merged folder is what others are compared with",
            "Name what was trained (--adapter FOLDER) to judge it, or what was made of it: --gguf FILE or --ollama NAME.",
        )
    told = json.dumps([str(tuned.resolve()), asked.base, asked.system, str(asked.prompts), asked.load_in_4bit])
    told += json.dumps(dict(asked.chat_template_kwargs), sort_keys=True) if asked.chat_template_kwargs else ""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", tuned.resolve().name).strip("-._") or "model"
    name = f"verify-{slug[:40]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    base = asked.base or ("" if asked.adapter else str(tuned))
    return recipe_for_adapter(
        tuned,
        name,
        base,
        asked.prompts,
        asked.system,
        load_in_4bit=asked.load_in_4bit,
        chat_template_kwargs=asked.chat_template_kwargs,
    )


def check_exports(ggufs: tuple[Path, ...], merged: Path | None, base: Path) -> None:
    """What can be known to be wrong of an export before anything is computed.

    Raises:
        DataError: a GGUF of another architecture; a folder that is no whole model.
    """
    from toolkit.parity.checks.structure import other_architecture

    for file in ggufs:
        if other := other_architecture(base, read_gguf(file)):
            raise DataError(
                f"{file}: {other}", f"The base is {base}. Or name the base that this file was made from: --base."
            )
    if merged is not None:
        _check_merged(merged)


def _check_merged(folder: Path) -> None:
    from toolkit.parity.checks.structure import folder_config
    from toolkit.parity.exported import FolderWeights

    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", "Name the folder of the merged model: --hf FOLDER")
    if getattr(folder_config(folder).get_text_config(), "quantization_config", None) is not None:
        raise DataError(f"{folder} is quantized: its weights cannot be compared", "Name the merge in 16 or 32 bits.")
    FolderWeights(folder)
    try:
        load_tokenizer(folder)
    except Exception as error:  # each tokenizer class fails in its own way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"the tokenizer in {folder} cannot be read: {reason}", "Save it there with the model."
        ) from error
