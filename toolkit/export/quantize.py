"""Quantize the converted GGUF file with the pinned llama.cpp, in this process: several file types in one go."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from toolkit.errors import MAKE_ROOM, ResourceError
from toolkit.export.imatrix_file import Imatrix, read_imatrix
from toolkit.export.llama_cpp import file_type_number, quantize_file
from toolkit.models.gguf_file import read_gguf
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, file_sha256
from toolkit.run.facts import GGUFFacts, GGUFFile
from toolkit.run.hardware import free_disk_bytes


def quantize(recipe: Recipe, gguf: Artifact[GGUFFacts], out: Path, imatrix: Path | None = None) -> GGUFFacts:
    """Write a file per `recipe.export.quantized` into `out`, all from the one converted file.

    Args:
        imatrix: an importance matrix to weigh the rounding's errors with.

    Raises:
        UsageError: an unknown file type.
        DataError: the converted file is damaged or quantized already.
        ResourceError: the disk is full, or will be.
        ExternalToolError: llama.cpp refuses.
    """
    source = gguf.folder / gguf.facts.files[0].name
    file_types = recipe.export.quantized
    for file_type in file_types:
        file_type_number(file_type)
    matrix = read_imatrix(imatrix) if imatrix is not None and file_types else None
    if matrix is not None:
        matrix.check(source)
    check_disk(source, file_types, out, matrix)
    files = [_quantize(source, recipe.name, file_type, out, matrix) for file_type in file_types]
    return GGUFFacts(
        files=files, architecture=gguf.facts.architecture, template_protected=gguf.facts.template_protected
    )


def check_disk(source: Path, file_types: list[str], out: Path, matrix: Imatrix | None = None) -> None:
    """Ask llama.cpp how large the files will be.

    Raises:
        ResourceError: they do not fit.
    """
    header = read_gguf(source).data_begin
    planned = sum(
        quantize_file(source, out / "planned", t, plan=True, matrix=matrix).bytes + header for t in file_types
    )
    free = free_disk_bytes(out)
    if free < planned * 1.01:
        raise ResourceError(
            f"the quantized files need {planned / 1e9:.1f} GB, {out} has {free / 1e9:.1f} GB free",
            f"{MAKE_ROOM}; or name fewer export.file_types.",
        )


def _quantize(source: Path, name: str, file_type: str, out: Path, matrix: Imatrix | None) -> GGUFFile:
    target = out / f"{name}-{file_type}.gguf"
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(f"quantizing to {file_type}", total=None)
        result = quantize_file(
            source,
            target,
            file_type,
            lambda done, total: progress.update(task, completed=done, total=total),
            matrix=matrix,
        )
    return GGUFFile(
        name=target.name,
        file_type=file_type,
        bytes=target.stat().st_size,
        sha256=file_sha256(target),
        fallback_tensors=result.fallback_tensors,
        tensors=result.tensors,
    )
