"""What a GGUF file will hold, to the byte, before any of its tensors is made."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import MAKE_ROOM, DataError, ResourceError
from toolkit.export.ggml import Floats, needs_importance
from toolkit.export.head import quantized_entries
from toolkit.export.imatrix_file import Imatrix
from toolkit.export.llama_cpp import ask_quantizer
from toolkit.models.gguf_file import GGUFHeader
from toolkit.models.gguf_head import Head, HeadTensor, head_of
from toolkit.models.layout import Layout
from toolkit.models.safetensors_file import writing
from toolkit.run.artifacts import file_sha256
from toolkit.run.facts import GGUFFile
from toolkit.run.hardware import free_disk_bytes

_HEADS_OF_THE_MODEL = ("token_embd.weight", "output.weight")
"""llama.cpp rounds these without an importance matrix, whatever their type (src/llama-quant.cpp, `tensor_requires_imatrix`)."""


@dataclass(frozen=True)
class Planned:
    """A file that is to be written: everything of it is known but the tensors' data."""

    file_type: str
    """Empty of a file that was there before."""
    head: Head
    tensors: dict[str, HeadTensor]
    fallbacks: int = 0
    """Tensors that cannot take the file type's own quantization."""
    matrix: Imatrix | None = None
    """What the rounding's errors are weighed with."""

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(tensor.rows * tensor.shape[0] for tensor in self.tensors.values())

    def described(self, path: Path) -> GGUFFile:
        """The file that was written by this plan."""
        return GGUFFile(
            name=path.name,
            file_type=self.file_type,
            bytes=path.stat().st_size,
            sha256=file_sha256(path),
            fallback_tensors=self.fallbacks,
            tensors=len(self.tensors),
        )

    def importance(self, name: str) -> Floats | None:
        """Of a tensor's columns: float32 [matrices, row length], a matrix for each expert; None: all count the same."""
        return None if self.matrix is None else self.matrix.of(name, self.tensors[name].shape[0])


def plan_converted(layout: Layout, entries: Mapping[str, bytes], file_type: str) -> Planned:
    """The file that the converter would write.

    Args:
        entries: its metadata.
        file_type: F32, F16 or BF16.
    """
    tensors = [HeadTensor(t["name"], tuple(t["shape"][::-1]), t["types"][file_type]) for t in layout.written]
    return Planned(file_type, head_of(entries, tensors), {tensor.name: tensor for tensor in tensors})


def plan_of_file(header: GGUFHeader, entries: Mapping[str, bytes]) -> Planned:
    """A converted file that is there.

    Args:
        entries: its metadata.
    """
    tensors = [HeadTensor(t.name, t.shape, t.type) for t in header.tensors]
    return Planned("", head_of(entries, tensors), {tensor.name: tensor for tensor in tensors})


def plan_quantized(
    converted: Planned, entries: Mapping[str, bytes], file_types: Sequence[str], matrix: Imatrix | None = None
) -> list[Planned]:
    """The files that llama.cpp would quantize from it: llama.cpp is asked, on the converted file's head with a hole behind it.

    Args:
        entries: the converted file's metadata.
        matrix: what the rounding's errors are weighed with.

    Raises:
        UsageError: an unknown file type.
        DataError: the importance matrix is one of another model, or leaves out a tensor whose type cannot do without.
        ExternalToolError: llama.cpp refuses.
    """
    if not file_types:
        return []
    if matrix is not None:
        matrix.check({name: tensor.shape for name, tensor in converted.tensors.items()})
    found = []
    with _hollow(converted) as source:
        for file_type in file_types:
            told = ask_quantizer(source, file_type, matrix)
            tensors = [HeadTensor(n, _shape(converted.tensors[n].shape), kind) for n, kind in told.types.items()]
            head = head_of(quantized_entries(entries, file_type, matrix), tensors)
            planned = Planned(file_type, head, {t.name: t for t in tensors}, told.fallback_tensors, matrix)
            _check_importance(planned)
            found.append(planned)
    return found


@contextmanager
def _hollow(planned: Planned) -> Iterator[Path]:
    """A file's head with a hole for the data."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "hollow.gguf"
        with writing(path), path.open("wb") as stream:
            stream.write(planned.head.bytes)
            stream.truncate(planned.head.size)
        yield path


def _check_importance(planned: Planned) -> None:
    for name, tensor in planned.tensors.items():
        needs = needs_importance(tensor.type) and name not in _HEADS_OF_THE_MODEL
        if needs and planned.importance(name) is None:
            raise DataError(
                f"{planned.file_type} makes {name} {tensor.type}, which cannot be rounded to without its importance"
                + (f", and {planned.matrix.file} has none of it" if planned.matrix is not None else ""),
                "Let the run measure it (export.imatrix: true), or choose another file type.",
            )


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
