"""The ordered table of stages: what each is called, what it needs, and how to call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.recipe.schema import AUTO, Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import (
    AdapterFacts,
    CertificateFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    GGUFFacts,
    GoldenFacts,
    ImatrixFacts,
    ModelFacts,
    OllamaFacts,
    OntoFacts,
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
    step: str = ""
    """One of `Recipe.earlier`, whose data it prepares or that it trains; empty for the recipe's own."""

    @property
    def does(self) -> str:
        """What it does, whatever the step."""
        return self.name.removesuffix(f"-{self.step}") if self.step else self.name


_TOLD_IN_FILES = ("merge.onto", "name", "license", "data")
_ADOPTING = ("transformers", "peft")  # an adapter that is there already; most are taken without either
_MODEL_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")

STAGES = (
    Stage(
        "prepare",
        DatasetFacts,
        (),
        # Golden prompts are kept from the training split.
        ("data", "system", "golden.prompts", "golden.from_test", "train.objective"),
        ("charset-normalizer",),
        version=5,
    ),
    Stage(
        "train",
        AdapterFacts,
        ("prepare",),
        ("base", "system", "train", "lora", "adapter", "then", "load_in_4bit"),
        (*_MODEL_LIBRARIES, "trl", "accelerate"),
        version=7,
    ),
    Stage("onto", OntoFacts, ("prepare", "train"), ("train.max_length",), _MODEL_LIBRARIES),
    Stage(
        "merge",
        ModelFacts,
        ("train",),
        ("merge.onto", "export.converted"),
        _MODEL_LIBRARIES,
        version=3,
    ),
    Stage("golden", GoldenFacts, ("prepare", "train"), ("golden", "system", "merge.onto"), _MODEL_LIBRARIES, version=3),
    Stage(
        "convert",
        GGUFFacts,
        ("prepare", "train"),
        ("export.converted", "export.makes_converted", *_TOLD_IN_FILES),
        ("gguf", "llama-cpp-python"),
        version=6,
    ),
    Stage(
        "imatrix",
        ImatrixFacts,
        ("prepare", "train", "convert"),
        ("name",),
        ("llama-cpp-python", "transformers"),
    ),
    Stage(
        "quantize",
        GGUFFacts,
        ("prepare", "train", "convert"),
        ("export.quantized", "export.converted", "export.imatrix", *_TOLD_IN_FILES),
        ("gguf", "llama-cpp-python"),
        version=2,
    ),
    Stage(
        "verify",
        CertificateFacts,
        ("train", "golden", "convert", "quantize"),
        ("export", "system", "merge.onto", "golden.max_new_tokens"),
        ("llama-cpp-python", "transformers"),
        version=12,
    ),
    Stage(
        "create",
        OllamaFacts,
        ("train", "golden", "verify"),
        ("ollama", "system", "export.serve", "license", "golden.max_new_tokens"),
        ("llama-cpp-python", "transformers"),
        version=4,
    ),
    Stage(
        "evaluate",
        EvaluationFacts,
        ("prepare", "train", "golden", "convert", "quantize", "verify", "create"),
        (
            "evaluate",
            "system",
            "merge.onto",
            "export",
            "ollama.model",
            "golden.max_new_tokens",
            "train.max_length",
            "train.rewards",
        ),
        (*_MODEL_LIBRARIES, "llama-cpp-python", "sacrebleu"),
        version=2,
    ),
    Stage(
        "report",
        ReportFacts,
        ("prepare", "train", "golden", "convert", "quantize", "verify", "create", "evaluate"),
        ("name", "profile"),
    ),
)

_READERS = {
    "onto": ("golden", "merge", "convert", "quantize", "verify", "evaluate", "report"),
    "merge": ("verify",),
    "imatrix": ("quantize", "verify"),
}
"""Stages that only some recipes ask for → who reads what they leave."""
STAGE_NAMES = tuple(stage.name for stage in STAGES if stage.name not in _READERS)
"""Of every recipe."""


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages that this recipe goes through: two for each earlier step first; an adapter made elsewhere brings no dataset."""
    stages = _asked_for(recipe)
    if recipe.adapter is None:
        return (*_earlier(recipe), *(_after_earlier(recipe, stage) for stage in stages))
    return tuple(
        replace(
            stage,
            inputs=tuple(name for name in stage.inputs if name != "prepare"),
            libraries=_ADOPTING if stage.name == "train" else stage.libraries,
        )
        for stage in stages
        if stage.name != "prepare"
    )


def stages_upto(recipe: Recipe, name: str) -> list[Stage]:
    """A stage of the recipe's, and before it all that it needs, one from another."""
    needed = {name}
    found = []
    for stage in reversed(stages_of(recipe)):  # what a stage needs stands before it
        if stage.name in needed:
            needed |= {*stage.inputs}
            found.append(stage)
    return found[::-1]


def _asked_for(recipe: Recipe) -> list[Stage]:
    """The table without the stages that nobody asks for."""
    asked = {"onto": recipe.merge.onto == AUTO, "merge": recipe.merge.folder, "imatrix": recipe.export.measures_imatrix}
    return [
        replace(
            stage,
            inputs=(*stage.inputs, *(name for name, who in _READERS.items() if asked[name] and stage.name in who)),
        )
        for stage in STAGES
        if asked.get(stage.name, True)
    ]


