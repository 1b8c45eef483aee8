"""The first stage: the user's files → train.jsonl, validation.jsonl, test.jsonl, dropped.jsonl, found.jsonl, images/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from toolkit.data.cleaning import clean
from toolkit.data.findings import Finding, find
from toolkit.data.formats import Example
from toolkit.data.images import Album
from toolkit.data.languages import language_of
from toolkit.data.loading import Loaded, first_look, for_other_objectives, load, told
from toolkit.data.mixing import LEFT_OUT, mix
from toolkit.data.readers import Dropped
from toolkit.data.splitting import SIDES, Side, choose, deal, resembling, split
from toolkit.errors import DataError, ToolkitError, UsageError
from toolkit.models.thinking import of_message
from toolkit.recipe.prompts_file import asked, golden_turns
from toolkit.recipe.rows import Data
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import Objective
from toolkit.run.artifacts import write_jsonl
from toolkit.run.bars import passing_bar
from toolkit.run.facts import DatasetFacts

TWO_SIDES = "near duplicate of rows on two sides of the split"
GOLDEN = "resembles a golden prompt"
_WRITTEN_IN_HAN = {"zh", "yue", "ja"}
OVER_MAX_ROWS = "over max_rows"
_REMOVED = "removed by data.remove: "
_ALIKE = "see that not all show the same picture, since such rows stay on one side; or "
_LARGEST_HELD_OUT = 1 / 3
"""Of the rows: more than that is not dealt out for tests."""

Parts = dict[Side, list[Example]]


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
    golden = [asked(turns) for turns in golden_turns(recipe)]
    with passing_bar() as progress:
        task = progress.add_task("reading", total=None)
        loaded = load(data, lambda: progress.advance(task))
        _refuse_others(loaded, recipe.train.objective)
        progress.update(task, description="cleaning")
        album = Album(out)
        rows = kept_rows(loaded, data, recipe.system, album)
        progress.remove_task(task)
        _check_dropped(data, rows.examples, rows.dropped)
        progress.add_task("splitting", total=None)
        parts, left_out, alike, _ = divide(rows.examples, recipe, golden)
    dropped = sorted([*rows.dropped, *left_out], key=lambda d: (d.file, d.line))
    _check_parts(recipe, parts, dropped)
    unlike = _check_system(recipe, parts)
    everything = [e for examples in parts.values() for e in examples]
    album.keep_only(picture.name for example in everything for picture in example.pictures)
    for side, examples in parts.items():
        write_jsonl(out / f"{side}.jsonl", (example.record() for example in examples))
    write_jsonl(out / "dropped.jsonl", (_dropped_record(d) for d in dropped))
    write_jsonl(out / "found.jsonl", (finding._asdict() for finding in rows.found))
    for line in [*told(loaded), *_found_told(rows.found), *_alike_told(alike), *unlike]:
        console.print(line, markup=False, highlight=False)
    return DatasetFacts(
        rows={side: len(examples) for side, examples in parts.items()},
        read=loaded.read,
        kept=len(everything),
        dropped=_counts(dropped),
        repaired=dict(rows.repaired),
        encodings=loaded.table.encodings,
        formats={file: shape.kind for file, shape in loaded.shapes.items()},
        found=dict(Counter(finding.what for finding in rows.found).most_common()),
        resembling=alike,
        sources=dict(Counter(e.source for e in parts["train"])) if data.sources else {},
        thoughts=sum(map(_has_thought, everything)),
        pictures=sum(bool(example.pictures) for example in everything),
        language=_language(everything, data.language),
    )


class Rows(NamedTuple):
    """What reading and cleaning left."""

    examples: list[Example]
    dropped: list[Dropped]
    repaired: Counter[str]
    found: list[Finding]
    """Of the rows that are kept."""


def kept_rows(loaded: Loaded, data: Data, system: str, album: Album | None = None) -> Rows:
    """Clean rows, drop what `data.remove` says, and mix the sources.

    Args:
        system: the recipe's system text.
        album: where pictures go; None: they are checked only.
    """
    examples, dropped, repaired = clean(loaded.table.rows, loaded.shapes, data, system, album)
    dropped = [*loaded.table.dropped, *dropped]
    found = find(examples)
    unwanted = {i: f.what for i, all_of_it in enumerate(found) for f in all_of_it[::-1] if f.kind in data.remove}
    kept = set(range(len(examples))) - unwanted.keys()
    dropped += [_left_out(examples[i], _REMOVED + what) for i, what in unwanted.items()]
    if data.sources:
        numbers = sorted(kept)
        taken = mix([examples[i] for i in numbers], data.sources)
        kept = {numbers[place] for place in taken}
        dropped += [_left_out(examples[i], LEFT_OUT) for i in numbers if i not in kept]
    numbers = sorted(kept)
    return Rows([examples[i] for i in numbers], dropped, repaired, [f for i in numbers for f in found[i]])


class Divided(NamedTuple):
    """Rows on their sides."""

    parts: Parts
    left_out: list[Dropped]
    resembling: dict[str, int]
    """Where rows that resemble each other had to be parted: side → how many of its rows resemble one that is trained on."""
    near: int
    """Rows that nearly duplicate an earlier one."""


def divide(examples: list[Example], recipe: Recipe, golden: Sequence[str]) -> Divided:
    """Part the rows into train, validation and test.

    Args:
        golden: prompts that nothing that is trained on may resemble.
    """
    data = _data(recipe)
    found = split(examples, data, golden)
    parts, left_out = _divide(examples, found.sides, data)
    wanted = _wanted(recipe)
    alike = found.templated > 0
    held_out = wanted["validation"] + wanted["test"]
    if any(len(parts[side]) < wanted[side] for side in SIDES) and held_out < _LARGEST_HELD_OUT * len(examples):
        parts, left_out = _divide(examples, deal(examples, data, wanted, golden), data)
        alike = True
    sides: tuple[Side, ...] = ("validation", "test")
    counts: dict[str, int] = {side: resembling(parts["train"], parts[side]) for side in sides} if alike else {}
    return Divided(parts, left_out, counts, found.near)


def _refuse_others(loaded: Loaded, objective: Objective) -> None:
    if faults := for_other_objectives(loaded, objective):
        raise UsageError("\n".join(f.message for f in faults), "\n".join(dict.fromkeys(f.hint for f in faults)))


def _found_told(found: list[Finding]) -> list[str]:
    if not found:
        return []
    first: dict[str, Finding] = {}
    for finding in found:
        first.setdefault(finding.what, finding)
    counts = Counter(finding.what for finding in found)
    places = "; ".join(f"{n:,} {what} (first at {first[what].file}:{first[what].line})" for what, n in counts.items())
    kinds = ", ".join(dict.fromkeys(finding.kind for finding in found))
    return [f"Found in rows that are kept: {places}. found.jsonl lists all; to drop such rows: data.remove: [{kinds}]"]


def _alike_told(alike: dict[str, int]) -> list[str]:
    if not any(alike.values()):
        return []
    counts = " and ".join(f"{count:,} {side} rows" for side, count in alike.items())
    return [
        f"{counts} resemble rows that are trained on: rows share templates, or are few. Held-out figures are too good."
    ]


def _has_thought(example: Example) -> bool:
    return any(of_message(turn.record()).thought for turn in example.completion if turn.role == "assistant")


def _language(examples: list[Example], said: str) -> str:
    """The recipe's word for it, unless the script of the rows says otherwise (a recipe is used for other data, too)."""
    found = language_of([f"{example.prompt_text} {example.answer}" for example in examples])
    return said if (found == "zh") == (said in _WRITTEN_IN_HAN) else found


