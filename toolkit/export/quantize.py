"""Quantized GGUF files as the pinned llama.cpp makes them: several file types from one reading."""

from __future__ import annotations

from pathlib import Path

from toolkit.errors import DataError
from toolkit.export.fused import write_files
from toolkit.export.imatrix_file import read_imatrix
from toolkit.export.pieces import pieces_of_file
from toolkit.export.planned import Planned, check_room, plan_of_file, plan_quantized
from toolkit.models.gguf_file import UNQUANTIZED, read_gguf
from toolkit.models.gguf_head import entries_of
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import GGUFFacts


def quantize(recipe: Recipe, gguf: Artifact[GGUFFacts], out: Path, imatrix: Path | None = None) -> GGUFFacts:
    """Write a file per `recipe.export.quantized` into `out`, all from the one converted file.

    Args:
        imatrix: an importance matrix to weigh the rounding's errors with.

    Raises:
        UsageError: an unknown file type.
        DataError: the converted file is damaged or quantized already, or holds values that a type cannot; a matrix of another
            model, or one that lacks what a type needs.
        ResourceError: the disk is full, or will be.
        ExternalToolError: llama.cpp refuses.
    """
    files: dict[Path, Planned] = {}
    if recipe.export.quantized:
        targets = {file_type: out / f"{recipe.name}-{file_type}.gguf" for file_type in recipe.export.quantized}
        files = quantize_file(gguf.folder / gguf.facts.files[0].name, targets, imatrix)
    return GGUFFacts(
        files=[planned.described(path) for path, planned in files.items()],
        architecture=gguf.facts.architecture,
        template_protected=gguf.facts.template_protected,
    )


def quantize_file(source: Path, targets: dict[str, Path], imatrix: Path | None = None) -> dict[Path, Planned]:
    """Write a quantized file of each type, all whole or none.

    Args:
        source: an F32, F16 or BF16 file.
        targets: file type → the file's name.
        imatrix: an importance matrix.

    Returns:
        What was written.

    Raises:
        as `quantize`.
    """
    header, entries = read_gguf(source), entries_of(source)
    converted = plan_of_file(header, entries)
    quantized = sorted({tensor.type for tensor in converted.tensors.values()} - set(UNQUANTIZED))
    if quantized:
        raise DataError(
            f"{source} is quantized already ({', '.join(quantized)}); a second rounding would add to the first",
            "Quantize from the converted file (F16, BF16 or F32).",
        )
    plans = plan_quantized(converted, entries, [*targets], read_imatrix(imatrix) if imatrix is not None else None)
    files = dict(zip(targets.values(), plans))
    check_room(plans, next(iter(files)).parent)
    with pieces_of_file(source, header) as pieces:
        write_files(pieces, converted, files, f"quantizing to {', '.join(targets)}")
    return files
