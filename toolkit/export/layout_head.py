"""What stands in the head of a file that the pinned converter writes, asked from it: metadata, and the list of tensors.

Part of `toolkit.export.layout_worker`, and of its process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FILE_TYPES = ("F32", "F16", "BF16")
"""Those that the converter writes here; all others are quantized from one of them."""
TEMPLATE = "tokenizer.chat_template"
"""In head.gguf only a place for it: templates are judged by what they render."""


def head(model: Any, out: Path) -> dict[str, Any]:
    """Every key that the converter writes, without a weight being read; head.gguf holds them in the converter's own bytes."""
    import gguf

    told: dict[str, Any] = {}
    named = gguf.Metadata.set_gguf_meta_model

    def listening(self: Any, writer: Any) -> None:
        before = set(writer.kv_data[0])
        named(self, writer)
        told["named"] = [key for key in writer.kv_data[0] if key not in before]

    gguf.Metadata.set_gguf_meta_model = listening
    try:
        model.prepare_tensors()
        model.prepare_metadata(vocab_only=False)
    finally:
        gguf.Metadata.set_gguf_meta_model = named
    writer = model.gguf_writer
    told["parameters"] = list(writer.get_total_parameter_count())
    told["metadata"] = {key: plain(value.value) for values in writer.kv_data for key, value in values.items()}
    told["metadata"].pop(TEMPLATE, None)
    writer.tensors = [{}]
    writer.write_header_to_file(path=out / "head.gguf")
    writer.write_kv_data_to_file()
    writer.close()
    return told


def written(make: Callable[[str], Any]) -> list[dict[str, Any]]:
    """The tensors in the order of a converted file, each with its type there by the file's type.

    Args:
        make: a new model of the converter's for a file type.
    """
    found: dict[str, dict[str, Any]] = {}
    for file_type in FILE_TYPES:
        model = make(file_type)
        model.prepare_tensors()
        for name, info in model.gguf_writer.tensors[0].items():
            row = found.setdefault(name, {"name": name, "shape": [int(size) for size in info.shape], "types": {}})
            row["types"][file_type] = info.dtype.name
    return list(found.values())


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return value.item()
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value  # of an IntEnum, its number
