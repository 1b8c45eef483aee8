"""Convert the merged HF folder to GGUF with the converter of the pinned llama.cpp, in a process of its own."""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

import yaml
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from toolkit.errors import MAKE_ROOM, DataError, ResourceError
from toolkit.export.described import description
from toolkit.export.head import END, check_end, unknown_ends
from toolkit.export.llama_cpp import converter_environment, converter_fault, tree
from toolkit.export.tree_process import tree_worker
from toolkit.models.bases import (
    CONFIG_FILES,
    EMBEDDED,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    embedded_base,
    read_chat_template,
)
from toolkit.models.chat_template import NOTHING_TOLD, as_trained
from toolkit.models.ends import ends_of
from toolkit.models.gguf_file import GGUFHeader, read_gguf
from toolkit.models.gguf_metadata import copy_with_texts
from toolkit.models.safetensors_file import model_files
from toolkit.models.tokenizer import load_tokenizer
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, file_sha256, write_json
from toolkit.run.bars import passing_bar
from toolkit.run.facts import AdapterFacts, BaseFacts, DatasetFacts, GGUFFacts, GGUFFile, ModelFacts
from toolkit.run.hardware import free_disk_bytes

PROTECTION = (
    "{# This comment changes nothing in the text. It is here so that Ollama serves this very template: a template within an "
    "edit distance of 100 of one that Ollama knows is replaced by Ollama's own version of that one, which may differ from "
    "what the model was trained with. #}"
)
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_BAR = re.compile(r"Writing: +(\d+)%")


def protect_template(template: str) -> str:
    """Put the protecting comment at the template's head; the template renders the same. Once is enough."""
    if template.startswith(PROTECTION):
        return template
    # Jinja as transformers and llama.cpp set it up takes the line break after a comment along (trim_blocks), and the spaces
    # before a block at the head of a line (lstrip_blocks): white space at the template's head must stay at a line's head.
    return PROTECTION + ("\n" if template[:1].isspace() else "") + template


def convert(
    recipe: Recipe,
    adapter: Artifact[AdapterFacts],
    model: Artifact[ModelFacts],
    out: Path,
    dataset: Artifact[DatasetFacts] | None = None,
) -> GGUFFacts:
    """Write `<name>-<type>.gguf` into `out`, of the type `recipe.export.converted` (F32, F16 or BF16).

    Beside it goes `<name>-mmproj-F16.gguf` of a model that was trained on pictures: F32 where the other file is.

    Raises:
        DataError: the model folder is damaged, or of an architecture that llama.cpp does not know.
        ResourceError: the disk is full, or will be.
        ExternalToolError: llama.cpp's converter is missing or fails.
    """
    file_type = recipe.export.converted
    target = out / f"{recipe.name}-{file_type}.gguf"
    needed = model.facts.parameters * _ITEM_BYTES[file_type]
    if (free := free_disk_bytes(out)) < needed * 1.05:
        raise ResourceError(
            f"the converted file needs {needed / 1e9:.1f} GB, {out} has {free / 1e9:.1f} GB free",
            f"{MAKE_ROOM}; then run again.",
        )
    with tempfile.TemporaryDirectory(dir=out, prefix=".view-") as scratch:
        # The converter takes names for the metadata from the folder's name.
        view = Path(scratch) / recipe.name
        link_view(model.folder, view, adapter.facts.chat_template_kwargs)
        write_json(Path(scratch) / "metadata.json", metadata(recipe, adapter, model.facts, dataset))
        # The one thing that the converter takes only from a model card.
        card = {"license": licenses(recipe, adapter.facts)}
        (view / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n", encoding="utf-8")
        run_converter(view, target, file_type, Path(scratch) / "metadata.json")
        mmproj = None
        if adapter.facts.pictures is not None:
            kind = "F32" if file_type == "F32" else "F16"
            sees = out / f"{recipe.name}-mmproj-{kind}.gguf"
            run_converter(view, sees, kind, Path(scratch) / "metadata.json", projector=True)
            mmproj = _described(sees, kind, read_gguf(sees))
    header = read_gguf(target)
    check_end_token(model.folder, header, target)
    if name_ends(model.folder, target):
        header = read_gguf(target)
    protected = str(header.metadata.get("tokenizer.chat_template", "")).startswith(PROTECTION[:40])
    return GGUFFacts(
        files=[_described(target, file_type, header)],
        mmproj=mmproj,
        architecture=header.architecture,
        template_protected=protected,
    )


def _described(file: Path, file_type: str, header: GGUFHeader) -> GGUFFile:
    return GGUFFile(
        name=file.name,
        file_type=file_type,
        bytes=file.stat().st_size,
        sha256=file_sha256(file),
        tensors=len(header.tensors),
    )


def link_view(model: Path, view: Path, fields: Mapping[str, Any] = NOTHING_TOLD) -> None:
    """Make a folder that shows the model with its chat template protected; everything else is linked, not copied.

    Args:
        fields: what the template was told in training.

    Raises:
        DataError: the model has no chat template, or damaged weights.
    """
    template = read_chat_template(model)
    if template is None:
        raise DataError(f"{model} has no chat template", "Merge again: the template comes from the base.")
    view.mkdir()
    weights = {path.name for path in model_files(model).values()}
    others = (*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES, "model.safetensors.index.json")
    for name in (*others, *sorted(weights)):
        if (model / name).is_file() and not name.startswith("chat_template"):
            (view / name).symlink_to((model / name).resolve())
    (view / "chat_template.jinja").write_text(protect_template(as_trained(template, fields)), encoding="utf-8")
    # The converter prefers a template in tokenizer_config.json, where transformers prefers chat_template.jinja.
    settings = view / "tokenizer_config.json"
    if settings.is_file():
        values = json.loads(settings.read_text(encoding="utf-8"))
        if values.pop("chat_template", None) is not None:
            settings.unlink()
            write_json(settings, values)


def metadata(
    recipe: Recipe, adapter: Artifact[AdapterFacts], model: ModelFacts, dataset: Artifact[DatasetFacts] | None
) -> dict[str, Any]:
    """What the GGUF says of itself, as the converter's `--metadata` reads it. Names, never paths of this machine."""
    method, base = adapter.facts.method, base_model(adapter.facts.base)
    found: dict[str, Any] = {
        "general.name": known_name(recipe.name, Path(adapter.facts.base.folder)),
        "general.basename": recipe.name,
        "general.finetune": method,
        "general.description": description(adapter, model, base["name"]),
        "general.base_models": [base],
        "general.tags": ["text-generation", "tune2ollama", method],
        "general.quantized_by": f"tune2ollama {version('tune2ollama')}",
    }
    if dataset is not None:
        found["general.languages"] = [dataset.facts.language]
    if recipe.data is not None:
        found["general.datasets"] = [{"name": Path(source.path).name} for source in recipe.data.readings]
    return found


def known_name(name: str, base: Path) -> str:
    """The model's name, with "phi-3" in it where llama.cpp is to treat the tokenizer as Phi-3's, and only there.

    Phi-3's special tokens swallow the white space after them. llama.cpp lets them do so where `general.name` contains "phi-3" or
    "phi3", whatever the model is, and cannot load such a file without the tokens of Phi-3 (src/llama-vocab.cpp).
    """
    named = re.compile("(phi)-?(3)", re.IGNORECASE)
    if not _like_phi3(base / "tokenizer.json"):
        return named.sub(r"\1 \2", name)
    return name if named.search(name) else f"{name} (phi-3)"


def _like_phi3(tokenizer: Path) -> bool:
    if not tokenizer.is_file():
        return False
    added = {token["content"]: token for token in json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]}
    swallowing = any(token["special"] and token["rstrip"] for token in added.values())
    return swallowing and {"<unk>", "<s>", "</s>", "<|endoftext|>"} <= added.keys()


