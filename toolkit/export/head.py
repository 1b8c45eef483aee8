"""The metadata of an exported GGUF file: what the pinned converter writes for the base, with this model's own names in it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import DataError
from toolkit.export.imatrix_file import Imatrix
from toolkit.export.llama_cpp import library, run_in_tree
from toolkit.export.settings import Settings
from toolkit.models.gguf_head import entries_of, head_of
from toolkit.models.gguf_metadata import entry_bytes
from toolkit.models.layout import Layout
from toolkit.run.artifacts import write_json

TEMPLATE = "tokenizer.chat_template"
END = "tokenizer.ggml.eos_token_id"
_FILE_TYPE, _VERSION = "general.file_type", "general.quantization_version"
KEYS_OF_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Besides `eos_token_id`; llama.cpp ends at each (src/llama-vocab.cpp, `special_eog_ids`)."""


def converted_entries(
    layout: Layout, settings: Settings, name: str, told: dict[str, Any], license_: str, template: str, file_type: str
) -> dict[str, bytes]:
    """The metadata of a converted file, in the converter's order: key → its entry.

    Args:
        name: what the model is called: the converter takes names from the folder's.
        told: as `toolkit.export.convert.metadata` gives it.
        template: the chat template.
        file_type: F32, F16 or BF16.

    Raises:
        DataError: the file would end answers with another token than the tokenizer does.
        ExternalToolError: the converter's own library fails.
    """
    names = _names(layout, settings, name, told, license_)
    entries: dict[str, bytes] = {}
    for key, entry in entries_of(layout.folder / "head.gguf").items():
        if key in layout.named:
            entries |= names  # all of them where the first one stood
        elif key == TEMPLATE:
            entries[key] = entry_bytes(key, template)
        elif key == _FILE_TYPE:
            entries[key] = entry_bytes(key, file_type_number(file_type))
        else:
            entries[key] = entry
    return entries


def _names(layout: Layout, settings: Settings, name: str, told: dict[str, Any], license_: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        view, out, overrides = Path(scratch) / name, Path(scratch) / "names.gguf", Path(scratch) / "metadata.json"
        view.mkdir()
        for path in settings.folder.iterdir():
            (view / path.name).symlink_to(path)
        # The one thing that the converter takes only from a model card.
        (view / "README.md").write_text(f"---\n{yaml.safe_dump({'license': license_})}---\n", encoding="utf-8")
        write_json(overrides, told)
        run_in_tree("naming_worker", str(view), str(out), str(overrides), ",".join(map(str, layout.parameters)))
        return entries_of(out)


def file_type_number(file_type: str) -> int:
    """llama.cpp's number of any file type, asked from the library."""
    llama = library()
    number = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{file_type}", None)
    return int(llama.LLAMA_FTYPE_ALL_F32 if number is None else number)


def quantized_entries(entries: Mapping[str, bytes], file_type: str, matrix: Imatrix | None = None) -> dict[str, bytes]:
    """The metadata of a file that llama.cpp quantizes: that of the converted file, with two keys set anew at its end.

    Args:
        matrix: what the rounding's errors are weighed with; named as `llama-quantize` names it (tools/quantize).
    """
    from gguf.constants import GGML_QUANT_VERSION

    anew: dict[str, Any] = {_VERSION: GGML_QUANT_VERSION, _FILE_TYPE: file_type_number(file_type)}
    if matrix is not None:
        anew |= {
            "quantize.imatrix.file": matrix.file,
            "quantize.imatrix.dataset": matrix.dataset,
            "quantize.imatrix.entries_count": len(matrix.means),
            "quantize.imatrix.chunks_count": matrix.sequences,
        }
    others = {key: entry for key, entry in entries.items() if key not in anew}
    return {**others, **{key: entry_bytes(key, value) for key, value in anew.items()}}


def check_end(wanted: int | None, found: Any, file: str, model: Path) -> None:
    """Compare the GGUF's end token with the tokenizer's, which training taught the model to write.

    Raises:
        DataError: they differ.
    """
    if wanted != found:
        raise DataError(
            f"{file} ends answers with token {found}, the tokenizer with {wanted}",
            f"Make eos_token of {model}/tokenizer_config.json and eos_token_id of its config.json agree.",
        )


def with_ends(entries: dict[str, bytes], ends: list[int], file: str) -> tuple[dict[str, bytes], str]:
    """The metadata with the ends named that llama.cpp does not know in this vocabulary.

    Args:
        ends: every token at which the model ends, the most important first.

    Returns:
        The entries, and a sentence about those that were named; empty where llama.cpp knows them all.
    """
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary = Path(scratch) / "vocabulary.gguf"
        vocabulary.write_bytes(head_of(entries, []).bytes)
        named, told = unknown_ends(ends, vocabulary, entries.keys(), file)
    return {**entries, **{key: entry_bytes(key, token) for key, token in named.items()}}, told


def unknown_ends(ends: list[int], vocabulary: Path, there: Any, file: str) -> tuple[dict[str, int], str]:
    """Ends that llama.cpp does not know: key → token to be named under it; and a sentence about them.

    Args:
        vocabulary: a GGUF file that holds it.
        there: the keys of its metadata.
    """
    from toolkit.parity.candidate import Candidate

    with Candidate(vocabulary, vocab_only=True) as candidate:
        unknown = [token for token in ends if not candidate.ends(token)]
        texts = {token: candidate.token_text(token) for token in unknown}
    if not unknown:
        return {}, ""
    named = dict(zip((key for key in KEYS_OF_ENDS if key not in there), unknown))
    told = ", ".join(f"{texts[token]!r} ({key.rpartition('.')[2]})" for key, token in named.items())
    left = [texts[token] for token in unknown if token not in named.values()]
    more = f"; not at {', '.join(map(repr, left))}: a GGUF file has no place for more" if left else ""
    return named, f"{file}: ends at {told or 'no other token'} too{more}."
