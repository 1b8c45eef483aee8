"""Reading a recipe: YAML, environment, profile, `--set`; all faults at once, each with file, line and nearest spelling."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from toolkit.errors import UsageError
from toolkit.recipe.schema import Recipe
from toolkit.recipe.section import nearest
from toolkit.run.artifacts import write_text
from toolkit.run.hardware import Hardware, read_hardware

RESOLVED = "resolved"
"""Key of a file that `write_resolved` wrote."""
RESOLVED_FILE = "recipe.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_GPU_PROFILE = re.compile(r"gpu-(\d+)gb")


def load_recipe(
    path: Path, profile: str | None = None, settings: Iterable[str] = (), hardware: Hardware | None = None
) -> Recipe:
    """Read, complete and check a recipe.

    Args:
        path: the YAML file.
        profile: one of the file's profiles; None picks by hardware.
        settings: `key.key=value` texts; they win over the file and the profile.

    Raises:
        UsageError: with every fault of the file in one message.
    """
    tree, lines = _read_yaml(path)
    name, resolved = str(tree.get("profile")), tree.pop(RESOLVED, False)
    if resolved and profile not in {None, name}:
        raise UsageError(
            f"{path} was written by a run with profile {name}", "Choose a profile for the recipe that the run was of."
        )
    if not resolved:
        name = _take_profile(tree, path, lines, profile, hardware)
    faults = _apply_settings(tree, settings)
    if not resolved:
        faults += _expand(tree, "")
    shown = {**{_without_profile(k, name): v for k, v in lines.items()}, **_top_level(lines)}
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        faults += [_fault(path, shown, e) for e in error.errors()]
    if faults:
        raise UsageError("\n".join(faults), f"Mend {path}, then look at it with: tune2ollama run {path} --dry-run")
    return recipe


def assembled(tree: dict[str, Any], settings: Iterable[str], command: str) -> Recipe:
    """The recipe that a command puts together itself, with the keys that `--set` changes.

    Raises:
        UsageError: with every fault in one message.
    """
    faults = _apply_settings(tree, settings)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        faults += [_fault(None, {}, e) for e in error.errors()]
    if faults:
        raise UsageError("\n".join(faults), f"Look at: {command} --help")
    return recipe


def write_resolved(recipe: Recipe, folder: Path) -> Path:
    """Keep a recipe as it runs, profile, `--set` and environment resolved: `load_recipe` gives the very same one, anywhere.

    It is what a run's next command names: the file that the run was started from may say something else by then.
    """
    tree = {RESOLVED: True, **recipe.model_dump(mode="json")}
    head = "# Written by the last run here: the recipe as it ran, with nothing left to be filled in.\n"
    path = folder / RESOLVED_FILE
    write_text(path, head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return path


def _take_profile(
    tree: dict[str, Any], path: Path, lines: dict[str, int], profile: str | None, hardware: Hardware | None
) -> str:
    """Lay the profile's keys over the recipe's, and give its name."""
    profiles = tree.pop("profiles", None) or {}
    if not isinstance(profiles, dict):
        raise UsageError(
            f"{path}:{lines.get('profiles', 1)}: profiles must map names to settings",
            "Write them like those of recipes/medical.yaml.",
        )
    name = profile or pick_profile(profiles, hardware or read_hardware())
    if name not in profiles and (profile or profiles):
        raise UsageError(
            f"{path} has no profile {name}{nearest(name, list(profiles))}; it has: {', '.join(profiles) or 'none'}",
            f"Choose one: tune2ollama run {path} --profile …",
        )
    _overlay(tree, profiles.get(name) or {})
    tree["profile"] = name
    return name


def pick_profile(profiles: Mapping[str, Any], hardware: Hardware) -> str:
    """The largest `gpu-<N>gb` profile that the card holds, else `cpu`."""
    sizes = sorted((int(m[1]), name) for name in profiles if (m := _GPU_PROFILE.fullmatch(name)))
    # A "16 GB" card reports a little under 16 GiB.
    fitting = [name for size, name in sizes if hardware.gpu_memory_bytes >= size * 0.9 * 2**30]
    return fitting[-1] if fitting else "cpu"


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    if not path.is_file():
        here = sorted(Path("recipes").glob("*.yaml"))
        close = nearest(path.stem, [p.stem for p in here])
        raise UsageError(f"there is no recipe {path}{close}", "List them: tune2ollama list")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.safe_load(text)
        lines = _line_numbers(yaml.compose(text, Loader=yaml.SafeLoader), "")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}", "Save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}", "Mend the line that it names.") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is empty or holds no keys", "Start from one of: tune2ollama list")
    return tree, lines


def _line_numbers(node: yaml.Node | None, prefix: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            lines[name] = key.start_mark.line + 1
            lines.update(_line_numbers(value, f"{name}."))
    return lines


def _without_profile(key: str, profile: str) -> str:
    return key.removeprefix(f"profiles.{profile}.")


def _top_level(lines: dict[str, int]) -> dict[str, int]:
    return {k: v for k, v in lines.items() if not k.startswith("profiles.")}


def _overlay(tree: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _overlay(tree[key], value)
        else:
            tree[key] = value


def _apply_settings(tree: dict[str, Any], settings: Iterable[str]) -> list[str]:
    faults = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            faults.append(f"--set {setting}: write it as key.key=value, e.g. --set train.max_steps=60")
            continue
        *parents, last = key.split(".")
        place: Any = tree
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            faults.append(f"--set {setting}: {'.'.join(parents)} holds no keys")
            continue
        try:
            place[last] = _number(yaml.safe_load(text))
        except yaml.YAMLError:
            faults.append(f"--set {setting}: {text!r} is no YAML value; put a text into quotes")
    return faults


def _number(value: Any) -> Any:
    # YAML 1.1 reads 2e-4 as a text; nobody who writes it means one.
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _expand(tree: dict[str, Any], prefix: str) -> list[str]:
    """Put what the environment says into all texts of a tree, in lists too; gives the variables that are missing."""
    faults: list[str] = []
    for key, value in tree.items():
        tree[key] = _expanded(value, f"{prefix}{key}", faults)
    return faults


def _expanded(value: Any, name: str, faults: list[str]) -> Any:
    if isinstance(value, dict):
        faults += _expand(value, f"{name}.")
    elif isinstance(value, list):
        return [_expanded(one, f"{name}[{number}]", faults) for number, one in enumerate(value)]
    elif isinstance(value, str):
        for variable, default in _VARIABLE.findall(value):
            if variable not in os.environ and f"${{{variable}:-" not in value:
                faults.append(f"{name}: the environment has no {variable}; set it: export {variable}=…")
            value = value.replace(f"${{{variable}:-{default}}}", os.environ.get(variable) or default)
            value = value.replace(f"${{{variable}}}", os.environ.get(variable, ""))
        return _number(value)
    return value


def _fault(path: Path | None, lines: dict[str, int], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"] if isinstance(part, str) and part in _all_keys())
    line = (
        lines.get(".".join(map(str, error["loc"])))
        or lines.get(key)
        or next((lines[k] for k in lines if key and key.startswith(k + ".")), None)
    )
    last = str(error["loc"][-1]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        key = ".".join(str(part) for part in error["loc"])
        line = lines.get(key, line)
        what = f"unknown key {key}{nearest(last, _keys_beside(error['loc']))}"
    elif error["type"] == "missing":
        what = f"{'.'.join(str(p) for p in error['loc'])} is missing"
    else:
        message = error["msg"].removeprefix("Value error, ")
        got = "" if error["type"] == "value_error" else f", not {error['input']!r}"
        ours = error["type"] == "value_error"
        what = f"{key}: {message if ours else message[0].lower() + message[1:]}{got}" if key else message
    return what if path is None else f"{path}{f':{line}' if line else ''}: {what}"


def _section(annotation: Any) -> type[BaseModel] | None:
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _keys_beside(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        model = (_section(field.annotation) if field else None) or model
    return list(model.model_fields)


def _all_keys(model: type[BaseModel] = Recipe) -> set[str]:
    keys = set(model.model_fields)
    for field in model.model_fields.values():
        if (section := _section(field.annotation)) is not None:
            keys |= _all_keys(section)
    return keys
