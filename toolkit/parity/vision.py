"""What the tuned model's own eyes make of a picture, in float32: the vision part alone, by transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device

from toolkit.models.weights import attention_of, model_class
from toolkit.parity.tuning import Tuning, Weights

Values = npt.NDArray[np.float32]
Grid = tuple[int, int, int]


class Vision:
    """The vision part and what joins it to the language model, as trained or as it was before.

    Args:
        part: of each tensor, the base's or the tuned weights.
    """

    def __init__(self, tuning: Tuning, part: Callable[[Weights], torch.Tensor]) -> None:
        config = tuning.config
        with init_empty_weights(include_buffers=False):
            self._model: Any = model_class(config).from_config(
                config, dtype=torch.float32, attn_implementation=attention_of(config), trust_remote_code=False
            )
        self._model.eval().requires_grad_(False)
        for name in {tuning.spelled.parameter(source) for source in tuning.seeing}:
            value = tuning.spelled.assemble(name, lambda source: part(tuning.load(source)))
            set_module_tensor_to_device(self._model, name, "cpu", value.float())

    @torch.no_grad()
    def values(self, pixels: Values, grid: Grid | None) -> Values:
        """What the language model is given for a picture, float32 [tokens, width].

        Args:
            pixels: as `toolkit.models.pictures.pixels_of` gives them.
            grid: of patches; None: the model takes pictures of one size.
        """
        told = {} if grid is None else {"image_grid_thw": torch.tensor([grid])}
        given = torch.from_numpy(np.ascontiguousarray(pixels))
        found = self._model.get_image_features(given[None] if grid is None else given, **told)
        layers = [found.pooler_output[0], *(getattr(found, "deepstack_features", None) or [])]
        # What deeper layers are given stands beside it in llama.cpp, as further columns.
        made: Values = torch.cat([layer.reshape(-1, layer.shape[-1]) for layer in layers], dim=1).numpy()
        return made
