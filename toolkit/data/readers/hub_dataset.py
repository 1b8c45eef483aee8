"""A data set of the hub at a pinned commit: its files of rows are fetched, and read by the library `datasets`; none is run.

Not by `datasets` from the hub itself: where there is no network it takes the copy that it read last, of whatever commit.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from toolkit.data.readers.columnar import library, numbered, one_split
from toolkit.data.readers.table import Records
from toolkit.errors import DataError, UsageError
from toolkit.models import hub

HUB = "hub:"
_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?@([0-9a-f]{40})")
_KINDS = ("parquet", "csv", "tsv", "json", "jsonl", "ndjson", "arrow", "txt")
_FILES = [f"*.{kind}{packed}" for kind in _KINDS for packed in ("", ".gz", ".zst", ".bz2", ".xz")]
_CARD = "README.md"


def hub_rows(path: str, notes: list[str]) -> Records:
    """The rows of a data set of the hub: hub:OWNER/NAME@COMMIT, or hub:OWNER/NAME/CONFIGURATION@COMMIT.

    Raises:
        UsageError: the name is no such one, the hub does not show it, or it has several configurations; no such library here.
        DataError: it holds no files of rows, or files that cannot be read.
        ExternalToolError: the hub does not answer.
    """
    found = _NAME.fullmatch(path)
    if found is None:
        raise UsageError(
            f"{path} is no data set at a pinned revision",
            "Write hub:OWNER/NAME@COMMIT, with all 40 letters of the commit from its page: what is trained on must not change.",
        )
    repository, configuration, commit = found[1], found[2], found[3]
    datasets = library(path)
    configurations = _configurations(hub.card(hub.fetch(repository, commit, [_CARD], "dataset")), path)
    chosen = _chosen(configurations, configuration, path)
    files = _files(configurations[chosen]) if chosen else None
    # A star of the hub's client stands for folders, too.
    patterns = [pattern.replace("**/", "*") for of_split in files.values() for pattern in of_split] if files else _FILES
    folder = hub.fetch(repository, commit, [_CARD, *patterns], "dataset")
    if not any(file.is_file() and file.name != _CARD for file in folder.rglob("*")):
        raise DataError(
            f"{path} holds no files of rows that are read here ({', '.join(_KINDS)})",
            "A data set that is a program is not run. Many have a branch refs/convert/parquet on their page: name its commit.",
        )
    try:
        made = datasets.load_dataset(str(folder), chosen or configuration, data_files=files)
    except Exception as error:  # the library raises a dozen kinds
        raise DataError(
            f"{path} cannot be read: {' '.join(str(error).split())[:300]}",
            f"Point data.path at those of its files that hold rows: {folder}",
        ) from error
    yield from numbered(one_split(made, path, notes, "download its files to train on another"), path)


def _configurations(card: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """Name → what the card says of it; empty where it lists none, or not which files they have.

    Raises:
        DataError: files that lie elsewhere, which the commit does not pin.
    """
    listed = card.get("configs")
    found = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    for place in (place for one in found for of_split in _files(one).values() for place in of_split):
        if "://" in place or place.startswith(("/", "~")) or ".." in Path(place).parts:
            raise DataError(
                f"{path}: its card names rows that are not among its own files: {place}",
                "What lies elsewhere is not pinned by the commit: download it, look at it, and point data.path at it.",
            )
    if not all(one.get("data_files") for one in found):
        return {}
    return {str(one.get("config_name", "default")): one for one in found}


def _chosen(configurations: dict[str, dict[str, Any]], asked: str | None, path: str) -> str | None:
    """The configuration to read; None: the card lists none, so there is one."""
    if not configurations:
        return None
    named = next((name for name, one in configurations.items() if one.get("default") is True), "default")
    chosen = asked or (named if len(configurations) > 1 else next(iter(configurations)))
    if chosen not in configurations:
        first, at, commit = next(iter(configurations)), *path.rpartition("@")[1:]
        whole = "/".join(path.removeprefix(HUB).partition("@")[0].split("/")[:2])
        raise UsageError(
            f"{path} has the configurations {', '.join(configurations)}", f"Name one: {HUB}{whole}/{first}{at}{commit}"
        )
    return chosen


def _files(configuration: dict[str, Any]) -> dict[str, list[str]]:
    """Split → patterns of its files: the card gives a pattern, a list of them, or a list of {split, path}."""
    said = configuration.get("data_files") or []
    inside = str(configuration.get("data_dir") or "").removeprefix("./").rstrip("/")
    found: dict[str, list[str]] = {}
    for one in said if isinstance(said, list) else [said]:
        split, path = (one.get("split", "train"), one.get("path")) if isinstance(one, dict) else ("train", one)
        paths = path if isinstance(path, list) else [path]
        found.setdefault(str(split), []).extend(f"{inside}/{path}" if inside else str(path) for path in paths)
    return found