def check_data(recipe: Recipe) -> tuple[Loaded, list[ToolkitError]]:
    """The first rows of every file, and the faults that these and the files' names show: nothing there, not readable, columns
    missing, of another objective.

    Raises:
        UsageError: the recipe has no data.
    """
    loaded, faults = first_look(_data(recipe))
    return loaded, [*faults, *for_other_objectives(loaded, recipe.train.objective)]


def _data(recipe: Recipe) -> Data:
    if recipe.data is None:
        raise UsageError("the recipe has no data", "Add data.path: a file or a folder with your rows.")
    return recipe.data


def _counts(dropped: Iterable[Dropped]) -> dict[str, int]:
    return dict(Counter(d.reason for d in dropped).most_common())


def _dropped_told(dropped: list[Dropped]) -> str:
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
    hint = (
        f"Look at them: tune2ollama inspect {data.place}. Mend the rows, or loosen the limit that drops most: "
        "data.max_characters, data.max_dropped."
    )
    if any("picture" in d.reason for d in dropped):
        hint += " To learn the words without their pictures: --set data.columns.image=false"
    if not examples:
        raise DataError(f"{data.place}: none of the {read:,} rows is left:\n{_dropped_told(dropped)}", hint)
    if len(dropped) > data.max_dropped * read:
        share = f"{len(dropped):,} of {read:,} rows dropped, more than data.max_dropped = {data.max_dropped:g} of them"
        raise DataError(f"{data.place}: {share}:\n{_dropped_told(dropped)}", hint)


def _divide(examples: list[Example], sides: Sequence[Side | None], data: Data) -> tuple[Parts, list[Dropped]]:
    parts: Parts = {side: [] for side in SIDES}
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


def _wanted(recipe: Recipe) -> dict[Side, int]:
    data = _data(recipe)
    test = max(recipe.golden.from_test, int(data.test > 0))
    return {"train": 1, "validation": int(data.validation > 0), "test": test}


def _check_parts(recipe: Recipe, parts: Parts, dropped: list[Dropped]) -> None:
    data, wanted = _data(recipe), _wanted(recipe)
    counts = ", ".join(f"{side} {len(rows):,}" for side, rows in parts.items())
    for side in SIDES:
        if len(parts[side]) < wanted[side]:
            fewer = f"--set golden.from_test={len(parts['test'])}" if parts["test"] else "golden.prompts of your own"
            raise DataError(
                f"{data.place}: too few rows on the {side} side: {counts}; {wanted[side]} needed"
                + (f"; dropped:\n{_dropped_told(dropped)}" if dropped else ""),
                "Add rows, or "
                + (_ALIKE if any(example.pictures for rows in parts.values() for example in rows) else "")
                + ("lower data.test." if side == "train" else f"raise its share: --set data.{side}=0.2")
                + (f"; or ask fewer of them: {fewer}" if side == "test" and wanted["test"] > 1 else ""),
            )


def _check_system(recipe: Recipe, parts: Parts) -> list[str]:
    """What is served by default must have been trained with; before the rows' own texts it was, though not alone."""
    systems = Counter(example.system for example in parts["train"])
    rule = _data(recipe).system
    if rule == "recipe" or not recipe.system or recipe.system in systems:
        return []
    if rule == "both":
        return [
            "Every row has a system text of its own behind the recipe's, so no row was trained with the recipe's system text "
            "alone, and that is what is served: apps have to send both."
        ]
    commonest, count = systems.most_common(1)[0]
    raise DataError(
        f"every row brings a system text of its own, so the recipe's would be served and was never trained with: "
        f"{recipe.system[:60]!r}",
        f"Say that none is served: system: ''; or the one that {count:,} rows have: system: {commonest[:60]!r}",
    )


def _dropped_record(d: Dropped) -> dict[str, Any]:
    return {"file": d.file, "line": d.line, "reason": d.reason, "text": d.text[:80]}
