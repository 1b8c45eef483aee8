"""What the pinned converter makes of a model folder, asked from the converter itself: a process of its own.

    python -m toolkit.export.layout_worker FOLDER OUT [--architecture | --projector]

The converter's `conversion` package needs the gguf-py of its own tree, which this toolkit's process has not: so it is asked here,
with the tree first on Python's path (see `toolkit.export.llama_cpp.ask_converter`). No weight is read. Instead of a tensor the
converter is given numbers that tell where they stood (their row, their column, the tensor that they are of), and constants that
tell what is done to a value. What comes out of its own `modify_tensors` says what becomes of each tensor; the answer is then
proved on random numbers, and what cannot be proved is called unknown.

--architecture: only what llama.cpp calls it. --projector: of the file that sees (`--mmproj`), not of the language model's.

OUT gets layout.json, layout.npz and head.gguf; `toolkit.models.layout` tells the format, and reads it.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.export.converter_process import class_of, without_mtp
from toolkit.export.layout_head import head, written
from toolkit.models.layout_format import made_of

Array = Any  # numpy arrays of any type: this file is checked without numpy's stubs for the tree's own arrays
CONSTANTS = (0.0, 1.0, -2.0, 0.5)
LARGEST_MAP = 1 << 22
"""Elements of a tensor whose places are kept one by one, where they do not follow from its axes."""
SEED = 7
MOST_AXES = 5
"""Of a tensor: the patches of a picture are read by a convolution over channels, frames, rows and columns."""


@dataclass(frozen=True)
class Probe:
    """What the converter is given for a tensor."""

    kind: str
    """constant, source or axis."""
    value: float = 0.0
    """The constant; the number of the axis."""


@dataclass(frozen=True)
class Source:
    """A tensor of the model folder."""

    number: int
    name: str
    shape: tuple[int, ...]


PROBES = (
    *(Probe("constant", value) for value in CONSTANTS),
    Probe("source"),
    *(Probe("axis", axis) for axis in range(MOST_AXES)),
)


def step(size: int) -> float:
    """Distance between the numbers of neighbouring places: a power of two, so that they are exact, and small enough for exp."""
    return 2.0 ** -max(0, math.ceil(math.log2(max(size, 1))) - 3)


def given(probe: Probe, number: int, count: int, shape: tuple[int, ...]) -> torch.Tensor:
    """What stands for source `number` of `count`, float32, of the source's shape; a view that takes no memory."""
    if probe.kind == "constant":
        return torch.tensor(probe.value).expand(shape)
    if probe.kind == "source":
        return torch.tensor(number * step(count)).expand(shape)
    axis = int(probe.value)
    if axis >= len(shape):
        return torch.tensor(0.0).expand(shape)
    line = torch.arange(shape[axis], dtype=torch.float32) * step(shape[axis])
    return line.reshape([-1 if i == axis else 1 for i in range(len(shape))]).expand(shape)


def random(source: Source) -> torch.Tensor:
    """The same random numbers for a source every time, float32."""
    return torch.randn(source.shape, generator=torch.Generator().manual_seed(SEED + source.number))


class Function:
    """What happens to a value on its way: a * v + b, or -exp(v)."""

    def __init__(self, outputs: list[float]) -> None:
        zero, one, *others = outputs
        a, b = one - zero, zero
        self.a, self.b = a, b
        self.negative_exp = False
        if not all(math.isclose(a * v + b, o, abs_tol=1e-6) for v, o in zip(CONSTANTS[2:], others)) or a == 0:
            self.negative_exp = all(math.isclose(-math.exp(v), o, rel_tol=1e-5) for v, o in zip(CONSTANTS, outputs))
            if not self.negative_exp:
                raise ValueError(f"values {CONSTANTS} become {outputs}")

    def undone(self, values: Array) -> Array:
        """The values that these were made of, float64."""
        values = values.astype(np.float64)
        return np.log(-values) if self.negative_exp else (values - self.b) / self.a

    def done(self, values: Array) -> Array:
        """What becomes of values, float64."""
        return -np.exp(values) if self.negative_exp else self.a * values + self.b

    def told(self) -> Any:
        """As layout.json has it."""
        return "-exp" if self.negative_exp else [self.a, self.b]


