"""What a stage's artifact is made from, and what has changed since: the reason why a stage runs again."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from toolkit.models.bases import resolve_base
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import SAMPLED
from toolkit.run.artifacts import Artifact, file_sha256
from toolkit.run.stages import Stage


def make_key(
    stage: Stage, recipe: Recipe, have: dict[str, Artifact[Any]], rewards: Path | None = None
) -> dict[str, Any]:
    """What a stage's artifact is made from: inputs, its slice of the recipe, files it reads, versions.

    Args:
        rewards: a Python file of the user's with rewards, named on the command line.
    """
    recipe = recipe.at(stage.step)
    sliced = {key: _slice(recipe, key) for key in stage.recipe_keys}
    return {
        "version": stage.version,
        "inputs": {name: have[name].digest for name in stage.inputs},
        "recipe": sliced,
        "files": {**_outside_files(stage, recipe, have), **_own_rewards(stage, recipe, rewards)},
        "libraries": {name: _version(name) for name in stage.libraries},
    }


def _slice(recipe: Recipe, dotted: str) -> Any:
    value: Any = recipe
    for part in dotted.split("."):
        value = getattr(value, part)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _outside_files(stage: Stage, recipe: Recipe, have: dict[str, Artifact[Any]]) -> dict[str, str]:
    golden = recipe.golden
    match stage.does:
        case "prepare":
            sources = recipe.data.readings if recipe.data else []
            return _hashes(*(source.path for source in sources), golden.prompts)
        case "train":
            return {
                **_hashes(recipe.adapter, *recipe.then, recipe.train.chat_template),
                "base": resolve_base(recipe.base).digest,
            }
        case "golden":
            return {**_hashes(golden.prompts, golden.answers_from), "base": have["train"].facts.base.digest}
        case "merge" | "convert":  # an adapter that was adopted is the same files, whatever became of its base
            return {"base": have["train"].facts.base.digest}
        case "quantize":
            return {"base": have["train"].facts.base.digest, **_imatrix(recipe)}
        case "verify":
            return _imatrix(recipe)
        case "create":
            return _hashes(recipe.ollama.modelfile)
    return {}


def _imatrix(recipe: Recipe) -> dict[str, str]:
    return _hashes(recipe.export.imatrix if isinstance(recipe.export.imatrix, str) else None)


def _own_rewards(stage: Stage, recipe: Recipe, rewards: Path | None) -> dict[str, str]:
    samples = stage.does in ("train", "evaluate") and recipe.train.objective in SAMPLED
    return {"--rewards": file_sha256(rewards)} if rewards is not None and samples else {}


def _hashes(*paths: str | list[str] | None) -> dict[str, str]:
    """SHA-256 of every file that a key of the recipe names, alone or in a folder; prompts may stand in the recipe itself."""
    named = [Path(path) for path in paths if isinstance(path, str)]
    files = [p for path in named for p in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {p.as_posix(): file_sha256(p) for p in files if p.is_file()}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first thing that differs between two keys, in words; empty when nothing does."""
    if old["version"] != new["version"]:
        return "this toolkit's version of the stage changed"
    for name, digest in new["inputs"].items():
        if old["inputs"].get(name) != digest:
            return f"{name} gave something new"
    before, now = _flat(old["recipe"]), _flat(new["recipe"])
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            return f"the recipe's {name} changed: {before.get(name)} → {now.get(name)}"
    for name in sorted(old["files"].keys() | new["files"].keys()):
        if old["files"].get(name) != new["files"].get(name):
            return f"{name} changed"
    for name, version in new["libraries"].items():
        if old["libraries"].get(name) != version:
            return f"{name} changed: {old['libraries'].get(name)} → {version}"
    return "" if old == new else "this toolkit's version of the stage changed"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat
