"""What is here: recipes, runs, and what can be removed."""

from __future__ import annotations

from pathlib import Path

from toolkit.artifacts import ARTIFACT_FILE
from toolkit.errors import UsageError
from toolkit.places import cache_home
from toolkit.recipe import nearest
from toolkit.stages import STAGE_NAMES


def list_rows(recipes: Path, runs: Path) -> list[dict[str, str]]:
    """Each recipe with the first comment line of its file and the stages that have a result."""
    rows = []
    for path in sorted(recipes.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        done = [name for name in STAGE_NAMES if (runs / path.stem / name / ARTIFACT_FILE).is_file()]
        state = f"done: {', '.join(done)}" if done else "not run yet"
        rows.append({"recipe": str(path), "about": first.lstrip("# ").rstrip(), "state": state})
    return rows


def what_to_clean(name: str | None, cache: bool) -> list[Path]:
    """Folders that `clean` would remove: one run's, or all runs'; with `cache` also the rebuilt bases.

    Raises:
        UsageError: there is no run of that name.
    """
    runs = sorted(p for p in Path("runs").glob("*") if p.is_dir())
    if name is not None:
        names = [p.name for p in runs]
        if name not in names:
            known = ", ".join(names) or "none"
            raise UsageError(f"there is no run {name}{nearest(name, names)}; there are: {known}")
        runs = [p for p in runs if p.name == name]
    bases = cache_home() / "bases"
    return [*runs, bases] if cache and bases.is_dir() else runs