def ask(model: Any, name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """What the converter makes of a tensor: (name in the GGUF, values); none where it leaves it out or waits for others."""
    known = renamed(model, name)
    if known is None:
        return []
    number = next((int(part) for part in known.split(".") if part.isdecimal()), None)
    return [(new, made) for new, made in model.modify_tensors(tensor, known, number)]


def is_copy(made: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether nothing was done to a tensor: the very same memory, seen in the same way."""
    return made.data_ptr() == given.data_ptr() and made.shape == given.shape and made.stride() == given.stride()


def core(tensor: torch.Tensor) -> Array:
    """A tensor's values without repeating those that are the same along an axis: such an axis has the length 1."""
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())].numpy()


def renamed(model: Any, name: str) -> str | None:
    """The name by which the converter knows a tensor; None where it leaves the tensor out."""
    if name.endswith((".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq")):
        return None
    found = model.filter_tensors((name, lambda: None))
    return None if found is None else str(found[0])


def read(name: str, made: list[torch.Tensor], sources: list[Source]) -> tuple[dict[str, Any], dict[str, Array]]:
    """What a tensor of the GGUF is made of; ValueError where that cannot be told.

    Args:
        made: what came out for each of `PROBES`.

    Returns:
        As layout.json has it, and the index arrays that it names.
    """
    shape = tuple(made[0].shape)
    arrays = [core(tensor) for tensor in made]
    constants, numbers, axes = arrays[: len(CONSTANTS)], arrays[len(CONSTANTS)], arrays[len(CONSTANTS) + 1 :]
    if not all(array.size and (array == array.flat[0]).all() for array in constants):
        raise ValueError("its values are not all made alike")
    function = Function([float(array.flat[0]) for array in constants])
    rows = shape[0] if shape else 1
    by_row = np.rint(
        function.undone(numbers.reshape(numbers.shape[0] if shape else 1, -1)) / step(len(sources))
    ).astype(np.int64)
    if not (by_row == by_row[:, :1]).all():
        raise ValueError("a row is made of several tensors")
    of = np.broadcast_to(by_row[:, 0], rows)
    parts, kept, begin = [], {}, 0
    while begin < rows:
        end = begin + int(np.argmax(np.append(of[begin:], -1) != of[begin]))
        source, part = sources[int(of[begin])], (end - begin, *shape[1:]) if shape else ()
        told = []
        for i, axis in enumerate(axes[: len(source.shape)]):
            slab = axis[begin:end] if shape and axis.shape[0] == rows else axis
            along, array = places(np.rint(function.undone(slab) / step(source.shape[i])).astype(np.int64), part)
            same = along >= 0 and np.array_equal(array, np.arange(source.shape[i]))
            key = "" if same else f"{name}/{begin}/{i}"
            if key:
                kept[key] = array.astype(np.int32)
            told.append({"axis": along, "key": key})
        parts.append({"source": source.name, "begin": begin, "end": end, "index": told})
        begin = end
    return {"shape": list(shape), "value": function.told(), "parts": parts}, kept


def places(array: Array, shape: tuple[int, ...]) -> tuple[int, Array]:
    """Along which axis of the output a source's axis runs, and the places there; axis -1: all places, one by one, flat."""
    for axis in range(array.ndim):
        line = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
        if (line == line[:, :1]).all():
            return axis, np.broadcast_to(line[:, 0], shape[axis])
    if math.prod(shape) > LARGEST_MAP:
        raise ValueError("its places follow from no axis")
    return -1, np.broadcast_to(array, shape).reshape(-1)


def copied(source: Source) -> dict[str, Any]:
    """A tensor that is taken over as it is."""
    index = [{"axis": axis, "key": ""} for axis in range(len(source.shape))]
    part = {"source": source.name, "begin": 0, "end": source.shape[0] if source.shape else 1, "index": index}
    return {"shape": list(source.shape), "value": [1.0, 0.0], "parts": [part]}


