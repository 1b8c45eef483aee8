"""What a tensor's damage looks like, in words that people use of their model."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

LAYER = re.compile(r"\.(?:layers|blocks)\.(\d+)\.")


def spoken(label: str) -> str:
    """'layer 6's up_proj' for model.layers.6.mlp.up_proj.weight; a name outside of the layers as it is."""
    found = LAYER.search(label)
    if not found:
        return label.removesuffix(".weight")
    words = label[found.end() :].removesuffix(".weight").split(".")
    return f"layer {found[1]}'s {'.'.join(words[1:] or words)}"


def whose(label: str, here: str) -> str:
    """'layer 5's' for another layer's tensor of the same name as `here`, else 'layer 5's k_proj's'."""
    found = LAYER.search(label)
    if found and LAYER.sub(".", label) == LAYER.sub(".", here):
        return f"layer {found[1]}'s"
    return f"{spoken(label)}'s"


def damage(tuned: torch.Tensor, export: torch.Tensor) -> str:
    """What a tensor's damage looks like: rows in another order, transposed, rows or all of it zero, or just another.

    Args:
        tuned, export: matrices, or vectors.
    """
    if not torch.isfinite(export).all():
        return "holds values that are no numbers"
    if tuned.dim() < 2:
        return "all zero" if not export.any() else "other values"
    zero = (export.abs().amax(1) == 0) & (tuned.abs().amax(1) > 0)
    if zero.all():
        return "all zero"
    if zero.any():
        return f"{int(zero.sum())} rows are zero, the first is row {int(zero.nonzero()[0])}"
    if _reordered(tuned, export):
        return "its rows are in another order"
    if tuned.shape[0] == tuned.shape[1] and (_near(tuned.T, export) or _lengths_of_columns(tuned, export)):
        return "transposed"
    return "other values"


def holds(wanted: torch.Tensor, found: torch.Tensor, room: float) -> bool:
    """Whether an export's tensor holds these values, but for rounding: matrices of one shape, or some of their rows.

    Args:
        room: what rounding may leave, as a share of the tensor's size.
    """
    return wanted.shape == found.shape and bool((wanted - found).norm() <= room * wanted.norm())


def _reordered(tuned: torch.Tensor, export: torch.Tensor) -> bool:
    """Whether most rows of the export are rows of the tuned tensor, at other places."""
    sample = torch.linspace(0, len(export) - 1, min(64, len(export))).round().long()
    rows = torch.nn.functional.normalize(export[sample], dim=1)
    likest = (rows @ torch.nn.functional.normalize(tuned, dim=1).T).max(1)
    found = likest.values > 0.9
    return bool(found.float().mean() > 0.5 and (likest.indices != sample)[found].any())


def _lengths_of_columns(tuned: torch.Tensor, export: torch.Tensor) -> bool:
    """Whether the export's rows are as long as the tuned columns: a tensor that was transposed in llama.cpp's order of rows."""
    lengths, columns, rows = (
        torch.sort(t / t.mean()).values for t in (export.norm(dim=1), tuned.norm(dim=0), tuned.norm(dim=1))
    )
    off = (lengths - columns).abs().mean()
    return bool(off < 0.004 and off < (lengths - rows).abs().mean() / 2)


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() < 0.5 * a.norm())


def layers_told(layers: Iterable[int]) -> str:
    """'layer 3', 'layers 0-5 and 7'."""
    ordered, parts = sorted(layers), []
    while ordered:
        end = next((i for i, layer in enumerate(ordered) if layer != ordered[0] + i), len(ordered))
        parts.append(f"{ordered[0]}-{ordered[end - 1]}" if end > 1 else str(ordered[0]))
        ordered = ordered[end:]
    one = len(parts) == 1 and "-" not in parts[0]
    return f"layer{'' if one else 's'} " + (
        " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    )
