"""A base model, however it is named, as one verified folder that transformers can load.

Nothing of a base is run: safetensors only, no remote code. Imports no torch: the check of a run with nothing to do asks
for the base too.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, ResourceError, ToolkitError, UsageError
from toolkit.models import embedded, hub, small_vision
from toolkit.models.four_bit import four_bit_copy, refuse_quantized
from toolkit.models.json_file import read_object
from toolkit.models.safetensors_file import model_files
from toolkit.recipe.section import nearest
from toolkit.run.artifacts import file_sha256, write_json
from toolkit.run.facts import BaseFacts
from toolkit.run.places import cache_home

EMBEDDED = "embedded:"
EMBEDDED_NAMES = (embedded.NAME, small_vision.NAME)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CONFIG_FILES = ("config.json", "generation_config.json")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""How pictures are prepared; text models have none."""
_SETTINGS = (*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES)
_WEIGHTS = "model*.safetensors*"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_HASH_ANEW_BELOW = 1 << 20


def resolve_base(base: str) -> BaseFacts:
    """Find, and where needed rebuild or download, a base model, and verify its files.

    Args:
        base: `embedded:` with one of `EMBEDDED_NAMES`, a local folder, or a hub id `org/name@revision`. A hub id without a
            revision stays at the commit that was first seen here; that commit is in the facts.

    Raises:
        UsageError: no such base.
        DataError: the base's files are incomplete, damaged, or would have to be run to be read.
        ExternalToolError: the hub does not answer, or the embedded model is not installed.
    """
    if base.startswith(EMBEDDED):
        folder, revision = _embedded_folder(base)
    elif (local := _local_folder(base)) is not None:
        folder, revision = local, ""
    else:
        name = _hub_name(base)
        wanted = [*_SETTINGS, "*.safetensors", "*.safetensors.index.json", "README.md", "LICENSE*"]
        folder = _complete_snapshot(*name) or hub.fetch(*name, wanted)
        revision = folder.name
    digest = check_folder(folder)
    licence = embedded_base(base).LICENSE if base.startswith(EMBEDDED) else _license(folder)
    return BaseFacts(id=base, folder=str(folder), revision=revision, license=licence, digest=digest)


def is_here(base: str) -> bool:
    """Whether a base can be read as it is, with nothing to be downloaded or rebuilt."""
    try:
        if base.startswith(EMBEDDED):
            return _embedded_place(base).is_dir()
        return _local_folder(base) is not None or _complete_snapshot(*_hub_name(base)) is not None
    except ToolkitError:
        return False


def check_base(base: str) -> None:
    """Find what is wrong with a base before anything large is downloaded, rebuilt or hashed: of a model of the hub that is
    not here, only the names of its files and its configuration and tokenizer are fetched.

    Raises:
        as `resolve_base`.
    """
    if base.startswith(EMBEDDED):
        _embedded_place(base)
    elif (local := _local_folder(base)) is not None:
        _checked_files(local)
    elif _complete_snapshot(*(name := _hub_name(base))) is None:
        _check_names(base, hub.file_names(*name))
        _check_settings(hub.fetch(*name, [*_SETTINGS]))


def settings_folder(base: str) -> Path:
    """A folder with a base's configuration, tokenizer and template; of a model of the hub, its weights need not be there.

    Raises:
        UsageError, DataError, ExternalToolError: as `resolve_base`.
    """
    if base.startswith(EMBEDDED):
        return _embedded_folder(base)[0]
    if (local := _local_folder(base)) is not None:
        return local
    name = _hub_name(base)
    return _complete_snapshot(*name) or hub.fetch(*name, [*_SETTINGS])


def _local_folder(base: str) -> Path | None:
    folder = Path(base).expanduser()
    return folder.resolve() if base and folder.is_dir() else None


def _hub_name(base: str) -> tuple[str, str | None]:
    match = _HUB_ID.fullmatch(base)
    if match is None or base.startswith((".", "~", "/")):
        raise UsageError(
            f"there is no base model {base}{_near_folder(base)}",
            f"Name {EMBEDDED}{embedded.NAME}, a folder, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct@<commit>.",
        )
    copy = four_bit_copy(match[1])
    if copy is not None:
        raise DataError(
            f"{base} is a copy that is quantized already; an adapter cannot be merged onto it without loss",
            f"Name its 16-bit original as base: {copy.original}. It is quantized to NF4 for training here.",
        )
    return match[1], match[2]


