"""llama.cpp's rounding of rows to a stored type, to tell what an export must hold and where it came from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from toolkit.export.ggml import needs_importance, stored, widened
from toolkit.models.gguf_head import block_of

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rounded(
    rows: torch.Tensor, kind: str, via: str = "F32", importance: npt.NDArray[np.float32] | None = None
) -> torch.Tensor:
    """Rows as a file of this type holds them, float32; unchanged where nothing can be rounded or the rows have no whole blocks.

    Args:
        via: type of the converted file that it was made from.
        importance: float32 [row length], where the file was made with an importance matrix that is known.
    """
    if kind not in _FLOATS:
        rows = rows.to(_FLOATS[via]).float()
    if kind in _FLOATS:
        return rows.to(_FLOATS[kind]).float()
    can = not needs_importance(kind) or importance is not None
    if not can or rows.dim() != 2 or rows.shape[1] % block_of(kind)[0]:
        return rows
    return torch.from_numpy(widened(stored(rows.numpy(), kind, importance), kind))
