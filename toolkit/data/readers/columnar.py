"""Tables that libraries write: Parquet, and folders of `datasets.save_to_disk`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.data.readers.table import SAVE_AS_CSV, Records, Row
from toolkit.errors import DataError, UsageError

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
    datasets = library(name)
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever pyarrow and the library raise at damaged files
        raise DataError(f"{name} is no folder of save_to_disk that can be read: {error}", "Save it again.") from error
    yield from numbered(one_split(found, name, notes, f"point data.path at {folder}/SPLIT"), name)


def library(name: str) -> Any:
    """The library `datasets`. Raises UsageError where it is not installed, with the name of what needs it."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{name}: this needs the library datasets", _INSTALL) from error
    datasets.disable_progress_bars()
    return datasets


def one_split(found: Any, name: str, notes: list[str], advice: str) -> Any:
    """Of several splits the one called train, or else the first; the others are named in the notes. Pictures stay bytes."""
    if not isinstance(found, dict):
        return _undecoded(found)
    chosen = "train" if "train" in found else next(iter(found))
    if others := [f"{split} ({len(rows):,})" for split, rows in found.items() if split != chosen]:
        notes.append(f"{name}: its split {chosen} is read; not read: {', '.join(others)} ({advice})")
    return _undecoded(found[chosen])


def _undecoded(rows: Any) -> Any:
    """With pictures as bytes: the library would turn them itself, and one that is damaged would end the reading."""
    from datasets import Image, List

    kept = Image(decode=False)
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, kept)
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            rows = rows.cast_column(column, List(kept))
    return rows


def numbered(rows: Iterable[dict[str, Any]], name: str) -> Records:
    """Rows with their numbers, from 1."""
    for number, values in enumerate(rows, 1):
        yield Row(name, number, values)
