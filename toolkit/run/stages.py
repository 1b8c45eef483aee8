"""The ordered table of stages: what each is called, what it needs, and how to call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import (
    AdapterFacts,
    CertificateFacts,
    DatasetFacts,
    Facts,
    GGUFFacts,
    GoldenFacts,
    ModelFacts,
    OllamaFacts,
    ReportFacts,
)


@dataclass(frozen=True)
class Stage:
    """A row of the table."""

    name: str
    facts: type[Facts]
    inputs: tuple[str, ...]
    """Stages whose artifacts it reads."""
    recipe_keys: tuple[str, ...]
    """Its slice of the recipe: a change anywhere else leaves its artifact current."""
    libraries: tuple[str, ...] = ()
    version: int = 1
    """Raise it when the stage's code gives another result for the same input."""


_MODEL_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")

STAGES = (
    Stage(
        "prepare",
        DatasetFacts,
        (),
        ("data", "system", "golden.prompts", "golden.from_test"),  # golden prompts are kept from the training split
        ("charset-normalizer",),
        version=4,
    ),
    Stage(
        "train",
        AdapterFacts,
        ("prepare",),
        ("base", "system", "train", "lora", "adapter", "then", "load_in_4bit"),
        (*_MODEL_LIBRARIES, "trl", "accelerate"),
        version=4,
    ),
    Stage("golden", GoldenFacts, ("prepare", "train"), ("golden", "system", "merge"), _MODEL_LIBRARIES, version=3),
    Stage(
        "merge",
        ModelFacts,
        ("prepare", "train"),
        ("merge", "license", "name", "export.converted"),
        _MODEL_LIBRARIES,
        version=2,
    ),
    Stage(
        "convert",
        GGUFFacts,
        ("prepare", "train", "merge"),
        ("export.converted", "name", "license", "data"),
        ("gguf", "llama-cpp-python"),
        version=4,
    ),
    Stage("quantize", GGUFFacts, ("convert",), ("export.quantized", "name"), ("llama-cpp-python",)),
    Stage(
        "verify",
        CertificateFacts,
        ("train", "golden", "merge", "convert", "quantize"),
        ("export", "system", "merge", "golden.max_new_tokens"),
        ("llama-cpp-python", "transformers"),
        version=8,
    ),
    Stage(
        "create",
        OllamaFacts,
        ("golden", "verify"),
        ("ollama", "system", "export.serve", "license", "golden.max_new_tokens"),
        version=3,
    ),
    Stage(
        "report",
        ReportFacts,
        ("prepare", "train", "golden", "merge", "convert", "quantize", "verify", "create"),
        ("name", "profile"),
    ),
)

STAGE_NAMES = tuple(stage.name for stage in STAGES)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages that this recipe goes through: an adapter made elsewhere brings no dataset."""
    if recipe.adapter is None:
        return STAGES
    return tuple(
        Stage(s.name, s.facts, tuple(i for i in s.inputs if i != "prepare"), s.recipe_keys, s.libraries, s.version)
        for s in STAGES
        if s.name != "prepare"
    )


def call_stage(name: str, recipe: Recipe, have: Mapping[str, Artifact[Any]], out: Path) -> Facts:
    """Run one stage's function in this process; imports only what that stage needs."""
    match name:
        case "prepare":
            from toolkit.data.prepare import prepare_dataset

            return prepare_dataset(recipe, out)
        case "train" if recipe.adapter is not None:
            from toolkit.train.adopt import adopt_adapter

            return adopt_adapter(recipe, out)
        case "train":
            from toolkit.train.sft import train

            return train(recipe, have["prepare"], out)
        case "golden":
            from toolkit.parity.golden.record import record_golden

            return record_golden(recipe, have["train"], have.get("prepare"), out)
        case "merge":
            from toolkit.export.merge import merge

            return merge(recipe, have["train"], have.get("prepare"), out)
        case "convert":
            from toolkit.export.convert import convert

            return convert(recipe, have["train"], have["merge"], out, have.get("prepare"))
        case "quantize":
            from toolkit.export.quantize import quantize

            return quantize(recipe, have["convert"], out)
        case "verify":
            from toolkit.parity.verify import verify

            return verify(recipe, have["train"], have["golden"], have["merge"], have["convert"], have["quantize"], out)
        case "create":
            from toolkit.ollama.publish import create

            return create(recipe, have["golden"], certified_file(have["verify"]), have["verify"], out)
        case "report":
            from toolkit.report.report import write_report

            return write_report(recipe, dict(have), out)
    raise AssertionError(name)


def certified_file(certificate: Artifact[CertificateFacts]) -> Path:
    """The GGUF that goes to Ollama, with the certificate's summary in it; there only when the verdict is pass."""
    return certificate.folder / certificate.facts.served_file