def layout(make: Callable[[], Any], sources: list[Source], tied_head: str) -> tuple[dict[str, Any], dict[str, Array]]:
    """What becomes of every tensor, and the tensors that the converter adds."""
    models = [make() for _ in PROBES]
    tensors: dict[str, Any] = {}
    kept: dict[str, Array] = {}
    unknown: dict[str, str] = {}
    for extra in models[0].generate_extra_tensors():
        for name, values in ask(models[0], *extra):
            kept[name] = values.float().numpy()
            tensors[name] = {"shape": list(values.shape), "constant": name}
    for source in sources:
        probes = [given(probe, source.number, len(sources), source.shape) for probe in PROBES]
        found = [ask(model, source.name, tensor) for model, tensor in zip(models, probes)]
        for outputs in zip(*found, strict=True):
            name, made = outputs[0][0], [tensor for _, tensor in outputs]
            if all(is_copy(*pair) for pair in zip(made, probes)):
                tensors[name] = copied(source)
                continue
            try:
                tensors[name], indices = read(name, made, sources)
                kept.update(indices)
            except (ValueError, IndexError) as error:
                unknown[name] = str(error)
    unknown |= disproved(make(), sources, tensors, kept)
    for name in unknown:
        tensors.pop(name, None)
    return {"tensors": tensors, "unknown": unknown, "tied_head": head_name(models[0]) if tied_head else ""}, kept


def disproved(model: Any, sources: list[Source], tensors: dict[str, Any], kept: dict[str, Array]) -> dict[str, str]:
    """Tensors of which random numbers come out otherwise than the answer says: name → how it shows."""
    changed = {name: told for name, told in tensors.items() if "parts" in told and not is_plain(told)}
    taking_part = {part["source"] for told in changed.values() for part in told["parts"]}
    found = {}
    for source in sources:
        if source.name not in taking_part:
            continue
        for name, made in ask(model, source.name, random(source)):
            if name in changed and not agrees(changed[name], made.numpy(), {s.name: s for s in sources}, kept):
                found[name] = "random numbers come out otherwise"
    return found


def is_plain(told: dict[str, Any]) -> bool:
    """Whether a tensor is one source's, value for value at its place."""
    return (
        told["value"] == [1.0, 0.0] and len(told["parts"]) == 1 and not any(i["key"] for i in told["parts"][0]["index"])
    )


def agrees(told: dict[str, Any], wanted: Array, sources: dict[str, Source], kept: dict[str, Array]) -> bool:
    """Whether `told` makes of random numbers what the converter made of them."""
    values = {part["source"]: random(sources[part["source"]]).numpy() for part in told["parts"]}
    found = made_of(told, values.__getitem__, kept)
    return found.shape == wanted.shape and bool(np.allclose(found, wanted, rtol=1e-5, atol=1e-6))


def head_name(model: Any) -> str:
    """How the GGUF would call an output head of its own."""
    import gguf

    try:
        return str(model.format_tensor_name(gguf.MODEL_TENSOR.OUTPUT))
    except ValueError:
        return ""


def acting(model: Any) -> Any:
    """The model that does the work: some of the converter's classes choose another for it when they are made."""
    from conversion import ModelBase

    return next((inner for inner in vars(model).values() if isinstance(inner, ModelBase)), model)


def main(folder: Path, out: Path, only_architecture: bool, projector: bool) -> None:
    """Ask, and write the answer into `out`."""
    import gguf

    logging.disable(logging.WARNING)
    model_class = class_of(folder, projector)
    answer: dict[str, Any] = {"architecture": gguf.MODEL_ARCH_NAMES[model_class.model_arch]}
    kept: dict[str, Array] = {}
    if not only_architecture:
        if not projector and without_mtp(model_class, folder):
            model_class.no_mtp = True

        def make(file_type: str = "F32") -> Any:
            kind = gguf.LlamaFileType["ALL_F32" if file_type == "F32" else f"MOSTLY_{file_type}"]
            return acting(model_class(folder, kind, out / "never-written.gguf"))

        wanted = json.loads((folder / "sources.json").read_text(encoding="utf-8"))
        sources = [Source(i, name, tuple(shape)) for i, (name, shape) in enumerate(wanted["tensors"].items())]
        with torch.inference_mode():
            answer |= head(make(), out)
            answer["written"] = written(make)
            found, kept = layout(make, sources, wanted["tied_head"])
        answer |= found
    np.savez(out / "layout.npz", **kept)
    (out / "layout.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "--architecture" in sys.argv[3:], "--projector" in sys.argv[3:])
