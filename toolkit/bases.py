"""A base model, however it is named, as one verified folder that transformers can load.

Nothing of a base is run: safetensors only, no remote code. Imports no torch: the check of a run with nothing to do asks
for the base too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from toolkit import embedded
from toolkit.artifacts import BaseFacts, file_sha256, write_json
from toolkit.errors import DataError, ExternalToolError, ResourceError, ToolkitError, UsageError
from toolkit.places import cache_home
from toolkit.recipe import nearest
from toolkit.safetensors_file import model_files

EMBEDDED = "embedded:"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CONFIG_FILES = ("config.json", "generation_config.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH_ANEW_BELOW = 1 << 20


def resolve_base(base: str) -> BaseFacts:
    """Find, and where needed rebuild or download, a base model, and verify its files.

    Args:
        base: `embedded:smollm2-135m-instruct`, a local folder, or a hub id `org/name@revision`. A hub id without a
            revision stays at the commit that was first seen here; that commit is in the facts.

    Raises:
        UsageError: no such base.
        DataError: the base's files are incomplete, damaged, or would have to be run to be read.
        ExternalToolError: the hub does not answer, or the embedded model is not installed.
    """
    if base.startswith(EMBEDDED):
        folder, revision = _embedded_folder(base)
    elif base and Path(base).expanduser().is_dir():
        folder, revision = Path(base).expanduser().resolve(), ""
    elif (match := _HUB_ID.fullmatch(base)) and not base.startswith((".", "~", "/")):
        folder, revision = _hub_folder(match[1], match[2])
    else:
        raise UsageError(
            f"there is no base model {base}{_near_folder(base)}",
            f"Name {EMBEDDED}{embedded.NAME}, a folder, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct@<commit>.",
        )
    digest = check_folder(folder)
    licence = embedded.LICENSE if base.startswith(EMBEDDED) else _license(folder)
    return BaseFacts(id=base, folder=str(folder), revision=revision, license=licence, digest=digest)


def _near_folder(base: str) -> str:
    path = Path(base).expanduser()
    try:
        return nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()])
    except OSError:
        return ""


def _embedded_folder(base: str) -> tuple[Path, str]:
    if base != EMBEDDED + embedded.NAME:
        raise UsageError(
            f"there is no {base}{nearest(base, [EMBEDDED + embedded.NAME])}", f"Write {EMBEDDED}{embedded.NAME}"
        )
    from filelock import FileLock, Timeout

    source = embedded.find_gguf()
    revision = cached_sha256(source)
    folder = cache_home() / "bases" / f"{embedded.NAME}-{revision[:12]}-{embedded.BUILD}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.with_name(folder.name + ".lock"), timeout=600):
                if not folder.is_dir():
                    embedded.rebuild(source, folder)
        except Timeout as error:
            raise ResourceError(
                f"another run has been building {folder} for ten minutes", "Stop it, run again."
            ) from error
    return folder, revision


def _hub_folder(repository: str, revision: str | None) -> tuple[Path, str]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    place = cache / f"models--{repository.replace('/', '--')}"
    pinned = place / "refs" / (revision or "main")
    commit = revision if revision and _COMMIT.fullmatch(revision) else None
    if commit is None and pinned.is_file():
        commit = pinned.read_text(encoding="utf-8").strip()
    if commit and (place / "snapshots" / commit).is_dir():
        with contextlib.suppress(ToolkitError):  # a download that was interrupted goes on below
            check_folder(place / "snapshots" / commit)
            return place / "snapshots" / commit, commit
    return _download(repository, revision)


def _download(repository: str, revision: str | None) -> tuple[Path, str]:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise ExternalToolError(f"the hub's client is needed to get {repository}", "Run: make setup") from error
    wanted = [*CONFIG_FILES, *TOKENIZER_FILES, "*.safetensors", "*.safetensors.index.json", "README.md", "LICENSE*"]
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(
            f"the hub has no model {repository}{f'@{revision}' if revision else ''} that it shows you",
            "Check the spelling; a model with a licence to accept needs: hf auth login",
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExternalToolError(
            f"{repository} could not be fetched from the hub: {reason}",
            "Check the network and run again: the download goes on where it stopped. Or name a local folder as base.",
        ) from error
    return folder, folder.name


def check_folder(folder: Path) -> str:
    """Verify a model folder, and give its digest: SHA-256 over the names and SHA-256 sums of its config, tokenizer and
    safetensors files.

    Raises:
        DataError: naming the file and how to mend it.
    """
    config = _json(folder / "config.json", folder)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in _json(folder / name, folder):
            raise DataError(
                f"{folder / name} asks for code of its own to be run (auto_map); nothing that was downloaded is run here",
                "Choose a base that transformers knows by itself.",
            )
    if "quantization_config" in config:
        raise DataError(
            f"{folder} is quantized already; an adapter cannot be merged onto it without loss",
            "Name the 16-bit original as base: it is quantized to NF4 for training here.",
        )
    _check_tokenizer(folder)
    files = sorted({path.name for path in _weights(folder).values()})
    names = [n for n in (*CONFIG_FILES, *TOKENIZER_FILES, "model.safetensors.index.json") if (folder / n).is_file()]
    sums = {name: cached_sha256(folder / name) for name in sorted([*names, *files])}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _weights(folder: Path) -> dict[str, Path]:
    if not any(folder.glob("model*.safetensors*")):
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        if pickles:
            raise DataError(
                f"{folder} has its weights only as pickle ({pickles[0]}), and reading a pickle can run anything",
                "Where you trust its source, load the model there with transformers and write it with "
                "model.save_pretrained(folder): that gives safetensors.",
            )
    return model_files(folder)


def _check_tokenizer(folder: Path) -> None:
    ways = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
    if not any(all((folder / name).is_file() for name in way) for way in ways):
        raise DataError(f"{folder} has no tokenizer (tokenizer.json)", "Copy the tokenizer files of the model there.")
    if read_chat_template(folder) is None:
        raise DataError(
            f"{folder} has no chat template (chat_template.jinja)",
            "Choose the instruct (or chat) version of the base, or put its chat_template.jinja into the folder.",
        )


def read_chat_template(folder: Path) -> str | None:
    """The Jinja text of the folder's (default) chat template, where transformers looks for it."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = _json(folder / name, folder).get("chat_template")
            if isinstance(template, list):
                template = {t["name"]: t["template"] for t in template}.get("default")
            if isinstance(template, str):
                return template
    return None