def licenses(recipe: Recipe, adapter: AdapterFacts) -> str:
    """The base's licence and that of the data, joined as SPDX does."""
    return " AND ".join(dict.fromkeys([adapter.base.license, recipe.license]))


def base_model(base: BaseFacts) -> dict[str, str]:
    """Name, organization and address of the base; of a local folder only the last part of its path."""
    if base.id.startswith(EMBEDDED):
        return dict(embedded_base(base.id).DESCRIPTION)
    if base.revision:
        repository = base.id.partition("@")[0]
        organization, _, name = repository.rpartition("/")
        address = f"https://huggingface.co/{repository}"
        return {"name": name, "organization": organization, "repo_url": address, "version": base.revision[:12]}
    return {"name": Path(base.id).name}


def run_converter(view: Path, target: Path, file_type: str, metadata_file: Path, projector: bool = False) -> None:
    """Run `convert_hf_to_gguf.py`, with its progress on stderr.

    Args:
        projector: write the file that sees, not the language model's.

    Raises:
        DataError: an architecture or tokenizer that it does not know.
        ResourceError: the disk is full.
        ExternalToolError: it fails otherwise; with its last lines.
    """
    arguments = [
        str(view), "--outfile", str(target), "--outtype", file_type.lower(), "--metadata", str(metadata_file),
        *(["--mmproj"] if projector else []),
    ]  # fmt: skip
    environment = {**converter_environment(tree()), "TQDM_DISABLE": ""}  # its bar is read, not shown
    with tree_worker("converter_process", *arguments, environment=environment) as process:
        lines = _show_progress(process.stderr, f"{view.name}'s eyes" if projector else view.name, file_type)
        code = process.wait()
    if code:
        target.unlink(missing_ok=True)
        _raise_failure(target, lines)


def _show_progress(told: IO[bytes], name: str, file_type: str) -> list[str]:
    """Show the converter's own bar (percent) and keep its last lines."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    lines: list[str] = []
    stream = cast(io.BufferedReader, told)
    with passing_bar(*columns) as progress:
        task = progress.add_task(f"converting {name} to {file_type}", total=100)
        pending = ""
        while chunk := stream.read1(4096):
            # tqdm ends its updates with a carriage return.
            *whole, pending = re.split(r"[\r\n]", pending + chunk.decode("utf-8", "replace"))
            for line in whole:
                if match := _BAR.search(line):
                    progress.update(task, completed=int(match[1]))
                elif line.strip():
                    lines.append(line.strip())
                    del lines[:-40]
    return lines


def _raise_failure(target: Path, lines: list[str]) -> None:
    if any(words in "\n".join(lines) for words in ("No space left", "File too large", "Disk quota")):
        raise ResourceError(f"no space to write {target}", f"{MAKE_ROOM}; then run again.")
    raise converter_fault(lines)


def check_end_token(model: Path, header: GGUFHeader, target: Path) -> None:
    """`check_end` of a model folder and the file that was made from it."""
    check_end(load_tokenizer(model).eos_token_id, header.metadata.get(END), target.name, model)


def name_ends(model: Path, target: Path) -> dict[str, int]:
    """Name in the GGUF file the ends of the model that llama.cpp does not know: the token that closes a turn first.

    Returns:
        Key → token that was written into the file.
    """
    ends = ends_of(model, load_tokenizer(model))
    turn = ends.turn.token if ends.turn else None
    first = sorted(ends.tokens, key=lambda token: token != turn)
    named, told = unknown_ends(first, target, read_gguf(target).metadata, target.name)
    if told:
        copy_with_texts(target, target, named)
        Console(file=sys.stderr).print(told, markup=False)
    return named
