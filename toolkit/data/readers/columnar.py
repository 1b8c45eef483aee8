"""Tables that libraries write: Parquet, folders of `datasets.save_to_disk`, data sets of the hub at a pinned revision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.data.readers.table import SAVE_AS_CSV, Records, Row
from toolkit.errors import DataError, ExternalToolError, UsageError

HUB = "hub:"
_HUB_NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([\w.-]+))?@([0-9a-f]{40})")
_INSTALL = "Install it: pip install 'tune2ollama[train]'"


def parquet_rows(file: Path, name: str) -> Records:
    """The rows of a Parquet file. Raises DataError where it is none."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{name}: Parquet needs pyarrow", _INSTALL) from error
    try:
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield Row(name, number, values)
    except (OSError, ValueError) as error:  # pyarrow's errors are children of these
        raise DataError(f"{name} is no Parquet file that can be read: {error}", SAVE_AS_CSV) from error


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json"))


def saved_rows(folder: Path, name: str, notes: list[str]) -> Records:
    """The rows of a folder of `save_to_disk`; of several splits, the one called train, or else the first.

    Raises:
        UsageError: the library is not installed.
        DataError: a damaged folder.
    """
    datasets = _library(name)
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever pyarrow and the library raise at damaged files
        raise DataError(f"{name} is no folder of save_to_disk that can be read: {error}", "Save it again.") from error
    yield from _rows(_split(found, name, notes, f"point data.path at {folder}/SPLIT"), name)


def hub_rows(path: str, notes: list[str]) -> Records:
    """The rows of a data set of the hub: hub:OWNER/NAME@COMMIT, or hub:OWNER/NAME/CONFIGURATION@COMMIT.

    Raises:
        UsageError: the name is no such one, or the library is not installed.
        ExternalToolError: the hub cannot be reached, or has no such data set.
    """
    found = _HUB_NAME.fullmatch(path)
    if found is None:
        raise UsageError(
            f"{path} is no data set at a pinned revision",
            "Write hub:OWNER/NAME@COMMIT, with all 40 letters of the commit from its page: what is trained on must not change.",
        )
    datasets = _library(path)
    try:
        made = datasets.load_dataset(found[1], found[2], revision=found[3])
    except Exception as error:  # the library raises a dozen kinds, of the network and of the files
        raise ExternalToolError(
            f"{path} cannot be read: {' '.join(str(error).split())[:300]}",
            "Look at its name, and at the network; or download its files and point data.path at them.",
        ) from error
    yield from _rows(_split(made, path, notes, "download its files to train on another"), path)


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{name}: this needs the library datasets", _INSTALL) from error
    datasets.disable_progress_bars()
    return datasets


def _split(found: Any, name: str, notes: list[str], advice: str) -> Any:
    if not isinstance(found, dict):
        return found
    chosen = "train" if "train" in found else next(iter(found))
    if others := [f"{split} ({len(rows):,})" for split, rows in found.items() if split != chosen]:
        notes.append(f"{name}: its split {chosen} is read; not read: {', '.join(others)} ({advice})")
    return found[chosen]


def _rows(rows: Iterable[dict[str, Any]], name: str) -> Records:
    for number, values in enumerate(rows, 1):
        yield Row(name, number, values)
