"""Everything that a recipe's data names: read, with the shape of every file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit.data.formats import FIRST_ROWS, Shape, doubt, objectives_of, rows_for, shape_of, thought_columns
from toolkit.data.images.sources import ENDINGS, Shelf
from toolkit.data.readers import Table, left_out, places, read_file
from toolkit.errors import ToolkitError, UsageError
from toolkit.recipe.rows import Data, Source
from toolkit.recipe.training import Objective


@dataclass
class Loaded:
    """Rows, and what their columns are."""

    table: Table = field(default_factory=Table)
    shapes: dict[str, Shape] = field(default_factory=dict)
    """File → its shape; a file without a row that could be read has none."""
    doubts: dict[str, str] = field(default_factory=dict)
    """File → what in it may be read otherwise than it is meant, with its line, and how to say so."""

    @property
    def read(self) -> int:
        """Records, kept or not."""
        return len(self.table.rows) + len(self.table.dropped)


def load(data: Data, step: Callable[[], None] = lambda: None) -> Loaded:
    """Read every row of every source.

    Args:
        step: called after each file.

    Raises:
        UsageError: a path does not exist, or columns are missing, all of them at once.
        DataError: a file that cannot be read.
    """
    loaded, faults = _load(data, None, step, stop=True)
    if faults:
        hints = "\n".join(dict.fromkeys(fault.hint for fault in faults))
        raise UsageError("\n".join(fault.message for fault in faults), hints)
    return loaded


def first_look(data: Data) -> tuple[Loaded, list[ToolkitError]]:
    """The first rows of every file, and all faults that these show."""
    return _load(data, FIRST_ROWS, lambda: None, stop=False)


def _load(data: Data, at_most: int | None, step: Callable[[], None], stop: bool) -> tuple[Loaded, list[ToolkitError]]:
    loaded = Loaded()
    faults: list[ToolkitError] = []
    for source in data.readings:
        named = source.called if data.sources else ""
        try:
            found = places(source)
        except ToolkitError as error:
            if stop:
                raise
            faults.append(error)
            continue
        for name, file in found:
            table = Table(notes=loaded.table.notes)
            try:
                read_file(file, name, table, source, at_most)
            except ToolkitError as error:
                if stop:
                    raise
                faults.append(error)
            faults += _take(loaded, table, source, named, _shelf(file, source))
            step()
        if not source.path.startswith("hub:"):
            _tell_left_out(loaded, Path(source.path))
    return loaded, faults


def _shelf(file: Path | None, source: Source) -> Shelf:
    """Where names of pictures lead: a file alone names those of its own folder."""
    if file is None:
        return Shelf()
    root = Path(source.path)
    return Shelf((file.parent, root if root.is_dir() and file != root else file.parent))


def _tell_left_out(loaded: Loaded, path: Path) -> None:
    """Files of a folder that are not read; pictures are where rows have some."""
    beside = left_out(path)
    if any(shape.pictures for shape in loaded.shapes.values()):
        beside = [name for name in beside if not name.lower().endswith(ENDINGS)]
    if beside:
        shown = ", ".join(beside[:5]) + (f" and {len(beside) - 5} more" if len(beside) > 5 else "")
        loaded.table.notes.append(f"{path}: not read: {shown}")


def _take(loaded: Loaded, table: Table, source: Source, named: str, shelf: Shelf) -> list[ToolkitError]:
    """Add a file's rows, under their source's name where there are several."""

    def called(file: str) -> str:
        return f"{named}/{file}" if named else file

    faults: list[ToolkitError] = []
    for file, columns in table.columns.items():
        all_rows = [row for row in table.rows if row.file == file]
        rows, later = all_rows[:FIRST_ROWS], all_rows[FIRST_ROWS :: len(all_rows) // FIRST_ROWS or 1]
        if rows:
            try:
                shape = shape_of(called(file), columns, [row.values for row in rows + later], source)
            except ToolkitError as error:
                faults.append(error)
                continue
            shape = replace(shape, shelf=shelf)
            loaded.shapes[called(file)] = shape
            if said := doubt(called(file), shape, rows, source):
                loaded.doubts[called(file)] = said
    whole = loaded.table
    whole.rows += [replace(row, file=called(row.file), source=named) for row in table.rows] if named else table.rows
    whole.dropped += [replace(d, file=called(d.file)) for d in table.dropped] if named else table.dropped
    whole.encodings.update({called(file): encoding for file, encoding in table.encodings.items()})
    whole.columns.update({called(file): columns for file, columns in table.columns.items()})
    return faults


def told(loaded: Loaded) -> list[str]:
    """What was read, what was chosen and what is not used, a line each."""
    lines = [f"{file}: {shape.kind}, since {shape.reason}" for file, shape in loaded.shapes.items()]
    for file, shape in loaded.shapes.items():
        if shape.unused:
            lines.append(f"{file}: not used: {', '.join(shape.unused)}")
        lines += [
            f"{file}: the column {column} is not used; to train its thoughts: --set data.columns.thinking={column}"
            for column in thought_columns(shape)
        ]
    return lines + loaded.table.notes


def for_other_objectives(loaded: Loaded, objective: Objective) -> list[ToolkitError]:
    """A fault for each file whose rows hold something else than the objective learns from; it says what learns from them."""
    faults: list[ToolkitError] = []
    needed = rows_for(objective)
    for file, shape in loaded.shapes.items():
        if shape.held == needed:
            continue
        others = objectives_of(shape.held)
        hint = f"train.objective: {objective} learns from {needed}; from these learn {', '.join(others)}: --set train.objective="
        hint += others[0]
        roles = shape.roles
        answers = roles.get("chosen") or (roles.get("completion") if shape.kind == "unpaired" else None)
        if objective == "sft" and answers and "prompt" in roles:
            hint += (
                f"; to learn {'the chosen answers alone' if 'chosen' in roles else 'all of these answers'}: --set "
                f"data.columns.prompt={roles['prompt']} --set data.columns.completion={answers}"
            )
        elif objective == "sft" and shape.kind == "unpaired":
            hint += "; to learn all of these answers: --set data.format=messages"
        faults.append(UsageError(f"{file} holds {shape.held}: {shape.reason}", hint))
    return faults
