"""4-bit copies of models, which adapters name as their base: where the 16-bit original is, and whether NF4 was trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import DataError
from toolkit.models.json_file import read_object

# What publishers write behind a model's name when they quantize it; the name before it is the original's.
_ENDING = re.compile(
    r"(?:[-_.](?:unsloth|dynamic|bnb|nf4|mlx|awq|gptq|exl2|hqq|aqlm|fp8|mxfp4|[48]-?bit|int[48]|w[48]a16|g\d+|gs\d+))+$",
    re.I,
)
_NF4 = re.compile(r"[-_.]bnb[-_.]4-?bit$", re.I)


class Copy(NamedTuple):
    """A base that is quantized already."""

    original: str
    """Name of its 16-bit original; empty where that is not known."""
    certain: bool
    """Whether the original is where the name says: unsloth keeps each 4-bit copy beside its original."""
    nf4: bool
    """bitsandbytes' NF4: those weights can be made anew from the original."""


def four_bit_copy(base: str) -> Copy | None:
    """What a base's name, or the config.json of a local folder, tells of its quantization; None: it is not quantized.

    Raises:
        DataError: a local folder whose config.json is damaged.
    """
    config = Path(base).expanduser() / "config.json"
    if base and config.is_file():
        settings = read_object(config, "Get the file again.")
        quantized = settings.get("quantization_config")
        if not isinstance(quantized, dict):
            return None
        told = str(settings.get("_name_or_path") or "")
        nf4 = bool(quantized.get("load_in_4bit")) and quantized.get("bnb_4bit_quant_type", "nf4") == "nf4"
        return Copy(_ENDING.sub("", told), False, nf4)
    ending = _ENDING.search(base)
    if ending is None or "/" not in base:
        return None
    original = base[: ending.start()]
    return Copy(original, original.lower().startswith("unsloth/"), bool(_NF4.search(base)))


def refuse_quantized(folder: Path) -> None:
    """Raises DataError where a model folder holds quantized weights; the message names the original as far as it is known."""
    copy = four_bit_copy(str(folder))
    if copy is None:
        return
    named = f": {copy.original}" if copy.original and "/" in copy.original and not Path(copy.original).is_dir() else ""
    raise DataError(
        f"{folder} is quantized already; an adapter cannot be merged onto it without loss",
        f"Name the 16-bit original as base{named or ' (--base FOLDER or hub id)'}. "
        "Where an adapter was trained in 4 bits: --load-in-4bit makes its NF4 weights anew.",
    )