def _earlier(recipe: Recipe) -> list[Stage]:
    by_name = {stage.name: stage for stage in STAGES}
    found = []
    for step in recipe.earlier:
        prepare = replace(by_name["prepare"], name=f"prepare-{step}", step=step)
        trained = (prepare.name, *before(recipe, step).values())
        found += [prepare, replace(by_name["train"], name=f"train-{step}", step=step, inputs=trained)]
    return found


def _after_earlier(recipe: Recipe, stage: Stage) -> Stage:
    more: list[str] = []
    if stage.name == "train":
        more = list(before(recipe, "").values())
    if stage.name == "golden":  # its prompts were trained on in no step
        more = [f"prepare-{step}" for step in recipe.earlier]
    if stage.name == "report":
        more = [f"train-{step}" for step in recipe.earlier]
    return replace(stage, inputs=(*stage.inputs, *more)) if more else stage


def before(recipe: Recipe, step: str) -> dict[str, str]:
    """The training stages that a step goes on from: start, whose adapter it trains on; judge, whose reward model it asks."""
    found: dict[str, str] = {}
    for name, earlier in recipe.earlier.items():
        if name == step:
            break
        found["judge" if earlier.train.objective == "reward" else "start"] = f"train-{name}"
    objective = recipe.at(step).train.objective
    if objective == "reward":
        found.pop("start", None)
    if objective != "rloo":
        found.pop("judge", None)
    return found


def call_stage(
    stage: Stage, recipe: Recipe, have: Mapping[str, Artifact[Any]], out: Path, rewards: Path | None = None
) -> Facts:
    """Run one stage's function in this process; imports only what that stage needs.

    Args:
        rewards: a Python file of the user's with rewards, named on the command line.
    """
    whole, recipe = recipe, _with_chosen_base(recipe.at(stage.step), have)
    suffix = f"-{stage.step}" if stage.step else ""
    match stage.does:
        case "prepare":
            from toolkit.data.prepare import prepare_dataset

            return prepare_dataset(recipe, out)
        case "train" if recipe.adapter is not None:
            from toolkit.train.adopt import adopt_adapter

            return adopt_adapter(recipe, out)
        case "train":
            earlier = {role: have[name] for role, name in before(whole, stage.step).items()}
            if recipe.train.distributed != "none":
                from toolkit.train.together import train_together

                rows = have[f"prepare{suffix}"]
                return train_together(whole, stage.step, rows, out, **earlier, own_rewards=rewards)
            from toolkit.train.training import train

            return train(recipe, have[f"prepare{suffix}"], out, **earlier, own_rewards=rewards)
        case "onto":
            from toolkit.export.onto import choose_base

            return choose_base(recipe, have["prepare"], have["train"])
        case "golden":
            from toolkit.parity.golden.record import record_golden

            earlier_rows = [have[f"prepare-{step}"] for step in recipe.earlier]
            return record_golden(recipe, have["train"], have.get("prepare"), out, earlier_rows)
        case "merge":
            from toolkit.export.merge import merge

            return merge(recipe, have["train"], out)
        case "convert":
            from toolkit.export.straight import convert_straight

            return convert_straight(recipe, have["train"], out, have.get("prepare"))
        case "imatrix":
            from toolkit.export.imatrix import measure

            return measure(recipe, have["prepare"], have["train"], have["convert"], out)
        case "quantize":
            from toolkit.export.straight import quantize_straight

            matrix = imatrix_of(recipe, have)
            return quantize_straight(recipe, have["train"], have["convert"], out, have.get("prepare"), matrix)
        case "verify":
            from toolkit.parity.verify import verify

            model, gguf, quantized = have.get("merge"), have["convert"], have["quantize"]
            return verify(recipe, have["train"], have["golden"], model, gguf, quantized, out, imatrix_of(recipe, have))
        case "create":
            from toolkit.ollama.files import certified_files
            from toolkit.ollama.publish import create

            served = certified_files(have["verify"], have["train"].facts)
            return create(recipe, have["golden"], served, have["verify"], out)
        case "evaluate":
            from toolkit.evaluate.stage import evaluate

            return evaluate(recipe, have, out, rewards)
        case "report":
            from toolkit.report.report import write_report

            return write_report(recipe, dict(have), out)
    raise AssertionError(stage.name)


def _with_chosen_base(recipe: Recipe, have: Mapping[str, Artifact[Any]]) -> Recipe:
    """The recipe as stages see it: what `merge.onto: auto` came to stands in its place."""
    if "onto" not in have:
        return recipe
    chosen = recipe.merge.model_copy(update={"onto": have["onto"].facts.onto})
    return recipe.model_copy(update={"merge": chosen})


def imatrix_of(recipe: Recipe, have: Mapping[str, Artifact[Any]]) -> Path | None:
    """The importance matrix that files are quantized with: measured by this run, or a file that the recipe names."""
    if recipe.export.measures_imatrix:
        return have["imatrix"].folder / "imatrix.gguf"
    return Path(recipe.export.imatrix) if isinstance(recipe.export.imatrix, str) else None


def certified_file(certificate: Artifact[CertificateFacts]) -> Path:
    """The GGUF that goes to Ollama, with the certificate's summary in it; there only when the verdict is pass."""
    return certificate.folder / certificate.facts.served_file
