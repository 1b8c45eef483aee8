"""PEFT's own layers on a model without weights: they merge what an adapter changes, one layer at a time.

LoRA: Hu et al., arXiv:2106.09685; rsLoRA: arXiv:2312.03732; DoRA: arXiv:2402.09353; IA3: arXiv:2205.05638; LoHa and LoKr:
arXiv:2309.14859; VeRA: arXiv:2310.11454; OFT: arXiv:2306.07280. None of their formulas is here: what PEFT can merge is merged.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from toolkit.errors import DataError, UsageError
from toolkit.models.adapter_files import CONFIG_FILE, PREFIX, check_patterns, start_of
from toolkit.models.adapters import LoraAdapter

NAME = "default"
"""Of the adapter inside PEFT."""


def with_adapter(model: Any, adapter: LoraAdapter) -> Any:
    """Put an adapter on a model whose weights are on torch's meta device: the adapter's tensors are there, in float32 where
    PEFT computes so; the base's stay on the meta device, but for those that the adapter's file holds.

    Raises:
        DataError: the adapter does not fit this model.
        UsageError: PEFT has no such kind, or none that can be merged.
    """
    from peft import PeftConfig, PeftModel

    check_patterns(adapter.folder, adapter.config, (name for name, _ in model.named_modules()))
    if start := start_of(adapter.config):
        raise UsageError(
            f"{adapter.folder / CONFIG_FILE}: init_lora_weights {start} changed the base's weights too, so the adapter fits only "
            "that changed base",
            "Save it as an ordinary LoRA: model.save_pretrained(folder, path_initial_model_for_weight_conversion=…).",
        )
    try:
        with warnings.catch_warnings(), _hollow(model):
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(adapter.folder)
            config.inference_mode = True
            tuned = PeftModel(model, config, NAME, low_cpu_mem_usage=True)
            _check_fits(tuned, config, adapter)
            tuned.load_adapter(str(adapter.folder), NAME, low_cpu_mem_usage=True, torch_device="cpu")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"PEFT cannot put {adapter.folder} ({adapter.kind}) onto this base: {reason[:300]}",
            f"Name the base that it was trained on{adapter.trained_on}.",
        ) from error
    return tuned


def base_name(name: str) -> str:
    """A parameter of the base by its own name, without the layers that PEFT put around it."""
    return re.sub(r"\.(base_layer|original_module|token_adapter)(?=\.)", "", name)


@contextmanager
def _hollow(model: nn.Module) -> Iterator[None]:
    """Within it, every parameter on the meta device is one number on the CPU, shown as often as its shape asks: PEFT then puts
    the adapter there too. What still is so afterwards goes back to the meta device."""
    empty: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                # PEFT rounds an adapter to the type of its base layer when it puts it there.
                new = nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
                module._parameters[name] = empty.setdefault(id(parameter), new)
    places = {parameter.data_ptr() for parameter in empty.values()}
    try:
        yield
    finally:
        again: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta and parameter.data_ptr() in places:
                    bare = nn.Parameter(parameter.data.to("meta"), requires_grad=False)
                    module._parameters[name] = again.setdefault(parameter.data_ptr(), bare)


def _check_fits(tuned: Any, config: Any, adapter: LoraAdapter) -> None:
    """Compare names and shapes in the file with those that PEFT would save for this base."""
    from peft import get_peft_model_state_dict
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    from safetensors.torch import load_file

    needed = get_peft_model_state_dict(tuned, adapter_name=NAME, save_embedding_layers=False)
    allowed = get_peft_model_state_dict(tuned, adapter_name=NAME, save_embedding_layers=True)
    # Memory-mapped; where transformers holds experts otherwise than the file does, PEFT puts their matrices together.
    have = convert_peft_adapter_state_dict_for_transformers(tuned, config, load_file(adapter.path), NAME)
    hint = f"Name the base that it was trained on{adapter.trained_on}."
    for name in have:
        if name not in allowed:
            raise DataError(f"{adapter.path} changes {name.removeprefix(PREFIX)}, which this base does not have", hint)
    for name in needed:
        if name not in have:
            raise DataError(f"{adapter.path} has no {name.removeprefix(PREFIX)}", f"The file is not whole, or: {hint}")
    for name, value in have.items():
        wanted, found = list(allowed[name].shape), list(value.shape)
        if wanted == found:
            continue
        rank = int(config.r) if isinstance(getattr(config, "r", None), int) else 0
        if len(wanted) == len(found) and {w for w, f in zip(wanted, found) if w != f} == {rank}:
            raise DataError(
                f"{adapter.path}: {name.removeprefix(PREFIX)} has shape {found}, but {CONFIG_FILE} says rank {rank}",
                f"Use the {CONFIG_FILE} that was saved with this file.",
            )
        raise DataError(
            f"{adapter.path}: {name.removeprefix(PREFIX)} has shape {found}, but the base needs {wanted}", hint
        )


class TunedLayers:
    """What an adapter makes of a base's parameters, by their names in memory.

    Args:
        structure: the base on the meta device; it is changed.

    Raises:
        as `with_adapter`.
    """

    def __init__(self, structure: Any, adapter: LoraAdapter) -> None:
        self._adapter = adapter
        own = {name for name, _ in structure.named_parameters(remove_duplicate=False)}
        base = with_adapter(structure, adapter).get_base_model()
        self._layers: dict[str, Any] = {}
        """Parameter → the layer of PEFT's that changes it."""
        self.replaced: dict[str, torch.Tensor] = {}
        """Parameter → what takes its place where the adapter acts (modules_to_save)."""
        self.in_place: dict[str, torch.Tensor] = {}
        """Parameter → what the file holds of the base itself (trained biases, a resized embedding)."""
        self._touched: dict[str, bool] = {}
        wrapped: list[str] = []
        for path, module in base.named_modules():
            if _is_wrapper(module) and not any(path.startswith(f"{outer}.") for outer in wrapped):
                wrapped.append(path)
                self._take(path, module)
        for name, parameter in base.named_parameters(remove_duplicate=False):
            bare = base_name(name)
            if bare in own and not parameter.is_meta and ".modules_to_save." not in name:
                self.in_place[bare] = parameter.data
        self._refuse_without_merge()

    def _refuse_without_merge(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        lacking = [name for name, layer in self._layers.items() if type(layer).merge is BaseTunerLayer.merge]
        if lacking or not (self._layers or self.replaced or self.in_place):
            raise self._no_merge(lacking[0] if lacking else "this base")

    def _no_merge(self, where: str, reason: str = "") -> UsageError:
        return UsageError(
            f"{self._adapter.folder}: PEFT has no merge for {self._adapter.kind} on {where}{reason and f': {reason}'}",
            "Train a kind that can be merged, such as LoRA.",
        )

    def _take(self, path: str, module: Any) -> None:
        from peft.tuners.lora.layer import ParamWrapper
        from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

        if isinstance(module, ModulesToSaveWrapper):
            for name, parameter in module.modules_to_save[NAME].named_parameters():
                self.replaced[f"{path}.{name}"] = parameter.data
        elif isinstance(module, TrainableTokensWrapper):
            self._layers[f"{path}.weight"] = module.token_adapter
        elif isinstance(module, ParamWrapper):  # one inside another where a module has several such parameters
            layer: Any = module
            while isinstance(layer, ParamWrapper):
                self._layers[f"{path}.{layer.parameter_name}"] = layer
                layer = layer.base_layer
        else:
            for name, _ in module.get_base_layer().named_parameters(recurse=False):
                self._layers[f"{path}.{name}"] = module

    def acts_on(self, name: str) -> bool:
        """Whether the adapter changes this parameter by itself; what its file holds of the base does not count."""
        return name in self.replaced or name in self._layers

    def touches(self, name: str, load: Callable[[str], torch.Tensor]) -> bool:
        """Whether the adapter changes this parameter; `load` gives a parameter of the base."""
        if name in self.replaced or (name in self._layers and not name.endswith(".bias")):
            return True
        if name not in self._layers and name not in self.in_place:
            return False
        if name not in self._touched:  # a bias that PEFT may leave alone, an embedding that was saved as it was
            before = load(name)
            self._touched[name] = not torch.equal(self.merged(name, before.clone(), load), before)
        return self._touched[name]

    @torch.no_grad()
    def merged(self, name: str, base: torch.Tensor, load: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """A parameter with the adapter's change, in the type of `base`, which may be changed in place.

        Args:
            load: gives any other parameter of the base by its name in memory.

        Raises:
            UsageError: PEFT has no merge for this kind of layer.
        """
        if name in self.replaced:
            return self.replaced[name].to(base.dtype, copy=True)
        weight = self.in_place[name].to(base.dtype, copy=True) if name in self.in_place else base
        if name not in self._layers:
            return weight
        layer = self._layers[name]
        path, _, leaf = name.rpartition(".")
        bare = layer.get_base_layer()
        before = dict(bare._parameters)
        try:
            for other, parameter in before.items():
                # Experts' parameters have wrappers of their own each; another layer's bias may be changed beside its weight.
                if other != leaf and parameter is not None and self._layers.get(f"{path}.{other}") is layer:
                    value = load(f"{path}.{other}").to(base.dtype)
                    bare._parameters[other] = nn.Parameter(value, requires_grad=False)
            bare._parameters[leaf] = nn.Parameter(weight, requires_grad=False)
            layer.merge(adapter_names=[NAME])
            now = layer.get_base_layer()
            swapped = now is not bare  # a kind that puts a layer of its own in the base's place
            found = cast(torch.Tensor, now._parameters[leaf].data).to(base.dtype, copy=swapped)
            if swapped:
                layer.unmerge()
            return found
        except (NotImplementedError, ValueError) as error:
            raise self._no_merge(name, str(error).strip()) from error
        finally:
            layer.merged_adapters.clear()
            bare._parameters.update(before)


def _is_wrapper(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
