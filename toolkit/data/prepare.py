"""The first stage: the user's files → train.jsonl, validation.jsonl, test.jsonl, dropped.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from toolkit.data.cleaning import clean
from toolkit.data.formats import Example, check_columns, missing_columns, unused_thoughts
from toolkit.data.inspect import language_of
from toolkit.data.readers import Dropped, Table, find_files, read_file
from toolkit.data.splitting import SIDES, Side, choose, split
from toolkit.errors import DataError, ToolkitError, UsageError
from toolkit.models.thinking import of_message
from toolkit.recipe.prompts_file import asked, golden_turns
from toolkit.recipe.schema import Data, Recipe
from toolkit.run.artifacts import write_jsonl
from toolkit.run.facts import DatasetFacts

TWO_SIDES = "near duplicate of rows on two sides of the split"
GOLDEN = "resembles a golden prompt"
_WRITTEN_IN_HAN = {"zh", "yue", "ja"}
OVER_MAX_ROWS = "over max_rows"
_FIRST_ROWS = 100


def prepare_dataset(recipe: Recipe, out: Path) -> DatasetFacts:
    """Read, clean and split the recipe's rows.

    Args:
        recipe: with `data`.
        out: an existing empty folder.

    Raises:
        UsageError: the recipe has no data, its path does not exist, a column is missing.
        DataError: a file that cannot be read, or too many rows dropped.
    """
    data = _data(recipe)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        table = _read(data, progress)
        check_columns(data, table)
        for name, columns in table.columns.items():
            for column in unused_thoughts(data, columns):
                hint = (
                    f"--set data.columns.thinking={column}" if data.format == "columns" else "use data.format: messages"
                )
                console.print(f"{name}: the column {column} is not used; to train its thoughts: {hint}", markup=False)
        task = progress.add_task("cleaning", total=None)
        examples, dropped, repaired = clean(table.rows, data)
        progress.remove_task(task)
        dropped = [*table.dropped, *dropped]
        _check_dropped(data, examples, dropped)
        task = progress.add_task("splitting", total=len(examples))
        sides = split(examples, data, [asked(turns) for turns in golden_turns(recipe)], lambda: progress.advance(task))
    parts, left_out = _divide(examples, sides, data)
    dropped = sorted([*dropped, *left_out], key=lambda d: (d.file, d.line))
    _check_parts(recipe, parts, dropped)
    for side, rows in parts.items():
        write_jsonl(out / f"{side}.jsonl", (example.record(recipe.system) for example in rows))
    write_jsonl(out / "dropped.jsonl", (_dropped_record(d) for d in dropped))
    return DatasetFacts(
        rows={side: len(rows) for side, rows in parts.items()},
        read=len(table.rows) + len(table.dropped),
        kept=sum(len(rows) for rows in parts.values()),
        dropped=_counts(dropped),
        repaired=dict(repaired),
        encodings=table.encodings,
        thoughts=sum(bool(_thought(example)) for rows in parts.values() for example in rows),
        language=_language([e for rows in parts.values() for e in rows], data.language),
    )


def _thought(example: Example) -> str:
    return of_message(example.record("")["completion"][0]).thought


def _language(examples: list[Example], said: str) -> str:
    """The recipe's word for it, unless the script of the rows says otherwise (a recipe is used for other data, too)."""
    found = language_of([f"{example.prompt_text} {example.completion}" for example in examples])
    return said if (found == "zh") == (said in _WRITTEN_IN_HAN) else found


def check_data(recipe: Recipe) -> list[ToolkitError]:
    """The faults that the files' names and first rows show: nothing there, not readable, columns missing."""
    faults: list[ToolkitError] = []
    try:
        data = _data(recipe)
        files = find_files(Path(data.path))
    except ToolkitError as error:
        return [error]
    for name, file in files:
        table = Table()
        try:
            read_file(file, name, table, data.encoding, at_most=_FIRST_ROWS)
            faults += missing_columns(data, name, table.columns[name])
        except ToolkitError as error:
            faults.append(error)
    return faults


def _data(recipe: Recipe) -> Data:
    if recipe.data is None:
        raise UsageError("the recipe has no data", "Add data.path: a file or a folder with your rows.")
    return recipe.data


def _read(data: Data, progress: Progress) -> Table:
    table = Table()
    files = find_files(Path(data.path))
    task = progress.add_task("reading", total=len(files))
    for name, file in files:
        read_file(file, name, table, data.encoding)
        progress.advance(task)
    return table


def _counts(dropped: Iterable[Dropped]) -> dict[str, int]:
    return dict(Counter(d.reason for d in dropped).most_common())


def _told(dropped: list[Dropped]) -> str:
    first: dict[str, Dropped] = {}
    for d in dropped:
        first.setdefault(d.reason, d)
    lines = [
        f"  {n:,} {reason}, first at {first[reason].file}:{first[reason].line}"
        for reason, n in _counts(dropped).items()
    ]
    return "\n".join(lines)


def _check_dropped(data: Data, examples: list[Example], dropped: list[Dropped]) -> None:
    read = len(examples) + len(dropped)
    hint = "Mend the rows, or loosen the limit that drops most: data.max_characters, data.max_dropped."
    if not examples:
        raise DataError(f"{data.path}: none of the {read:,} rows is left:\n{_told(dropped)}", hint)
    if len(dropped) > data.max_dropped * read:
        share = f"{len(dropped):,} of {read:,} rows dropped, more than data.max_dropped = {data.max_dropped:g} of them"
        raise DataError(f"{data.path}: {share}:\n{_told(dropped)}", hint)


def _divide(
    examples: list[Example], sides: list[Side | None], data: Data
) -> tuple[dict[Side, list[Example]], list[Dropped]]:
    parts: dict[Side, list[Example]] = {side: [] for side in SIDES}
    left_out = []
    for example, side in zip(examples, sides):
        if side == "test" and data.test == 0:
            left_out.append(_left_out(example, GOLDEN))
        elif side is None:
            left_out.append(_left_out(example, TWO_SIDES))
        else:
            parts[side].append(example)
    chosen = choose(parts["train"], data.max_rows)
    left_out += [_left_out(e, OVER_MAX_ROWS) for i, e in enumerate(parts["train"]) if i not in chosen]
    parts["train"] = [e for i, e in enumerate(parts["train"]) if i in chosen]
    return parts, left_out


def _left_out(example: Example, reason: str) -> Dropped:
    return Dropped(example.file, example.line, reason, example.prompt_text)


def _check_parts(recipe: Recipe, parts: dict[Side, list[Example]], dropped: list[Dropped]) -> None:
    data = _data(recipe)
    counts = ", ".join(f"{side} {len(rows):,}" for side, rows in parts.items())
    wanted = {
        "train": 1,
        "validation": int(data.validation > 0),
        "test": max(recipe.golden.from_test, int(data.test > 0)),
    }
    for side in SIDES:
        if len(parts[side]) < wanted[side]:
            raise DataError(
                f"{data.path}: too few rows on the {side} side: {counts}; {wanted[side]} needed"
                + (f"; dropped:\n{_told(dropped)}" if dropped else ""),
                "Add rows (near duplicates stay together, so they count as one), "
                + ("lower data.test." if side == "train" else f"or raise its share: --set data.{side}=0.2"),
            )


def _dropped_record(d: Dropped) -> dict[str, Any]:
    return {"file": d.file, "line": d.line, "reason": d.reason, "text": d.text[:80]}
