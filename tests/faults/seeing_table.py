"""The faults of pictures: how each is made, the link that broke, and what the certificate has to say about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.faults.chains import change_json
from tests.faults.files import change_template, set_value
from tests.faults.seeing_chain import (
    ASKED,
    SeeingChain,
    record,
    rules_for,
    seeing_artifact,
    seeing_chain,
    text_first,
)
from tests.parity_chain import Export, export, finished
from tests.seeing_models import seeing_model
from toolkit.parity.certificate import LinkName
from toolkit.run.artifacts import Artifact

VISION, MERGER, LANGUAGE = ".visual.blocks.", ".visual.merger.", ".language_model."


@dataclass(frozen=True)
class SeeingFault:
    """A fault, put into a clean chain by `inject(folder)`."""

    name: str
    link: LinkName
    says: str
    """A part of the certificate's message."""
    inject: Callable[[Path], SeeingChain]


# Faults of the export -----------------------------------------------------------------------------------------------


def _without(part: str) -> Callable[[Path], SeeingChain]:
    """The adapter of one part left out of the merge."""

    def inject(out: Path) -> SeeingChain:
        clean = seeing_chain()
        wrong = out / "wrong"
        shutil.copytree(clean.adapter.folder, wrong)
        tensors = load_file(wrong / "adapter_model.safetensors")
        assert any(part in name for name in tensors), part
        kept = {name: tensor * (part not in name) for name, tensor in tensors.items()}
        save_file(kept, wrong / "adapter_model.safetensors", metadata={"format": "pt"})
        assert clean.adapter.facts.pictures is not None
        made = seeing_artifact(wrong, clean.base, clean.adapter.facts.pictures)
        return replace(clean, export=export(clean.recipe, made, out / "x"))

    return inject


def _with_mmproj(clean: SeeingChain, out: Path, file: Path) -> SeeingChain:
    """The same chain, with another file that sees."""
    shutil.copytree(clean.export.gguf.folder, out / "convert")
    target = out / "convert" / clean.mmproj.name
    target.unlink()
    shutil.copyfile(file, target)
    gguf: Artifact[Any] = finished(out / "convert", clean.export.gguf.facts)
    return replace(clean, export=Export(clean.export.model, gguf, clean.export.quantized))


def _mmproj_of(base: Path, clean: SeeingChain, out: Path) -> Path:
    """The file that sees of a base alone."""
    rules = clean.adapter.facts.pictures
    assert rules is not None
    whole = seeing_artifact(base, base, rules)
    whole = replace(whole, facts=whole.facts.model_copy(update={"method": "full"}))
    made = export(clean.recipe, whole, out).gguf
    assert made.facts.mmproj is not None
    return made.folder / made.facts.mmproj.name


def _of_the_base(out: Path) -> SeeingChain:
    clean = seeing_chain()
    return _with_mmproj(clean, out, _mmproj_of(clean.base, clean, out / "base"))


def _of_another_size(out: Path) -> SeeingChain:
    clean = seeing_chain()
    other = seeing_model(out / "other", "qwen2_5_vl", width=512)
    return _with_mmproj(clean, out, _mmproj_of(other, clean, out / "base"))


def _changed(key: str, value: Any, index: int | None = None) -> Callable[[Path], SeeingChain]:
    """A number in the metadata of the file that sees."""

    def inject(out: Path) -> SeeingChain:
        clean = seeing_chain()
        file = out / "changed.gguf"
        out.mkdir(parents=True)
        shutil.copyfile(clean.mmproj, file)
        set_value(file, key, value, index)
        return _with_mmproj(clean, out, file)

    return inject


def _processor_of_the_merge(**values: Any) -> Callable[[Path], SeeingChain]:
    """The merged folder's processor changed, and all made of it."""

    def inject(out: Path) -> SeeingChain:
        from toolkit.export.convert import convert
        from toolkit.export.quantize import quantize

        clean = seeing_chain()
        shutil.copytree(clean.export.model.folder, out / "merge")
        change_json(out / "merge" / "preprocessor_config.json", **values)
        for name in ("convert", "quantize"):
            (out / name).mkdir()
        model = finished(out / "merge", clean.export.model.facts)
        gguf = finished(out / "convert", convert(clean.recipe, clean.adapter, model, out / "convert"))
        made = finished(out / "quantize", quantize(clean.recipe, gguf, out / "quantize"))
        return replace(clean, export=Export(model, gguf, made))

    return inject


