"""Files packed with gzip or Zstandard."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from toolkit.errors import DataError, UsageError

PACKED = (".gz", ".zst")
MOST_BYTES = 1 << 31
"""Of an unpacked file: a small file can unpack to more than any memory holds."""


def unpacked(file: Path, name: str) -> bytes:
    """The bytes of a file, unpacked where its name ends with .gz or .zst.

    Raises:
        UsageError: Zstandard cannot be read here.
        DataError: the file cannot be read, is damaged, or unpacks to more than 2 GiB.
    """
    kind = file.suffix.lower()
    try:
        if kind == ".gz":
            with gzip.open(file) as stream:
                raw = stream.read(MOST_BYTES + 1)
        elif kind == ".zst":
            raw = _zstandard(file, name)
        else:
            return file.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name} cannot be unpacked: {error}", "Pack it again, or unpack it first.") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{name} cannot be read: {reason}", f"Look at it: ls -l {file}") from error
    if len(raw) > MOST_BYTES:
        raise DataError(
            f"{name} unpacks to more than {MOST_BYTES / 2**30:.0f} GiB", "Unpack it, and part it into files."
        )
    return raw


def _zstandard(file: Path, name: str) -> bytes:
    try:
        import pyarrow
    except ImportError as error:
        hint = f"Install it: pip install 'tune2ollama[train]'; or unpack the file: unzstd {file}"
        raise UsageError(f"{name}: Zstandard needs pyarrow", hint) from error
    made = bytearray()
    with pyarrow.input_stream(str(file), compression="zstd") as stream:
        while len(made) <= MOST_BYTES and (piece := stream.read(1 << 20)):
            made += piece
    return bytes(made)
