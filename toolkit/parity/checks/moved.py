"""Did training reach every layer? An adapter whose first layers never moved was trained without their gradients."""

from __future__ import annotations

import re
from statistics import median

import torch

from toolkit.models.adapters import LoraAdapter
from toolkit.parity.certificate import Check, Measure, lower_is_better
from toolkit.parity.damage import layers_told

_LAYER = re.compile(r"\.layers\.(\d+)\.")
_OTHER_SENSES = re.compile(r"(^|\.)(visual|vision\w*|multi_modal_projector|mm_projector|audio\w*)\.")
_EXPERT = re.compile(r"(.*)\.experts\.\d+\.")
SMALLEST_SHARE = 1e-3
"""Of the median layer's change. Right adapters were measured above 0.2; a layer without gradients stays at 0."""


def out_of_reach(still: list[str], modules: list[str], sees: bool = False) -> list[str]:
    """Modules that stayed still because no training row came by, which is no fault of the training.

    The parts for pictures or sound in a training on texts: then all of them are still. Experts that the router never chose:
    then others of their layer moved.

    Args:
        sees: rows of the training showed pictures.
    """
    others = [] if sees else [module for module in modules if _OTHER_SENSES.search(module)]
    unreached = others if others and set(others) <= set(still) else []
    experts = [found for module in modules if module not in still and (found := _EXPERT.search(module))]
    routed, layers = {found[0] for found in experts}, {found[1] for found in experts}
    idle = [
        module
        for module in still
        if (found := _EXPERT.search(module))
        and found[0] not in routed
        and found[1] in layers
        and module not in unreached
    ]
    return [*unreached, *idle]


def _not_compared(adapter: LoraAdapter) -> Check:
    """Only LoRA has a matrix that begins at zero and so tells whether it was reached."""
    kind = (
        f"an adapter of kind {adapter.kind}"
        if adapter.kind != "LORA"
        else "an adapter of whole modules or tokens alone"
    )
    message = f"not compared: {kind} does not show where training never came by"
    measures = [lower_is_better("modules that hold no numbers", 0, 0, 0)]
    return Check(name="moved", verdict="not compared", message=message, measures=measures)


def moved_check(adapter: LoraAdapter, sees: bool = False) -> Check:
    """Judge every adapter of a stack; what is worst is told, with the name of its folder where it is not the first.

    Args:
        sees: it was trained on pictures, so its vision part has to move too.
    """
    checks = [_moved(adapter, sees)]
    while (folder := adapter.folder / f"then-{len(checks)}").is_dir():
        check = _moved(LoraAdapter(folder), sees)
        checks.append(check.model_copy(update={"message": f"{folder.name}: {check.message}"}))
    worst = ("fail", "inconclusive", "not compared", "pass")
    return min(checks, key=lambda check: worst.index(check.verdict))


def _moved(adapter: LoraAdapter, sees: bool) -> Check:
    """Judge the size of what each layer learnt: |scaling * B A|, computed from the r x r products.

    B begins at zero, so a module that training never reached has none left to show.
    """
    still: list[str] = []
    by_layer: dict[int, float] = {}
    broken = [name for name, entry in adapter.others.items() if not torch.isfinite(adapter.tensor(entry)).all()]
    if not adapter.changes and not broken:
        return _not_compared(adapter)
    for module, change in adapter.changes.items():
        parts = {part: adapter.tensor(entry).double() for part, entry in change.parts.items()}
        if not all(torch.isfinite(part).all() for part in parts.values()):
            broken.append(module)
            continue
        low, high = ("A", "B") if "A" in parts else ("embedding_A", "embedding_B")
        if not parts[high].any():
            still.append(module)
        # |B A|² = trace(BᵀB · AAᵀ): r x r, whatever the width.
        square = torch.trace((parts[high].T @ parts[high]) @ (parts[low] @ parts[low].T)).item() * change.scaling**2
        if (found := _LAYER.search(module)) and not _OTHER_SENSES.search(module):
            by_layer[int(found[1])] = by_layer.get(int(found[1]), 0.0) + square
    sizes = {layer: value**0.5 for layer, value in by_layer.items()}
    middle = median(sizes.values()) if sizes else 0.0
    weak = sorted(layer for layer, size in sizes.items() if size < SMALLEST_SHARE * middle)
    everything = len(still) == len(adapter.changes) > 0
    unreached = [] if everything else out_of_reach(still, list(adapter.changes), sees)
    still = [module for module in still if module not in unreached]
    smallest = min(sizes.values(), default=0.0) / middle if middle > 0 else 0.0
    measures = [
        lower_is_better("modules that hold no numbers", len(broken), 0, 0),
        lower_is_better("modules that never moved", 0 if everything else len(still), 0, 0),
        lower_is_better("layers that hardly moved", len(weak), 0, 0),
        Measure(name="smallest change of a layer, as a share of the median", value=smallest, limit=SMALLEST_SHARE),
    ]
    if unreached:
        measures.append(Measure(name="modules that the training rows did not reach", value=len(unreached)))
    told = {str(layer): round(size, 6) for layer, size in sorted(sizes.items())}
    details = {"layers": told, "still": [*still, *unreached][:20]}
    if broken:
        message = f"training left values that are no numbers in {len(broken)} modules, the first is {broken[0]}"
        return Check.of("moved", measures, message, details)
    if everything:
        message = "nothing moved: every B is zero, so the tuned model is its base"
        return Check(name="moved", verdict="inconclusive", message=message, measures=measures, details=details)
    message = f"all {len(adapter.changes)} modules moved"
    if unreached:
        message += f" but {len(unreached)} that the training rows did not reach, first {unreached[0]}"
    if still:
        layers = {int(found[1]) for module in still if (found := _LAYER.search(module))}
        message = f"training never reached {layers_told(layers) if layers else still[0]}: {len(still)} of {len(adapter.changes)} "
        message += "modules are as they began; gradients were lost on the way"
    elif weak:
        message = f"training hardly reached {layers_told(weak)}: less than a thousandth of the others' change"
    return Check.of("moved", measures, message, details)