def _order_of_the_template(out: Path) -> SeeingChain:
    """The template in the language model's files writes pictures before texts."""
    clean = seeing_chain()
    made = {}
    for name, stage in (("convert", clean.export.gguf), ("quantize", clean.export.quantized)):
        shutil.copytree(stage.folder, out / name)
        for file in stage.facts.files:
            sorted_parts = "message.content | sort(attribute='type')"  # "image" stands before "text"
            change_template(out / name / file.name, "for part in message.content", f"for part in {sorted_parts}")
        made[name] = finished(out / name, stage.facts)
    return replace(clean, export=Export(clean.export.model, made["convert"], made["quantize"]))


# Faults of the preparation: the model was trained, and its goldens recorded, on something else -------------------------


def _recorded(shown: Callable[[Image.Image], Image.Image] = lambda i: i, **rules: Any) -> Callable[[Path], SeeingChain]:
    """Goldens of pictures that the reference model was shown otherwise than the server shows them."""

    def inject(out: Path) -> SeeingChain:
        clean = seeing_chain()
        assert clean.adapter.facts.pictures is not None
        other = clean.adapter.facts.pictures.model_copy(update=rules)
        out.mkdir(parents=True)
        return replace(
            clean,
            golden=record(clean.base, seeing_artifact(clean.adapter.folder, clean.base, other), out / "golden", shown),
        )

    return inject


def _stretched(image: Image.Image) -> Image.Image:
    """As transformers' own processor would: to whole patches, without a border."""
    rules = rules_for(seeing_chain().base)
    return image.resize(rules.size(*image.size), Image.Resampling.BICUBIC)


def _exif(out: Path) -> SeeingChain:
    """The golden files say that they are turned, and training followed that."""
    clean = seeing_chain()
    out.mkdir(parents=True)
    golden = record(clean.base, clean.adapter, out / "golden", lambda image: image)
    turned = Image.Exif()
    turned[0x0112] = 6
    for file in (golden.folder / "images").glob("?.png"):
        with Image.open(file) as image:
            # What is upright for training lies on its side in the file.
            image.transpose(Image.Transpose.ROTATE_90).save(file, exif=turned)
    return replace(clean, golden=golden)


def _image_token(out: Path) -> SeeingChain:
    """The goldens were recorded with another token in a picture's place."""
    clean = seeing_chain()
    shutil.copytree(clean.golden.folder, out / "golden")
    text = (out / "golden" / "golden.jsonl").read_text(encoding="utf-8")
    (out / "golden" / "golden.jsonl").write_text(text.replace("151655", "151656"), encoding="utf-8")
    return replace(clean, golden=finished(out / "golden", clean.golden.facts))


def _order_of_the_rows(out: Path) -> SeeingChain:
    """The goldens' pictures stand before their texts, which the server never sends so."""
    clean = seeing_chain()
    out.mkdir(parents=True)
    golden = record(clean.base, clean.adapter, out / "golden", order=lambda text, image: text_first(text, image)[::-1])
    assert ASKED in (golden.folder / "golden.jsonl").read_text(encoding="utf-8")
    return replace(clean, golden=golden)


SEEING_FAULTS = (
    SeeingFault(
        "adapter left out of the language part", "merge", "language part: the adapter is not in it",
        _without(LANGUAGE),
    ),
    SeeingFault("adapter left out of the vision part", "merge", "vision part: the adapter is not in it", _without(VISION)),
    SeeingFault("adapter left out of the merger", "merge", "visual.merger.mlp.0.weight 0.000 times", _without(MERGER)),
    SeeingFault("mmproj of the base", "projector", "vision part: the adapter is not in it", _of_the_base),
    SeeingFault(
        "mmproj of another size", "structure", "clip.vision.projection_dim is 512, and should be 256",
        _of_another_size,
    ),
    SeeingFault("part order swapped in the template", "template", "prompts differ", _order_of_the_template),
    SeeingFault("part order swapped in the rows", "picture", "elsewhere than the server puts it", _order_of_the_rows),
    SeeingFault("EXIF ignored", "picture", "EXIF", _exif),
    SeeingFault(
        "image mean changed", "structure", "clip.vision.image_mean",
        _changed("clip.vision.image_mean", np.float32(0.6), 1),
    ),
    SeeingFault(
        "image std changed before the conversion", "structure", "image_std",
        _processor_of_the_merge(image_std=[0.5] * 3),
    ),
    SeeingFault(
        "pixel limits changed in the processor", "structure", "max_pixels",
        _processor_of_the_merge(max_pixels=50_176),
    ),
    SeeingFault("pixel limits changed in training", "picture", "patches", _recorded(max_tokens=32)),
    SeeingFault("stretched in training, not letterboxed", "picture", "pixels", _recorded(_stretched)),
    SeeingFault("image token id changed", "tokenizer", "", _image_token),
)  # fmt: skip
