"""Which files are read at a path."""

from __future__ import annotations

from pathlib import Path

from toolkit.data.readers.columnar import is_saved_dataset
from toolkit.data.readers.compressed import PACKED
from toolkit.data.readers.table import SAVE_AS_CSV
from toolkit.errors import DataError, UsageError
from toolkit.recipe.section import nearest

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".xlsx", ".xlsm", ".parquet")
TEXTS = (".txt", ".md")
OLD_WORKBOOK = ".xls"
_CANNOT_BE_PACKED = (".xlsx", ".xlsm", ".parquet", OLD_WORKBOOK)
KNOWN = ", ".join((*TABLES, *TEXTS)) + " (texts also packed as .gz or .zst)"


def kind_of(file: Path) -> str:
    """A file's ending without the packing's; empty where it is not one that is read."""
    ending = file.suffix.lower()
    if ending in PACKED:
        ending = Path(file.stem).suffix.lower()
        return ending if ending in (*TABLES, *TEXTS) and ending not in _CANNOT_BE_PACKED else ""
    return ending if ending in (*TABLES, *TEXTS, OLD_WORKBOOK) else ""


def find_files(path: Path) -> list[tuple[str, Path]]:
    """The data files at `path`, sorted by name, as (name relative to `path`, path).

    Hidden files are left out, and so are texts (.txt, .md) where there are tables: they say something about these. A folder of
    `datasets.save_to_disk` counts as a file.

    Raises:
        UsageError: `path` does not exist.
        DataError: an extension that cannot be read, or a folder without data files.
    """
    if path.is_dir():
        return [(path.name, path)] if is_saved_dataset(path) else _inside(path)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"there is no {path}{nearest(path.name, beside)}", "Name another: --set data.path=…")
    if not kind_of(path):
        raise DataError(f"{path}: {path.suffix or 'no'} extension is not one that is read: {KNOWN}", SAVE_AS_CSV)
    return [(path.name, path)]


def _inside(folder: Path) -> list[tuple[str, Path]]:
    saved = {p for p in folder.rglob("*") if p.is_dir() and is_saved_dataset(p)}
    top = {p for p in saved if not saved & set(p.parents)}
    inside = sorted(
        p
        for p in folder.rglob("*")
        if not _is_hidden(p.relative_to(folder)) and (p in top or (p.is_file() and not top & set(p.parents)))
    )
    files = [p for p in inside if p in top or kind_of(p)]
    tables = [p for p in files if p in top or kind_of(p) not in TEXTS]
    if not files:
        others = sorted({p.suffix or p.name for p in inside})
        found = f"only {', '.join(others[:8])}" if others else "nothing"
        raise DataError(f"{folder} holds no data files, {found}; known: {KNOWN}", "Point data.path at your rows.")
    return [(p.relative_to(folder).as_posix(), p) for p in tables or files]


def left_out(path: Path) -> list[str]:
    """Files of a folder that are not read, hidden ones aside."""
    if not path.is_dir() or is_saved_dataset(path):
        return []
    read = {file for _, file in find_files(path)}
    return sorted(
        p.relative_to(path).as_posix()
        for p in path.rglob("*")
        if p.is_file() and p not in read and not read & set(p.parents) and not _is_hidden(p.relative_to(path))
    )


def _is_hidden(relative: Path) -> bool:
    # "~$table.xlsx" is the lock that a running spreadsheet leaves.
    return any(part.startswith((".", "~$")) for part in relative.parts)
