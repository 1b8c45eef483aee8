"""Copies of GGUF files with other texts: what was asked changes, and nothing else by a byte."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.small_models import TREE
from toolkit.errors import DataError
from toolkit.models.gguf_file import read_gguf
from toolkit.models.gguf_metadata import copy_with_texts


def small(path: Path, alignment: int = 32) -> Path:
    """Two tensors, and values of several kinds around two texts."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "old")
    writer.add_token_list(["a", "general.name", "中"])
    writer.add_string("last.text", "kept")
    writer.add_tensor("first.weight", np.arange(7, dtype=np.float32))
    writer.add_tensor("second.weight", np.zeros((3, 5), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(new=st.text(max_size=90), added=st.text(max_size=90), alignment=st.sampled_from([8, 32, 64]))
def test_texts_are_changed_added_and_taken_away_again(new: str, added: str, alignment: int, tmp_path: Path) -> None:
    before = small(tmp_path / "before.gguf", alignment)
    after = copy_with_texts(before, tmp_path / "after.gguf", {"general.name": new, "our.key": added})
    first, second = read_gguf(before), read_gguf(after)
    assert second.metadata == {**first.metadata, "general.name": new, "our.key": added}
    assert list(second.metadata) == [*first.metadata, "our.key"]
    assert second.tensors == first.tensors
    assert before.read_bytes()[first.data_begin :] == after.read_bytes()[second.data_begin :]
    assert gguf.GGUFReader(after).get_field("our.key").contents() == added
    back = copy_with_texts(after, tmp_path / "back.gguf", {"general.name": "old", "our.key": None})
    assert back.read_bytes() == before.read_bytes()


def test_a_key_that_is_not_there_is_not_missed(tmp_path: Path) -> None:
    before = small(tmp_path / "before.gguf")
    assert copy_with_texts(before, tmp_path / "same.gguf", {"no.such": None}).read_bytes() == before.read_bytes()


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    source = TREE / "models" / "ggml-vocab-qwen2.gguf"
    told: list[int] = []
    made = copy_with_texts(source, tmp_path / "named.gguf", {"general.name": "a name"}, tick=told.append)
    assert read_gguf(made).metadata == {**read_gguf(source).metadata, "general.name": "a name"}
    assert sum(told) == made.stat().st_size


def test_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    cut = small(tmp_path / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(DataError, match="truncated"):
        copy_with_texts(cut, tmp_path / "out.gguf", {"general.name": "x"})
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]
