"""The files of a PEFT adapter, looked at without torch: what is wrong with them is told in the first second."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.errors import DataError, ToolkitError, UsageError
from toolkit.models.json_file import read_object
from toolkit.models.safetensors_file import first_not_finite, model_files, read_header

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
PATTERN_SECONDS = 0.5
"""Matching a configuration's patterns with every module of a model was measured at 0.02 s for 20,000 modules."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# Ways of starting that change the base's weights too; see `toolkit.models.changed_base`.
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_adapter(folder: Path) -> dict[str, Any]:
    """Everything that can be known to be wrong of an adapter without its base; gives its configuration.

    Raises:
        DataError: files that are missing or damaged, numbers that are none, a pattern that runs away.
        UsageError: a kind of adapter that has no merge.
    """
    config = read_config(folder)
    path = weights_file(folder)
    header = read_header(path)
    if not header:
        raise DataError(f"{path} holds no tensors", "Train it again, or name another adapter.")
    check_patterns(folder, config, {name.removeprefix(PREFIX).rsplit(".", 2)[0] for name in header})
    broken = first_not_finite(path, header)
    if broken is not None:
        raise DataError(
            f"{path}: {broken} holds values that are no numbers (NaN or infinite), so the training broke down",
            "Take an earlier checkpoint, or train again with a lower learning rate.",
        )
    return config


def weights_file(folder: Path) -> Path:
    """The adapter's safetensors file. Raises DataError where there is none."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickle = " (its adapter_model.bin is a pickle, which is not read here)"
        raise DataError(
            f"{path} is missing{pickle if (folder / 'adapter_model.bin').is_file() else ''}",
            "Save the adapter as safetensors: model.save_pretrained(folder).",
        )
    return path


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, with the optional keys of LoRA filled in; `r` is 0 for other kinds.

    Raises:
        DataError: missing, not JSON, or without a key that a merge needs.
        UsageError: a kind of adapter that has no merge.
    """
    path = folder / CONFIG_FILE
    try:
        config = read_object(path, "Save the adapter again.")
    except FileNotFoundError as error:
        raise _no_adapter(folder) from error
    if not isinstance(config.get("peft_type"), str):
        raise DataError(f"{path} has no key peft_type", "Save the adapter with PEFT's save_pretrained.")
    if config["peft_type"] == "LORA":
        for key in ("r", "lora_alpha"):
            if not isinstance(config.get(key), int | float) or config[key] <= 0:
                raise DataError(
                    f"{path}: {key} is {config.get(key, 'missing')}", "It must be a number above 0, as trained."
                )
    else:
        config["r"] = 0
    for key, default in (("rank_pattern", {}), ("alpha_pattern", {}), ("use_rslora", False), ("use_dora", False)):
        config[key] = config.get(key) or default
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config[key], dict):
            raise DataError(f"{path}: {key} is no table of names and numbers", "Write it as it was trained with.")
    _refuse_without_merge(path, config)
    return config


def _refuse_without_merge(path: Path, config: dict[str, Any]) -> None:
    # Virtual tokens have no place in the weights, so no tool can merge them.
    if "num_virtual_tokens" in config:
        raise UsageError(
            f"{path}: peft_type {config['peft_type']} has no merge: it adds virtual tokens, and changes no weight",
            "Train a LoRA instead: prompt, prefix and p-tuning cannot be put into a GGUF.",
        )
    if "adapters" in config:
        raise UsageError(
            f"{path}: peft_type {config['peft_type']} mixes several adapters by what is asked, so it has no merge",
            "Export one of its adapters.",
        )
    if config.get("megatron_config"):
        raise UsageError(
            f"{path}: megatron_config names a module that would be imported; nothing that was read is run here",
            "Set it to null where the adapter's matrices are those of an ordinary LoRA.",
        )
    if config.get("layer_replication"):
        raise UsageError(
            f"{path}: layer_replication makes another model of the base, with more layers, which is not done here",
            "Merge it with PEFT's merge_and_unload, save the result, and name that folder: tune2ollama export FOLDER",
        )


def start_of(config: dict[str, Any]) -> str:
    """How the adapter's matrices began, where that changed the base's weights too; else empty."""
    start = str(config.get("init_lora_weights", "")).lower()
    return start if start.startswith(CHANGES_THE_BASE) else ""