def _complete_snapshot(repository: str, revision: str | None) -> Path | None:
    folder = hub.snapshot(repository, revision)
    if folder is not None:
        with contextlib.suppress(ToolkitError):  # a download that was interrupted, and is to go on
            _checked_files(folder)
            return folder
    return None


def _near_folder(base: str) -> str:
    path = Path(base).expanduser()
    try:
        return nearest(path.name, [p.name for p in path.parent.iterdir() if p.is_dir()])
    except OSError:
        return ""


def embedded_base(base: str) -> Any:
    """The module that builds an embedded base: its NAME, LICENSE, DESCRIPTION, BUILD, `find_gguf` and `build`.

    Raises:
        UsageError: there is none of this name.
    """
    for known in (embedded, small_vision):
        if base == EMBEDDED + known.NAME:
            return known
    names = [EMBEDDED + name for name in EMBEDDED_NAMES]
    raise UsageError(f"there is no {base}{nearest(base, names)}", f"Write {' or '.join(names)}")


def _embedded_place(base: str) -> Path:
    known = embedded_base(base)
    return cache_home() / "bases" / f"{known.NAME}-{cached_sha256(known.find_gguf())[:12]}-{known.BUILD}"


def _embedded_folder(base: str) -> tuple[Path, str]:
    from filelock import FileLock, Timeout

    folder, known = _embedded_place(base), embedded_base(base)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder.with_name(folder.name + ".lock"), timeout=1800):
                if not folder.is_dir():
                    known.build(folder)
        except Timeout as error:
            raise ResourceError(
                f"another run has been building {folder} for half an hour", "Stop it, run again."
            ) from error
    return folder, cached_sha256(known.find_gguf())


def check_folder(folder: Path) -> str:
    """Verify a model folder, and give its digest: SHA-256 over the names and SHA-256 sums of its config, tokenizer and
    safetensors files.

    Raises:
        DataError: naming the file and how to mend it.
    """
    sums = {name: cached_sha256(folder / name) for name in _checked_files(folder)}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _checked_files(folder: Path) -> list[str]:
    """Names of the files that make the model, sorted, once they are found to be complete and readable."""
    _check_settings(folder)
    files = {path.name for path in _weights(folder).values()}
    names = [n for n in (*_SETTINGS, "model.safetensors.index.json") if (folder / n).is_file()]
    return sorted([*names, *files])


def _check_settings(folder: Path) -> None:
    _json(folder / "config.json", folder)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in _json(folder / name, folder):
            raise DataError(
                f"{folder / name} asks for code of its own to be run (auto_map); nothing that was downloaded is run here",
                "Choose a base that transformers knows by itself.",
            )
    refuse_quantized(folder)
    _check_tokenizer(folder)


def _weights(folder: Path) -> dict[str, Path]:
    _check_no_pickle(str(folder), [path.name for path in folder.iterdir()])
    return model_files(folder)


def _check_names(base: str, names: list[str]) -> None:
    """Of a model of the hub: whether there is one, in a form that is read here."""
    _check_no_pickle(base, names)
    for needed in ("config.json", _WEIGHTS):
        if not fnmatch.filter(names, needed):
            adapter = "adapter_config.json" in names
            what = "an adapter" if adapter else "no model that is read here"
            raise DataError(
                f"{base} has no {needed.replace('*', '')} on the hub: it is {what}",
                "Name its base model; an adapter that you downloaded goes through: tune2ollama export FOLDER"
                if adapter
                else "Name a model in the form of transformers, with its weights as safetensors.",
            )


def _check_no_pickle(where: str, names: list[str]) -> None:
    pickles = sorted(name for pattern in _PICKLES for name in fnmatch.filter(names, pattern))
    if pickles and not fnmatch.filter(names, _WEIGHTS):
        raise DataError(
            f"{where} has its weights only as pickle ({pickles[0]}), and reading a pickle can run anything",
            "Where you trust its source, load the model there with transformers and write it with "
            "model.save_pretrained(folder): that gives safetensors.",
        )


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
        return read_object(path, "Get the file again.")
    except FileNotFoundError as error:
        if (folder / "adapter_config.json").is_file():
            raise DataError(
                f"{folder} is an adapter, not a base model", f"Turn it into a model with: tune2ollama export {folder}"
            ) from error
        raise DataError(
            f"{folder} is no model folder: it has no {path.name}", "Name a folder that holds one."
        ) from error


def _license(folder: Path) -> str:
    head = hub.card(folder)
    return str(head.get("license_name") or head["license"]) if isinstance(head.get("license"), str) else "other"


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
