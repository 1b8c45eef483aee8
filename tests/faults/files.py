"""Damage to one GGUF file, in place or as a copy."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from toolkit.export.llama_cpp import file_type_number, library
from toolkit.models.gguf_file import read_gguf
from toolkit.ollama.repair import rewrite_template

Values = npt.NDArray[np.float32]
_STORED = {
    GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4", GGUFValueType.FLOAT32: "<f4", GGUFValueType.BOOL: "?",
}  # fmt: skip


def unpermuted(rows: Any, heads: int) -> Any:
    """Query or key rows (an array or tensor) in transformers' order, from llama.cpp's.

    llama.cpp rotates neighbouring pairs of a head's rows, transformers row i together with row i + half.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def set_value(path: Path, key: str, value: Any, index: int | None = None) -> None:
    """Change a number in a GGUF's metadata; `index`: in a list of numbers."""
    number = struct.Struct("<I")
    with path.open("r+b") as stream:
        stream.seek(read_gguf(path).places[key][0] + 8 + len(key.encode()))
        (kind,) = number.unpack(stream.read(4))
        if kind == GGUFValueType.ARRAY:
            (kind,) = number.unpack(stream.read(4))
            stream.seek(8, os.SEEK_CUR)
        stored = np.dtype(_STORED[kind])
        stream.seek((index or 0) * stored.itemsize, os.SEEK_CUR)
        stream.write(np.array(value, stored).tobytes())


def add_flag(path: Path, key: str) -> None:
    """Add a key whose value is true to a GGUF's metadata."""
    add_key(path, key, struct.pack("<I?", 7, True))


def add_key(path: Path, key: str, value: bytes) -> None:
    """Add a key to a GGUF's metadata; `value`: type and value as the format has them."""
    content = path.read_bytes()
    (count,) = struct.unpack_from("<Q", content, 16)
    flag = struct.pack("<Q", len(key)) + key.encode() + value
    # A second key fills up to whole steps of 32 bytes: the tensors behind must stay aligned.
    filler = -(len(flag) + 28) % 32
    flag += struct.pack("<Q", 8) + b"test.pad" + struct.pack("<IQ", 8, filler) + b" " * filler
    path.write_bytes(content[:16] + struct.pack("<Q", count + 2) + flag + content[24:])


def respell(path: Path, old: str, new: str) -> None:
    """Change a text in a GGUF's metadata (a token) for another of the same length."""
    content = path.read_bytes()
    before, after = (struct.pack("<Q", len(text.encode())) + text.encode() for text in (old, new))
    assert len(before) == len(after) and before in content, (old, new)
    path.write_bytes(content.replace(before, after, 1))


def stored_tensors(path: Path, mode: Literal["r", "r+"]) -> dict[str, Any]:
    """The F32 and F16 tensors of a GGUF by name, mapped, in transformers' order of the axes.

    gguf-py's own reader takes seconds for a vocabulary.
    """
    header, kinds = read_gguf(path), {"F32": np.float32, "F16": np.float16}
    return {
        t.name: np.memmap(path, kinds[t.type], mode, header.data_begin + t.offset, t.shape[::-1])
        for t in header.tensors
        if t.type in kinds
    }


def change_tensor(path: Path, name: str, change: Callable[[Values], Values]) -> None:
    """Change an F32 or F16 tensor; values in transformers' order of the axes, float32."""
    stored = stored_tensors(path, "r+")[name]
    stored[:] = change(stored.astype(np.float32)).astype(stored.dtype)


def add_tensor(path: Path, name: str, values: Values) -> None:
    """Write a GGUF anew with one more tensor, F16."""
    reader = GGUFReader(path)
    made = path.with_name("more.gguf")
    writer = GGUFWriter(made, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(
                field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor(name, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    made.replace(path)


def change_template(path: Path, old: str, new: str) -> None:
    """Change a part of a GGUF's chat template."""
    from toolkit.models.gguf_file import read_gguf

    template = read_gguf(path).metadata["tokenizer.chat_template"]
    assert old in template, old
    changed = rewrite_template(path, path.with_name("changed.gguf"), template.replace(old, new))
    changed.replace(path)


def quantize_again(source: Path, target: Path, file_type: str) -> None:
    """Quantize a file that is quantized already, which `toolkit.export.quantize` refuses to do."""
    library()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type_number(file_type)
    parameters.nthread = 1
    parameters.allow_requantize = True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters) == 0
