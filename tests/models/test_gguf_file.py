"""GGUF headers: equal to gguf-py's reading, and damaged files named before llama.cpp sees them."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_models import TREE
from toolkit.errors import DataError
from toolkit.models.gguf_file import read_gguf


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "klein äöü 小")
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.rope.freq_base", 10_000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.0])
    writer.add_array("empty.list", ["only"])
    writer.add_tensor("a.weight", np.ones((4, 32), dtype=np.float32))
    writer.add_tensor("b.weight", np.ones((2, 64), dtype=np.float16))
    quantized = gguf.quants.quantize(np.ones((3, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("c.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values(small: Path) -> None:
    header = read_gguf(small)
    assert header.architecture == "llama"
    assert header.metadata["general.name"] == "klein äöü 小"
    assert header.metadata["llama.block_count"] == 3
    assert header.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ü"]
    assert header.metadata["tokenizer.ggml.scores"] == [0.5, 1.0]
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert [(t.name, t.shape, t.type, t.bytes) for t in header.tensors] == [
        ("a.weight", (32, 4), "F32", 512),
        ("b.weight", (64, 2), "F16", 256),
        ("c.weight", (64, 3), "Q8_0", 3 * 2 * 34),
    ]


def test_equal_to_gguf_py() -> None:
    path = TREE / "models" / "ggml-vocab-gpt-2.gguf"
    header, reader = read_gguf(path), gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.metadata.keys() == theirs.keys()
    assert all(header.metadata[key] == value or math.isnan(value) for key, value in theirs.items())


def test_every_truncation_is_seen(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    last = read_gguf(small).tensors[-1]
    end = read_gguf(small).data_begin + last.offset + last.bytes
    for length in [*range(1, end, 37), end - 1]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(content[:length])
        with pytest.raises(DataError) as fault:
            read_gguf(path)
        assert str(path) in fault.value.message
        assert fault.value.hint
    assert f"{end} bytes expected, {end - 1} found" in fault.value.message


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 500), value=st.integers(0, 255))
def test_damage_never_crashes(small: Path, tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    content = bytearray(small.read_bytes())
    content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    try:
        read_gguf(path)
    except DataError as fault:
        assert "damaged.gguf" in fault.message


def written(path: Path, *entries: tuple[str, int, bytes]) -> Path:
    """A GGUF with one tensor and these metadata: (key, type, value)."""
    content = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries))
    for key, kind, value in entries:
        content += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value
    content += struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 32, 0, 0)
    path.write_bytes(content + bytes(-len(content) % 32 + 128))
    return path


TEXT = struct.pack("<Q", 2) + b"32"


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (4, struct.pack("<I", 0), "general.alignment is '0', and a power of two is needed"),
        (4, struct.pack("<I", 24), "general.alignment is '24'"),
        (8, TEXT, "general.alignment is '32'"),
        (7, b"\x01", "general.alignment is 'True'"),
    ],
)
def test_an_alignment_that_is_none(kind: int, value: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"damaged or truncated within its header .*{said}"):
        read_gguf(written(tmp_path / "x.gguf", ("general.alignment", kind, value)))


def test_a_power_of_two_is_an_alignment(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", ("general.alignment", 4, struct.pack("<I", 16)))
    assert read_gguf(path).data_begin % 16 == 0


def test_lists_of_lists_are_refused_however_deep(tmp_path: Path) -> None:
    deep = b"".join(struct.pack("<IQ", 9, 1) for _ in range(100_000)) + struct.pack("<IQB", 0, 1, 0)
    with pytest.raises(DataError, match="a list of lists at byte"):
        read_gguf(written(tmp_path / "x.gguf", ("deep", 9, deep)))


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip archive", b"GGUF\x01\0\0\0" + b"\0" * 16])
def test_no_gguf(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.gguf"):
        read_gguf(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_gguf(tmp_path / "missing.gguf")