def _json(path: Path, folder: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (folder / "adapter_config.json").is_file():
            raise DataError(
                f"{folder} is an adapter, not a base model", f"Turn it into a model with: tune2ollama export {folder}"
            ) from error
        raise DataError(
            f"{folder} is no model folder: it has no {path.name}", "Name a folder that holds one."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}", "Get the file again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object", "Get the file again.")
    return value


def _license(folder: Path) -> str:
    # A model card starts with YAML between two lines of dashes (the hub's format).
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if match := re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL):
        try:
            head = yaml.safe_load(match[1])
        except yaml.YAMLError:
            return "other"
        if isinstance(head, dict) and isinstance(head.get("license"), str):
            return str(head.get("license_name") or head["license"])
    return "other"


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file; for big files remembered in the cache, and believed while size and modification time stay."""
    status = path.stat()
    if status.st_size < _HASH_ANEW_BELOW:
        return file_sha256(path)
    known: dict[str, Any] = {"path": str(path.resolve()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = cache_home() / "digests" / f"{hashlib.sha256(known['path'].encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads(note.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in known} == known:
            return str(found["sha256"])
    digest = file_sha256(path)
    with contextlib.suppress(OSError):  # two runs at once may write the same note
        write_json(note, {**known, "sha256": digest})
    return digest
