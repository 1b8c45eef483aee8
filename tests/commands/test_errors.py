"""Every error says what to do next."""

from __future__ import annotations

import ast
from pathlib import Path

from toolkit import errors

ROOT = Path(__file__).parents[2]
FAULTS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.ToolkitError) and value is not errors.StageFailed
}


def _faults(path: Path) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in FAULTS]


def test_every_error_has_a_hint() -> None:
    made = {path: _faults(path) for path in (ROOT / "toolkit").rglob("*.py")}
    assert sum(map(len, made.values())) > 100
    bare = [f"{path}:{call.lineno}" for path, calls in made.items() for call in calls if len(call.args) < 2]
    assert bare == []
