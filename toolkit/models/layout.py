"""What a right GGUF of a model is: every key of its metadata, and what becomes of every tensor.

The pinned converter is the one who knows, so it is asked (`toolkit.export.layout_worker`, a process of its own), once for a
model: the answer is kept in the cache under the sum of what it depends on. Files of an answer:

    layout.json  architecture
                 metadata     key → value, all that the converter writes
                 named        the keys among them that tell names and origins, not the model: they are another file's own
                 parameters   all, shared, of one expert, number of experts: of which the size in a name is made
                 written      the tensors as a converted file lists them: name, shape, types (a file's type → the tensor's)
                 tensors      name in the GGUF → {shape, value, parts} or {shape, constant}; shapes in transformers' order
                   value      what is done to each value: [a, b] is a * v + b, "-exp" is -exp(v)
                   parts      {source, begin, end, index}: rows begin … end of the tensor are of this tensor of the model folder
                     index    for each axis of the source: along which axis of the part it runs, and under which key of layout.npz
                              its places stand (empty: 0, 1, 2, …); axis -1: the places of all elements, flat
                   constant   key of layout.npz: a tensor that the converter adds (RoPE factors)
                 unknown      name in the GGUF → why nobody can tell what it is made of
                 tied_head    how an output head of its own would be called, where the model's head is its embedding
    layout.npz   int32 places and float32 constants
    head.gguf    the keys as the converter writes them, byte for byte, for a file of F32; the chat template is a placeholder

Imports no torch by itself: a plan asks for the architecture.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.export.llama_cpp import ask_converter
from toolkit.models.bases import CONFIG_FILES, PROCESSOR_FILES, TOKENIZER_FILES
from toolkit.models.layout_format import Array, made_of
from toolkit.models.safetensors_file import Entry
from toolkit.run.artifacts import file_sha256, text_sha256
from toolkit.run.places import cache_home
from toolkit.setup.bootstrap import LLAMA_CPP_PYTHON

if TYPE_CHECKING:
    import torch

SETTINGS = tuple(n for n in (*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES) if not n.startswith("chat_template"))
"""Files of a model folder that the converter reads besides the weights. Templates are judged by what they render."""


@dataclass(frozen=True)
class Layout:
    """The converter's answer for a model."""

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, dict[str, Any]]
    """Name in the GGUF → what it is made of."""
    unknown: dict[str, str]
    tied_head: str
    arrays: dict[str, Array] = field(repr=False)
    folder: Path
    """Holds the answer's files."""
    named: list[str]
    parameters: list[int]
    written: list[dict[str, Any]]

    def sources(self, name: str) -> list[str]:
        """The model folder's tensors that a tensor of the GGUF is made of, each once; none for one that the converter adds."""
        return list(dict.fromkeys(part["source"] for part in self.tensors[name].get("parts", ())))

    def shape(self, name: str) -> tuple[int, ...]:
        """In transformers' order of the axes."""
        return tuple(self.tensors[name]["shape"])

    def make(self, name: str, load: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """A tensor of the GGUF, float32, from the model folder's tensors.

        Args:
            load: a tensor of the model folder by its name, float32.
        """
        import torch

        return torch.from_numpy(made_of(self.tensors[name], lambda source: load(source).numpy(), self.arrays))

    def constant(self, name: str) -> torch.Tensor:
        """A tensor that the converter adds, float32."""
        import torch

        return torch.from_numpy(made_of(self.tensors[name], _nothing, self.arrays))

    def label(self, name: str) -> str:
        """A tensor of the GGUF as people call it: by the model folder's own name; numbers that vary are a star."""
        sources = self.sources(name) if name in self.tensors else []
        if len(sources) < 2:
            return sources[0] if sources else name
        parts = [source.split(".") for source in sources]
        if len({len(part) for part in parts}) > 1:
            return name
        return ".".join(words[0] if len(set(words)) == 1 else "*" for words in zip(*parts))

    def becomes(self, name: str) -> str:
        """In a word: copied, transposed, rows permuted, value changed, stacked, split, reshaped, added or unknown."""
        if name not in self.tensors:
            return "unknown"
        told = self.tensors[name]
        if "constant" in told:
            return "added"
        if len(told["parts"]) > 1:
            return "stacked"
        if told["value"] != [1.0, 0.0]:
            return "value changed"
        index = told["parts"][0]["index"]
        moved = [i for i in index if i["key"]]
        if not moved:
            axes = [i["axis"] for i in index]
            if axes == list(range(len(told["shape"]))):
                return "copied"
            return "transposed" if sorted(axes) == list(range(len(told["shape"]))) else "reshaped"
        rows = self.arrays[moved[0]["key"]]
        if index[0]["axis"] == 0 and len(moved) == 1 and moved[0] is index[0] and len(set(rows.tolist())) == len(rows):
            ordered = sorted(rows.tolist())
            permuted = ordered == list(range(len(rows))) and ordered != rows.tolist()
            return "rows permuted" if permuted else "split"
        return "split" if len(told["shape"]) == len(index) else "reshaped"


def _nothing(source: str) -> Array:
    raise KeyError(source)


def layout_of(
    settings: Path, entries: Iterable[Entry], tied_head: str | None = None, projector: bool = False
) -> Layout:
    """The layout of a model, from the cache or asked now (some ten seconds).

    Args:
        settings: a folder with the model's configuration, tokenizer and processor.
        entries: every tensor of the model, whose values do not matter.
        tied_head: name of a head that is the embedding itself, and no tensor of its own.
        projector: of the file that sees (mmproj), not of the language model's.

    Raises:
        DataError: an architecture or tokenizer that llama.cpp does not know.
        ExternalToolError: the converter fails.
    """
    entries = list(entries)
    folder = cache_home() / "layouts" / _key(settings, entries, tied_head, projector)[:40]
    if not (folder / "layout.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".asked-") as scratch:
            view, answer = Path(scratch) / "model", Path(scratch) / "answer"
            answer.mkdir()
            _show(settings, entries, tied_head, view)
            ask_converter(view, answer, "projector" if projector else "")
            # Who was faster has written the same.
            if not folder.exists():
                answer.replace(folder)
    return read_layout(folder)


def read_layout(folder: Path) -> Layout:
    """A layout's files, read."""
    told = json.loads((folder / "layout.json").read_text(encoding="utf-8"))
    with np.load(folder / "layout.npz", allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    return Layout(
        told["architecture"],
        told["metadata"],
        told["tensors"],
        told["unknown"],
        told["tied_head"],
        kept,
        folder,
        told["named"],
        told["parameters"],
        told["written"],
    )


def architecture_of(folder: Path) -> str:
    """What llama.cpp calls the architecture of a model folder; its weights are not needed.

    Raises:
        DataError: one that it does not know.
    """
    kept = cache_home() / "layouts" / f"{_asked(file_sha256(folder / 'config.json'))[:40]}.architecture"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".asked-") as scratch:
            ask_converter(folder.resolve(), Path(scratch), "architecture")
            name = json.loads((Path(scratch) / "layout.json").read_text(encoding="utf-8"))["architecture"]
            (Path(scratch) / "name").write_text(name, encoding="utf-8")
            (Path(scratch) / "name").replace(kept)
    return kept.read_text(encoding="utf-8")


def _asked(what: str) -> str:
    """Sum of a question and of everybody who answers it."""
    package = Path(__file__).parents[1]
    programs = [
        file_sha256(package / name)
        for name in ("export/layout_worker.py", "export/layout_head.py", "models/layout_format.py")
    ]
    return text_sha256(json.dumps([what, LLAMA_CPP_PYTHON, *programs]))


def _key(settings: Path, entries: list[Entry], tied_head: str | None, projector: bool) -> str:
    files = {name: file_sha256(settings / name) for name in SETTINGS if (settings / name).is_file()}
    return _asked(json.dumps([files, [(e.name, e.dtype, e.shape) for e in entries], tied_head, projector]))


def _show(settings: Path, entries: list[Entry], tied_head: str | None, view: Path) -> None:
    """A folder that the converter takes for the model: its settings, and a file of weights of which only the header is there."""
    view.mkdir()
    for name in SETTINGS:
        if (settings / name).is_file():
            shutil.copyfile(settings / name, view / name)
    # A template of this view's own: the converter prefers one in tokenizer_config.json.
    tokenizer = view / "tokenizer_config.json"
    if tokenizer.is_file():
        told = json.loads(tokenizer.read_text(encoding="utf-8"))
        told.pop("chat_template", None)
        tokenizer.write_text(json.dumps(told), encoding="utf-8")
    (view / "chat_template.jinja").write_text("{# a placeholder #}", encoding="utf-8")
    header, end = {}, 0
    for entry in entries:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.bytes],
        }
        end += entry.bytes
    text = json.dumps(header).encode()
    with (view / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole: no disk is used
    sources = {"tensors": {entry.name: entry.shape for entry in entries}, "tied_head": tied_head or ""}
    (view / "sources.json").write_text(json.dumps(sources), encoding="utf-8")