# Patterns ------------------------------------------------------------------------------------------------------


def check_patterns(folder: Path, config: dict[str, Any], modules: Iterable[str]) -> None:
    """Match every pattern of the configuration once, as PEFT will, within a time limit.

    Args:
        modules: names that PEFT will match with them.

    Raises:
        DataError: no pattern, or one that runs away (Python's `re` may need longer than the world exists).
    """
    names = sorted(modules)
    for key, given, pattern in _patterns(config):
        try:
            with _time_limit(PATTERN_SECONDS):
                found = re.compile(pattern)
                for name in names:
                    found.match(name)
        except re.error as error:
            raise DataError(
                f"{folder / CONFIG_FILE}: {key}: {given[:60]!r} is no pattern: {error}", "Write it as trained with."
            ) from error
        except TimeoutError as error:
            raise DataError(
                f"{folder / CONFIG_FILE}: {key}: matching {given[:60]!r} with the names of the layers runs away",
                "Write the names of the layers instead of this pattern.",
            ) from error


def _patterns(config: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(key, as it is written there, as PEFT matches it)."""
    # As PEFT puts them together: tuners_utils.check_target_module_exists, other.get_pattern_key.
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in config[key]:
            yield key, pattern, rf"(.*\.)?({pattern})$"
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), str):
            yield key, config[key], rf"(?:{config[key]})\Z"
    for key, around in (
        ("modules_to_save", r"(^|.*\.){}($|\..*)"),
        ("layers_pattern", r"(?:^|.*?\.){}\.(?P<idx>\d+)\."),
    ):
        given = config.get(key) or []
        for pattern in [given] if isinstance(given, str) else given:
            yield key, str(pattern), around.replace("{}", str(pattern))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError within `seconds`; Python's `re` looks for signals while it matches.

    Another engine with a time limit of its own would not do: it may be quick where `re`, which PEFT uses, is not. Signals reach
    the main thread only, where every command and stage of this project runs; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, over)
    rest = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *rest)
        signal.signal(signal.SIGALRM, before)


# Folders -------------------------------------------------------------------------------------------------------


def is_model(folder: Path) -> bool:
    """Whether a folder holds a whole model instead of an adapter."""
    return (folder / "config.json").is_file() and not (folder / CONFIG_FILE).is_file()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in a trainer's output folder; None where there is none."""
    numbered = [(int(found[1]), p) for p in folder.glob("checkpoint-*") if (found := _CHECKPOINT.fullmatch(p.name))]
    return next((path for _, path in sorted(numbered, reverse=True) if _is_complete(path)), None)


def _is_complete(folder: Path) -> bool:
    # A trainer that was killed leaves files without their ends; a safetensors header tells how long its file is.
    try:
        if is_model(folder):
            return bool(model_files(folder))
        json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return bool(read_header(folder / WEIGHTS_FILE))
    except (OSError, ValueError, RecursionError, ToolkitError):
        return False


def latest(folder: Path) -> Path:
    """What `--latest` takes: the newest complete checkpoint in the folder; the folder itself where it holds an adapter or a
    model of its own, which a trainer writes last.

    Raises:
        DataError: there is neither.
    """
    if (folder / CONFIG_FILE).is_file() or is_model(folder):
        return folder
    found = newest_checkpoint(folder)
    if found is None:
        raise DataError(f"{folder} holds no complete checkpoint", "Name the folder that holds the adapter.")
    return found


def _no_adapter(folder: Path) -> ToolkitError:
    if not folder.is_dir():
        return DataError(
            f"there is no folder {folder}, so it is no PEFT adapter", "Name the one that holds the adapter."
        )
    newest = newest_checkpoint(folder)
    if newest is not None:
        return DataError(
            f"{folder / CONFIG_FILE} is missing: {folder} is no PEFT adapter itself, but holds checkpoints; the newest "
            f"complete one is {newest}",
            f"Name it, {newest}, or take it with: tune2ollama export {folder} --latest",
        )
    return DataError(
        f"{folder / CONFIG_FILE} is missing: {folder} is no PEFT adapter", "Name the folder that holds it."
    )
