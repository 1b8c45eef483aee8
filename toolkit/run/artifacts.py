"""What a stage leaves behind: a folder whose `artifact.json` was written last, so its existence means complete.

A stage writes into `<name>.partial`; `publish` hashes what is there, writes `artifact.json`, and renames the folder to its
final name. A run that was killed at any moment leaves either the old folder, the new folder, or a partial one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from toolkit.errors import DataError
from toolkit.run.facts import Facts

ARTIFACT_FILE = "artifact.json"


F = TypeVar("F", bound=Facts)


class Cost(BaseModel):
    """What a stage spent. Not part of an artifact's identity."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    """Largest resident set of the stage's process and its children; of those that train together the sum."""
    peak_card_bytes: int = 0
    """The most that torch held of a CUDA card, without what CUDA itself takes; 0 where none was used."""


@dataclass(frozen=True)
class Artifact(Generic[F]):
    """A finished folder and what is known of it."""

    folder: Path
    facts: F
    digest: str
    """SHA-256 over the names and SHA-256 sums of the folder's files."""
    key: dict[str, Any]
    """What it was made from; see `toolkit.run.pipeline`."""
    cost: Cost


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(stream)


def _sha256(stream: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success fsync it and rename it, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        _fsync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file under its final name, or not at all."""
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file under its final name, or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a whole JSONL file under its final name, or not at all: a row a line.

    A user's text may hold half a surrogate pair, which UTF-8 cannot; it becomes a question mark.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text.encode("utf-8", errors="replace").decode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file of ours. Split at line feeds only: a text may hold U+2028, where `str.splitlines` splits too."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [json.loads(line) for line in stream]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ARTIFACT_FILE)


def publish(partial: Path, folder: Path, facts: F, key: dict[str, Any], cost: Cost) -> Artifact[F]:
    """Make a finished partial folder final: fsync its files, write `artifact.json` last, rename.

    Args:
        partial: the folder that the stage wrote; on the same filesystem as `folder`.
        folder: the final name; an older artifact there is replaced.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in _files(partial):
        _fsync(path)
        status = path.stat()
        files[path.relative_to(partial).as_posix()] = {
            "sha256": file_sha256(path),
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
        }
    digest = hashlib.sha256(json.dumps({n: f["sha256"] for n, f in files.items()}).encode()).hexdigest()
    manifest = {
        "stage": folder.name,
        "digest": digest,
        "key": key,
        "facts": facts.model_dump(mode="json"),
        "cost": cost.model_dump(),
        "files": files,
    }
    write_json(partial / ARTIFACT_FILE, manifest)
    _fsync(partial)
    _replace_folder(partial, folder)
    return Artifact(folder, facts, digest, key, cost)


def _replace_folder(partial: Path, folder: Path) -> None:
    # A non-empty folder cannot be renamed over; between the two renames the finished partial folder is what
    # `finish_publishing` finds.
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def finish_publishing(partial: Path, folder: Path) -> None:
    """Complete a `publish` that was killed between its last write and its rename."""
    if (partial / ARTIFACT_FILE).is_file():
        _replace_folder(partial, folder)


def read_artifact(folder: Path, facts_type: type[F]) -> Artifact[F] | None:
    """Read a finished artifact; None when the folder has none.

    Raises:
        DataError: `artifact.json` is damaged, or a file it lists is missing or has changed since.
    """
    path = folder / ARTIFACT_FILE
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        facts = facts_type.model_validate(manifest["facts"])
        cost = Cost.model_validate(manifest["cost"])
        key, digest, files = manifest["key"], manifest["digest"], manifest["files"]
    except (ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}", f"Remove {folder} and run again.") from error
    for name, known in files.items():
        _check_file(folder / name, known)
    return Artifact(folder, facts, digest, key, cost)


def _check_file(path: Path, known: dict[str, Any]) -> None:
    if not path.is_file():
        raise DataError(f"{path} is gone", "Run again: the stage is redone.")
    status = path.stat()
    if status.st_size == known["bytes"] and status.st_mtime_ns == known["mtime_ns"]:
        return
    if status.st_size != known["bytes"] or file_sha256(path) != known["sha256"]:
        raise DataError(f"{path} was changed after it was made", "Run again: the stage is redone.")
