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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from toolkit.errors import DataError

ARTIFACT_FILE = "artifact.json"


class Facts(BaseModel):
    """What a stage wants later stages and people to know. One class per stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetFacts(Facts):
    """Files: train.jsonl, validation.jsonl, test.jsonl (a row each: prompt, completion, source), dropped.jsonl."""

    rows: dict[str, int]
    """Rows per split: train, validation, test."""
    read: int
    kept: int
    dropped: dict[str, int]
    """Reason → rows."""
    repaired: dict[str, int]
    encodings: dict[str, str]
    """File (relative to the data path) → encoding it was read with."""
    language: str
    """Two-letter code, as the rows are; see `toolkit.data.prepare`."""


class Quantization(Facts):
    """How the base's linear layers were quantized while the adapter was trained (bitsandbytes)."""

    quant_type: Literal["nf4"] = "nf4"
    blocksize: int = 64
    double_quantization: bool = True


class BaseFacts(Facts):
    """Which base model, exactly."""

    id: str
    """As the recipe spells it: embedded:…, a folder, or a hub id."""
    folder: str
    revision: str
    license: str
    digest: str
    """SHA-256 over the names and SHA-256 sums of config, tokenizer and safetensors files."""


class AdapterFacts(Facts):
    """Files: a PEFT folder (or, for full fine-tuning, a whole HF folder), tokenizer and chat template, metrics.jsonl."""

    method: Literal["qlora", "lora", "full"]
    base: BaseFacts
    base_dtype: Literal["float32", "bfloat16", "float16"]
    """Type that the base's weights were loaded in, before any quantization; for method "full" the folder's own type too."""
    quantization: Quantization | None
    chat_template_sha256: str
    system: str
    trained_here: bool
    """False when another tool made the adapter (`export`)."""
    validation_loss_before: float | None = None
    validation_loss_after: float | None = None
    """Mean negative log-likelihood in nats per answer token on the first rows of the validation split."""
    validation_rows: int = 0
    validation_rows_measured: int = 0
    """Rows of the validation split that are short enough, and how many of them the losses are over; 0: not recorded."""
    steps: int = 0
    train_rows: int = 0
    rows_too_long: int = 0
    """Left out for `train.max_length`; too_long.jsonl lists them."""
    trained_parameters: int = 0
    tokens_per_second: float = 0.0


class GoldenFacts(Facts):
    """Files: golden.jsonl, tuned.npy and base.npy (float32 logits, [positions, vocabulary])."""

    prompts: int
    positions: int
    """Teacher-forced positions over all completions; row i of the .npy files."""
    vocabulary: int
    end_tokens: list[int]
    forward: Literal["whole", "layer by layer"]
    stopped_by_themselves: int
    """How many greedy completions of the tuned model ended with an end token."""
    day: str = ""
    """Date on which the prompts were rendered (ISO 8601): some templates write it."""


class ModelFacts(Facts):
    """Files: a HF folder with the merged weights."""

    merged_onto: Literal["nf4", "16-bit", "as trained"]
    """nf4: the dequantized weights that a QLoRA adapter was trained on; 16-bit: the original weights."""
    dtype: str
    tensors: int
    merged_tensors: int
    parameters: int
    loss_as_trained: float | None = None
    loss_merged: float | None = None
    """Held-out loss of the base as it was trained on + adapter, and of what was merged (nats per token)."""
    loss_on_16_bit: float | None = None
    """For QLoRA: held-out loss of the same adapter on the original weights, which it never saw."""


class GGUFFile(Facts):
    """One GGUF file inside an artifact's folder."""

    name: str
    file_type: str
    """As llama.cpp spells it: F32, F16, BF16, Q8_0, Q4_K_M, …"""
    bytes: int
    sha256: str
    fallback_tensors: int = 0
    """Tensors that could not take the file type's own quantization (row length no multiple of 256)."""
    tensors: int = 0


class GGUFFacts(Facts):
    """Files: one .gguf per entry."""

    files: list[GGUFFile]
    architecture: str
    template_protected: bool


class CertificateFacts(Facts):
    """Files: certificate.json, certificate.html, and where it passes the served GGUF with the summary in its metadata."""

    verdict: Literal["pass", "fail", "inconclusive"]
    checks: Mapping[str, str]
    """Check → verdict."""
    served_file: str
    """The GGUF (name) that the verdict lets go to Ollama."""
    message: str = ""
    """The verdict in one sentence: the link that broke, and how."""


class OllamaFacts(Facts):
    """Files: Modelfile."""

    model: str
    """As it is asked for: `ollama run <model>`."""
    digest: str
    server_version: str
    published: bool
    """False when no Ollama is installed here: everything else is finished, `remaining` says what is left."""
    remaining: list[str]
    rendered_equal: int = 0
    """Golden prompts that the server rendered byte-identical to the training template."""
    conversations_equal: int = 0
    """Further conversations that it rendered so, over all addresses that apps use."""
    answers_compared: int = 0
    largest_logprob_difference: float | None = None
    """Served against llama-cpp-python, over the golden answers' greedy tokens (nats)."""


class ReportFacts(Facts):
    """Files: report.md, certificate.html, model_card.md, loss.png."""

    verdict: str


F = TypeVar("F", bound=Facts)


class Cost(BaseModel):
    """What a stage spent. Not part of an artifact's identity."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0
    """Largest resident set of the stage's process and its children."""


@dataclass(frozen=True)
class Artifact(Generic[F]):
    """A finished folder and what is known of it."""

    folder: Path
    facts: F
    digest: str
    """SHA-256 over the names and SHA-256 sums of the folder's files."""
    key: dict[str, Any]
    """What it was made from; see `toolkit.pipeline`."""
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
