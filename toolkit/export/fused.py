"""Base weights and adapter in, finished GGUF files out: several types at once, and nothing in between on the disk.

Every source is read once. Its rows are merged, laid as the converter lays them, rounded and quantized by ggml's own routines, and
written at the place that the file's head gives them: a slab of rows at a time, on all cores. What comes out is, byte for
byte, what merge, the pinned converter and llama.cpp's quantizer make one after another, but for the provenance that is told.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from toolkit.errors import MAKE_ROOM, DataError, ResourceError
from toolkit.export.blas import one_thread_each
from toolkit.export.blocks import Block, blocks_of, changed, whole
from toolkit.export.ggml import Bytes, Floats, are_numbers, stored, widened
from toolkit.export.head import quantized_entries
from toolkit.export.llama_cpp import quantize_file
from toolkit.export.plain import slabs
from toolkit.export.values import Values
from toolkit.models.gguf_head import Head, HeadTensor, head_of
from toolkit.models.layout import Layout
from toolkit.models.safetensors_file import writing
from toolkit.run.hardware import free_disk_bytes

_AHEAD = 4
"""Slabs in work for each core: enough that none waits, few enough that memory stays bounded."""


@dataclass(frozen=True)
class Planned:
    """A file that is to be written: everything of it is known but the tensors' data."""

    file_type: str
    head: Head
    tensors: dict[str, HeadTensor]
    fallbacks: int = 0
    """Tensors that cannot take the file type's own quantization."""


def plan_converted(layout: Layout, entries: Mapping[str, bytes], file_type: str) -> Planned:
    """The file that the converter would write.

    Args:
        entries: its metadata.
        file_type: F32, F16 or BF16.
    """
    tensors = [HeadTensor(t["name"], tuple(t["shape"][::-1]), t["types"][file_type]) for t in layout.written]
    return Planned(file_type, head_of(entries, tensors), {tensor.name: tensor for tensor in tensors})


def plan_quantized(converted: Planned, entries: Mapping[str, bytes], file_types: Sequence[str]) -> list[Planned]:
    """The files that llama.cpp would quantize from it: llama.cpp is asked, on the converted file's head with a hole behind it.

    Args:
        entries: the converted file's metadata.

    Raises:
        UsageError: an unknown file type.
        ExternalToolError: llama.cpp refuses.
    """
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        hollow = Path(scratch) / "hollow.gguf"
        with writing(hollow), hollow.open("wb") as stream:
            stream.write(converted.head.bytes)
            stream.truncate(converted.head.size)
        for file_type in file_types:
            told = quantize_file(hollow, Path(scratch) / "never-written.gguf", file_type, plan=True)
            tensors = [HeadTensor(n, _shape(converted.tensors[n].shape), kind) for n, kind in told.types.items()]
            head = head_of(quantized_entries(entries, file_type), tensors)
            found.append(Planned(file_type, head, {t.name: t for t in tensors}, told.fallback_tensors))
    return found


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """As ggml tells a shape: without the axes of length 1 at its end."""
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def check_room(files: Sequence[Planned], out: Path) -> None:
    """Raises ResourceError where the files do not fit onto the disk; their sizes are known to the byte."""
    needed, free = sum(planned.head.size for planned in files), free_disk_bytes(out)
    if free < needed + 2**20:
        raise ResourceError(
            f"the files need {needed / 1e9:.1f} GB, {out} has {free / 1e9:.1f} GB free",
            f"{MAKE_ROOM}; or name fewer export.file_types.",
        )


def write_files(
    values: Values,
    layout: Layout,
    converted: Planned,
    files: Mapping[Path, Planned],
    tick: Callable[[int], None] = lambda _: None,
) -> None:
    """Write all files, each under its name when it is whole, and none where one fails.

    Args:
        converted: of whose values all others are quantized, whether it is one of them or not.
        files: name → what goes there.
        tick: is told the elements of each slab that is done.

    Raises:
        DataError: a tensor holds NaN or infinity where it is to be quantized.
        ResourceError: the disk is full.
    """
    with _new_files(files) as opened:
        work = _Work(values, layout, converted, opened, tick)
        workers = len(os.sched_getaffinity(0))
        with one_thread_each(), ThreadPoolExecutor(workers) as pool:
            pending: set[Future[None]] = set()
            try:
                for job in work.jobs():
                    pending.add(pool.submit(job))
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
    """What there is to do: a job for every slab of every tensor."""

    def __init__(
        self,
        values: Values,
        layout: Layout,
        converted: Planned,
        files: list[_Open],
        tick: Callable[[int], None],
    ) -> None:
        self.values, self.layout, self.converted, self.files, self.tick = values, layout, converted, files, tick
        self.quantizes = any(file.planned.file_type != converted.file_type for file in files)

    def jobs(self) -> Iterator[Callable[[], None]]:
        """In the order of the converted file. A tensor that is not made row by row is made here, before its jobs."""
        for name in self.converted.tensors:
            told = self.layout.tensors[name]
            blocks = blocks_of(told, lambda source: self.values.entry(source).shape, self.layout.arrays)
            length = self.converted.tensors[name].shape[0]
            if blocks is not None and all(self.values.by_rows(block.source) for block in blocks):
                for block in blocks:
                    for start, end in slabs(block.rows, length):
                        yield lambda n=name, b=block, s=start, e=end: self._merge(n, b, s, e)  # type: ignore[misc]
                continue
            made = whole(told, self.values.whole, self.layout.arrays, self.values.dtype)
            matrix = np.ascontiguousarray(made, np.float32).reshape(-1, length)
            for start, end in slabs(len(matrix), length):
                yield lambda n=name, m=matrix, s=start, e=end: self._store(n, m[s:e], s)  # type: ignore[misc]

    def _merge(self, name: str, block: Block, start: int, end: int) -> None:
        rows = self.values.rows(block.source, block.part(start, end))
        self._store(name, changed(self.layout.tensors[name], rows, self.values.dtype), block.begin + start)

    def _store(self, name: str, rows: Floats, first: int) -> None:
        """Write rows of a tensor into every file, each in the type that it has there.

        Args:
            first: number of the first row.
        """
        kind = self.converted.tensors[name].type
        raw = stored(rows, kind)
        if self.quantizes and not are_numbers(raw, kind):
            raise DataError(
                f"{name} holds values that {kind} cannot: NaN, or beyond its largest", "Export to F32 or BF16 first."
            )
        exact: Floats | None = None
        for file in self.files:
            tensor = file.planned.tensors[name]
            if tensor.type == kind:
                data: Bytes = raw
            else:
                exact = widened(raw, kind) if exact is None else exact
                data = stored(exact, tensor.type)
            with writing(file.path):
                place = file.planned.head.places[name] + first * tensor.row_bytes
                _write(file.descriptor, cast(Any, data).data.cast("B"), place)
        self.tick(rows.size)
