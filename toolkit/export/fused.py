"""GGUF files written in one go: several types at once from one reading, and nothing in between on the disk.

Every piece of the converted file is made once (merged from base and adapter, or read from the file), rounded to each file's type
by ggml's own routines or by ours that give the same bytes, and written at the place that the file's head gives it: a slab of
rows at a time, on all cores. What comes out is, byte for byte, what merge, the pinned converter and llama.cpp's quantizer make
one after another, but for the provenance that is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from toolkit.errors import DataError
from toolkit.export.blas import one_thread_each
from toolkit.export.ggml import Bytes, Floats, are_numbers, stored, widened
from toolkit.export.pieces import Piece
from toolkit.export.planned import Planned
from toolkit.models.gguf_head import HeadTensor
from toolkit.models.safetensors_file import writing
from toolkit.run.bars import passing_bar

_AHEAD = 4
"""Slabs in work for each core: enough that none waits, few enough that memory stays bounded."""


def write_files(
    pieces: Iterable[Piece],
    converted: Planned,
    files: Mapping[Path, Planned],
    what: str,
) -> None:
    """Write all files, each under its name when it is whole, and none where one fails; a bar shows how far it is.

    Args:
        pieces: the rows of the converted file, whether it is one of the files or not.
        converted: of whose values all others are quantized.
        files: name → what goes there.
        what: is done, as the bar says it.

    Raises:
        DataError: a tensor holds NaN or infinity where it is to be quantized, or would after it.
        ResourceError: the disk is full.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with _new_files(files) as opened, passing_bar(*columns) as progress:
        task = progress.add_task(what, total=converted.weights)
        work = _Work(converted, opened, lambda count: progress.advance(task, count))
        workers = len(os.sched_getaffinity(0))
        with one_thread_each(), ThreadPoolExecutor(workers) as pool:
            pending: set[Future[None]] = set()
            try:
                for piece in pieces:
                    pending.add(pool.submit(work.do, piece))
                    while len(pending) >= workers * _AHEAD:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        _raise_first(done)
                _raise_first(wait(pending)[0])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _raise_first(done: set[Future[None]]) -> None:
    for future in done:
        future.result()


@dataclass(frozen=True)
class _Open:
    planned: Planned
    path: Path
    descriptor: int


@contextmanager
def _new_files(files: Mapping[Path, Planned]) -> Iterator[list[_Open]]:
    """The files under temporary names, with their heads; on success all are renamed, on failure all are removed."""
    parts = {path: path.with_name(f"{path.name}.part") for path in files}
    with ExitStack() as stack:
        opened = []
        for path, planned in files.items():
            stack.callback(parts[path].unlink, missing_ok=True)
            descriptor = os.open(parts[path], os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            stack.callback(os.close, descriptor)
            with writing(path):
                # The whole length, now: a disk that is too full says so before anything is computed.
                os.posix_fallocate(descriptor, 0, planned.head.size)
                _write(descriptor, memoryview(planned.head.bytes), 0)
            opened.append(_Open(planned, path, descriptor))
        yield opened
        for path, part in parts.items():
            part.replace(path)


def _write(descriptor: int, data: memoryview, place: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, place)
        data, place = data[count:], place + count


class _Work:
    """What there is to do: a job for every piece."""

    def __init__(self, converted: Planned, files: list[_Open], tick: Callable[[int], None]) -> None:
        self.converted, self.files, self.tick = converted, files, tick
        self.quantizes = any(file.planned.file_type != converted.file_type for file in files)

    def do(self, piece: Piece) -> None:
        """Write a piece into every file, in the type that its tensor has there."""
        name, raw = piece.name, piece.make()
        kind = self.converted.tensors[name].type
        if self.quantizes:
            _check_numbers(name, raw, kind, "Export to F32 or BF16 first.")
        exact: Floats | None = None
        for file in self.files:
            tensor = file.planned.tensors[name]
            if tensor.type == kind:
                data = raw
            else:
                exact = widened(raw, kind) if exact is None else exact
                data = _rounded(file.planned, tensor, exact, piece.first)
                _check_numbers(name, data, tensor.type, "Choose another file type.")
            with writing(file.path):
                place = file.planned.head.places[name] + piece.first * tensor.row_bytes
                _write(file.descriptor, cast(Any, data).data.cast("B"), place)
        self.tick(len(raw) * self.converted.tensors[name].shape[0])


def _check_numbers(name: str, rows: Bytes, kind: str, hint: str) -> None:
    if not are_numbers(rows, kind):
        raise DataError(f"{name} holds values that {kind} cannot: NaN, or beyond its largest", hint)


def _rounded(planned: Planned, tensor: HeadTensor, rows: Floats, first: int) -> Bytes:
    """Rows of a tensor, from the row `first` on, in its own type: those of each expert with its own importance."""
    importance = planned.importance(tensor.name)
    if importance is None:
        return stored(rows, tensor.type)
    each, after, parts = tensor.rows // len(importance), first + len(rows), []
    for number in range(first // each, -(-after // each)):
        begin, end = max(first, number * each), min(after, (number + 1) * each)
        parts.append(stored(rows[begin - first : end - first], tensor.type, importance[number]))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
