"""What is here: recipes, runs, and what can be removed."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import yaml

from toolkit.errors import UsageError
from toolkit.recipe.reading import RESOLVED_FILE
from toolkit.recipe.section import nearest
from toolkit.run.artifacts import ARTIFACT_FILE
from toolkit.run.locks import only_run
from toolkit.run.places import cache_home
from toolkit.run.stages import STAGES


def list_rows(recipes: Path, runs: Path) -> list[dict[str, str]]:
    """Each recipe with its run's name, the first comment line of its file and the stages that have a result; then the runs
    that no recipe here names (exports, `--set name=…`)."""
    rows = []
    for path in sorted(recipes.glob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        about = text.partition("\n")[0].lstrip("# ").rstrip()
        rows.append(_row(path, runs / _name(text, path.stem), about))
    named = {row["name"] for row in rows}
    rest = [folder for folder in _folders(runs) if folder.name not in named]
    return rows + [_row(folder / RESOLVED_FILE, folder, "no recipe of this name is here") for folder in rest]


def _row(recipe: Path, run: Path, about: str) -> dict[str, str]:
    done = [stage.name for stage in STAGES if (run / stage.name / ARTIFACT_FILE).is_file()]
    state = f"done: {', '.join(done)}" if done else "not run yet"
    return {"recipe": str(recipe), "name": run.name, "about": about, "state": state}


def _name(text: str, otherwise: str) -> str:
    # A recipe that cannot be read is listed too; running it tells what is wrong.
    with contextlib.suppress(yaml.YAMLError):
        tree = yaml.safe_load(text)
        if isinstance(tree, dict) and isinstance(tree.get("name"), str):
            return str(tree["name"])
    return otherwise


def _folders(runs: Path) -> list[Path]:
    return sorted(p for p in runs.glob("*") if p.is_dir())


def what_to_clean(name: str | None, cache: bool) -> list[Path]:
    """Folders that `clean` would remove: one run's, or all runs'; with `cache` also the rebuilt bases.

    Raises:
        UsageError: there is no run of that name.
    """
    runs = _folders(Path("runs"))
    if name is not None:
        names = [p.name for p in runs]
        if name not in names:
            raise UsageError(
                f"there is no run {name}{nearest(name, names)}; there are: {', '.join(names) or 'none'}",
                "Name one of them, or none to remove all.",
            )
        runs = [p for p in runs if p.name == name]
    bases = cache_home() / "bases"
    return [*runs, bases] if cache and bases.is_dir() else runs


def remove(folders: list[Path]) -> None:
    """Remove the folders that `what_to_clean` gave; none of them while a run works in one.

    Raises:
        ResourceError: a run is at work.
    """
    with contextlib.ExitStack() as held:
        for folder in folders:
            held.enter_context(only_run(folder, "Nothing was removed. Wait for it to end, or name another run."))
        for folder in folders:
            shutil.rmtree(folder)
