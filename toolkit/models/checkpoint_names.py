"""Which tensors of a model's files make which of its parameters in memory: transformers is asked, which loads and saves them.

transformers 5 holds the experts of most models in one parameter a layer, and writes each expert's matrices on their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch


class CheckpointNames:
    """The way between the names of a model's files and of its parameters.

    Args:
        model: the model's structure; its weights may be on the meta device.
        names: of every tensor in the files.
    """

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        self._model = model
        own = set(model.state_dict())
        self._made: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
        """Parameter → (transformers' converter, the tensors that it takes: name, pattern)."""
        self._parameters: dict[str, str] = {}
        others = sorted((name for name in names if name not in own), key=_natural)
        if others:
            self._ask(others, own)

    def _ask(self, names: list[str], own: set[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        transforms = get_model_conversion_mapping(self._model)
        renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        converters = [t for t in transforms if isinstance(t, WeightConverter)]
        by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        state = dict.fromkeys(own, True)
        for name in names:
            found, pattern = rename_source_key(name, renamings, converters, self._model.base_model_prefix, state)
            if found not in own:
                continue
            converter = by_pattern[pattern] if pattern is not None else WeightRenaming(name, found)
            self._made.setdefault(found, (converter, []))[1].append((name, pattern or name))
            self._parameters[name] = found

    def parameter(self, name: str) -> str:
        """The parameter in memory that a tensor of the files belongs to."""
        return self._parameters.get(name, name)

    def sources(self, parameter: str) -> list[str]:
        """The tensors of the files that make a parameter."""
        return [name for name, _ in self._made[parameter][1]] if parameter in self._made else [parameter]

    def assemble(self, parameter: str, load: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """A parameter as transformers makes it from the tensors of the files that `load` gives."""
        if parameter not in self._made:
            return load(parameter)
        converter, sources = self._made[parameter]
        converter = copy.deepcopy(converter)
        for name, pattern in sources:
            converter.add_tensor(parameter, name, pattern, load(name))
        made = converter.convert(parameter, model=self._model, config=self._model.config)[parameter]
        found: torch.Tensor = made[0] if isinstance(made, list) else made
        return found

    def split(self, parameter: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A parameter as the tensors of the files, in the files' names: what transformers would save."""
        if parameter not in self._made:
            return {parameter: tensor}
        from transformers.core_model_loading import revert_weight_conversion

        parts: dict[str, torch.Tensor] = revert_weight_conversion(self._model, {parameter: tensor})
        sources = self.sources(parameter)
        if set(parts) != set(sources):  # a renaming that is not written back
            parts = dict(zip(sources, parts.values(), strict=True)) if len(parts) == len(sources) == 1 else parts
        return {name: parts[name].contiguous() for name in sources}


def _natural(name: str) -> Any:
    from transformers.core_model_loading import dot_natural_key

    return dot_natural_key(name)
