"""Running a recipe: each stage in a process of its own, skipped when current, resumed when cut short, with the reason said."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from toolkit.errors import (
    DataError,
    InconclusiveError,
    ParityError,
    ResourceError,
    StageFailed,
    ToolkitError,
    UsageError,
)
from toolkit.models.bases import is_here
from toolkit.recipe.reading import write_resolved
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost, finish_publishing, publish, read_artifact, write_json
from toolkit.run.keys import difference, make_key
from toolkit.run.locks import NAMES_OF_ITS_OWN, only_run
from toolkit.run.preflight import preflight
from toolkit.run.processes import PEAKS_FILE, peak_card_memory, peak_memory, quiet_libraries
from toolkit.run.stage_processes import StageProcesses
from toolkit.run.stages import Stage, call_stage, stages_of, stages_upto

stderr = Console(stderr=True, highlight=False)


def run_folder(recipe: Recipe) -> Path:
    """Where a recipe's artifacts are: runs/<name>."""
    return Path("runs") / recipe.name


def run(recipe: Recipe, upto: str = "report", force: str = "", rewards: Path | None = None) -> dict[str, Artifact[Any]]:
    """Bring a stage, and all that it needs, up to date.

    Args:
        upto: the stage; `merge` is one where it is named.
        force: a stage to redo even when it is current.
        rewards: a Python file of the user's with rewards for grpo and rloo; it is run.

    Returns:
        The artifacts by stage.

    Raises:
        UsageError: this recipe has no such stage.
        ResourceError: another run holds the folder, or a stage was killed for memory.
        ParityError, InconclusiveError: `verify` did not pass; nothing after it runs.
        StageFailed: another stage failed; its process has printed why.
    """
    if upto == "merge":
        recipe = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"folder": True})})
    if upto not in {stage.name for stage in stages_of(recipe)}:
        raise UsageError(f"{recipe.name} has no stage {upto}: its adapter is trained already", "Name a later stage.")
    folder = run_folder(recipe)
    with only_run(folder, NAMES_OF_ITS_OWN), StageProcesses() as processes:
        return _run(recipe, folder, upto, force, rewards, processes)


def _run(
    recipe: Recipe, folder: Path, upto: str, force: str, rewards: Path | None, processes: StageProcesses
) -> dict[str, Artifact[Any]]:
    write_resolved(recipe, folder)
    have: dict[str, Artifact[Any]] = {}
    checked = False
    for stage in stages_upto(recipe, upto):
        finish_publishing(_partial(folder, stage), folder / stage.name)
        if not checked and _fetches(stage, recipe):
            _check(recipe, folder, _to_run(recipe, folder, upto, rewards), rewards, processes)
            checked = True
        key = make_key(stage, recipe, have, rewards)
        artifact, reason = find_current(stage, folder, key)
        if artifact is not None and stage.name == force:
            artifact, reason = None, "asked for"
        if artifact is None:
            if not checked:
                runs = _to_run(recipe, folder, upto, rewards) | {stage.name}
                _check(recipe, folder, runs, rewards, processes)
                checked = True
            artifact = _run_stage(stage, recipe, folder, key, reason, rewards, processes)
        else:
            stderr.print(f"[green]✓[/] {stage.name:<9} current", highlight=False)
        have[stage.name] = artifact
        if stage.name == "verify":
            stop_unless_passed(recipe, artifact)
    return have


def _check(
    recipe: Recipe, folder: Path, runs: Collection[str], rewards: Path | None, processes: StageProcesses
) -> None:
    """Check what is going to run, and begin meanwhile to load what it needs."""
    processes.get_ready(stage for stage in stages_of(recipe) if stage.name in runs)
    for doubt in preflight(recipe, folder, runs, rewards):
        stderr.print(f"[yellow]?[/] {escape(doubt)}", soft_wrap=True)


def plan_of_stages(recipe: Recipe, rewards: Path | None = None) -> list[tuple[str, str]]:
    """For `--dry-run`: every stage with "current" or the reason why it would run. Fetches nothing."""
    return _states(recipe, run_folder(recipe), rewards)


def _states(recipe: Recipe, folder: Path, rewards: Path | None, believed: str = "") -> list[tuple[str, str]]:
    """Every stage with "current" or the reason why it would run.

    Args:
        believed: a stage whose old result stands for the new one, in what is said of later stages.
    """
    have: dict[str, Artifact[Any]] = {}
    rows: list[tuple[str, str]] = []
    for stage in stages_of(recipe):
        artifact, reason = None, "an earlier stage runs"
        if _fetches(stage, recipe):
            reason = "the base is not here yet"
        elif all(name in have for name in stage.inputs):
            artifact, reason = find_current(stage, folder, make_key(stage, recipe, have, rewards))
        rows.append((stage.name, "current" if artifact is not None else f"runs: {reason}"))
        if artifact is None and stage.does == believed:
            with contextlib.suppress(DataError):
                artifact = read_artifact(folder / stage.name, stage.facts)
        if artifact is not None:
            have[stage.name] = artifact
    return rows


def _to_run(recipe: Recipe, folder: Path, upto: str, rewards: Path | None) -> set[str]:
    """Stages that will run, as far as can be told: prepare takes seconds, and often gives the same rows again."""
    states = _states(recipe, folder, rewards, believed="prepare")
    asked = {stage.name for stage in stages_upto(recipe, upto)}
    return {name for name, state in states if name in asked and state != "current"}


def _fetches(stage: Stage, recipe: Recipe) -> bool:
    """Whether even the question what a stage is made from downloads or rebuilds the base."""
    return stage.does == "train" and not is_here(recipe.base)


def find_current(stage: Stage, folder: Path, key: dict[str, Any]) -> tuple[Artifact[Any] | None, str]:
    """The stage's artifact when it is current, else None and the reason in words."""
    try:
        artifact: Artifact[Any] | None = read_artifact(folder / stage.name, stage.facts)
    except DataError as error:
        return None, error.message
    if artifact is None:
        return None, "going on where it was cut short" if _partial(folder, stage).is_dir() else "not done yet"
    reason = difference(artifact.key, key)
    if not reason and stage.name == "create":
        from toolkit.ollama.publish import still_published

        reason = still_published(artifact.facts)
    return (None, reason) if reason else (artifact, "")


def _partial(folder: Path, stage: Stage) -> Path:
    return folder / f"{stage.name}.partial"


def _run_stage(
    stage: Stage, recipe: Recipe, folder: Path, key: dict[str, Any], reason: str, rewards: Path | None,
    processes: StageProcesses,
) -> Artifact[Any]:  # fmt: skip
    partial = _partial(folder, stage)
    marker = folder / f".{stage.name}.key.json"
    # A partial folder is worth keeping only for training, and only when it was made from the same things.
    if not (stage.does == "train" and marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == key):
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    write_json(marker, key)
    stderr.print(f"[cyan]▶[/] {stage.name:<9} {reason}")
    order = {
        "stage": stage.name,
        "recipe": recipe.model_dump(mode="json"),
        "key": key,
        "folder": str(folder),
        "rewards": str(rewards) if rewards else None,
    }
    code = processes.run(stage, order, alone=stage.does == "train" and recipe.train.distributed != "none")
    if code != 0:
        raise _failure(stage, recipe, code)
    marker.unlink()
    artifact = read_artifact(folder / stage.name, stage.facts)
    if artifact is None:
        raise StageFailed(f"{stage.name} ended without a result", "Run again with --debug.", 1)
    cost = f"{artifact.cost.seconds:.0f} s, {artifact.cost.peak_memory_bytes / 2**30:.1f} GB"
    if artifact.cost.peak_card_bytes > 0.05 * 2**30:
        cost += f", {artifact.cost.peak_card_bytes / 2**30:.1f} GB of the card"
    stderr.print(f"[green]✓[/] {stage.name:<9} {cost} → {artifact.folder}", soft_wrap=True)
    return artifact


def _failure(stage: Stage, recipe: Recipe, code: int) -> ToolkitError:
    again = "Finished stages stay; when it is mended, run the same command again."
    if code == -9:
        from toolkit.train.memory import settings_to_lower

        lower = (
            settings_to_lower(recipe.at(stage.step))
            if stage.does == "train"
            else ["close other programs, or take a smaller base"]
        )
        return ResourceError(
            f"{stage.name} was killed by the system, most likely because memory ran out",
            "Run again; if it repeats, lower one of these, best first:\n  " + "\n  ".join(lower),
        )
    if code < 0:
        return StageFailed(f"{stage.name} was ended by signal {-code}", "Check this machine: tune2ollama doctor", 5)
    return StageFailed(f"Stopped at {stage.name}.", again, code)


def run_stage_here(order: dict[str, Any]) -> None:
    """The stage's side of `_run_stage`: call the stage's function in this process and publish what it left."""
    start = time.monotonic()
    quiet_libraries()
    recipe = Recipe.model_validate(order["recipe"])
    folder = Path(order["folder"])
    stage = next(s for s in stages_of(recipe) if s.name == order["stage"])
    have = {name: read_artifact(folder / name, s.facts) for s in stages_of(recipe) if (name := s.name) in stage.inputs}
    partial = _partial(folder, stage)
    rewards = Path(order["rewards"]) if order.get("rewards") else None
    facts = call_stage(stage, recipe, {k: v for k, v in have.items() if v is not None}, partial, rewards)
    seconds = round(time.monotonic() - start, 1)
    cost = Cost(seconds=seconds, **_peaks(partial))
    publish(partial, folder / stage.name, facts, order["key"], cost)


def _peaks(partial: Path) -> dict[str, int]:
    told = partial / PEAKS_FILE
    if not told.is_file():
        return {"peak_memory_bytes": peak_memory(), "peak_card_bytes": peak_card_memory()}
    peaks: dict[str, int] = json.loads(told.read_text(encoding="utf-8"))
    told.unlink()
    return peaks


def stop_unless_passed(recipe: Recipe, certificate: Artifact[Any]) -> None:
    """Raises ParityError or InconclusiveError where the verdict is not pass; the hint says what to do next."""
    facts = certificate.facts
    if facts.verdict == "pass":
        return
    from toolkit.parity.next_step import after_run

    where = certificate.folder / "certificate.html"
    message = f"the certificate says {facts.verdict}: {facts.message}"
    hint = f"Nothing was published. Read {where}.\n{after_run(recipe, facts, certificate.folder.parent)}"
    raise ParityError(message, hint) if facts.verdict == "fail" else InconclusiveError(message, hint)
