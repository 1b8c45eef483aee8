"""What `inspect` shows: a screen of 80 columns, and the same as a page."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from toolkit.data.images import Picture, place_of, read, upright
from toolkit.data.inspect import SHOWN, Inspection, Lengths, Shown
from toolkit.run.artifacts import write_text

WIDTH = 80
_LONGEST_PIECE = 400
_SMALL = 360
"""Pixels of a picture's longer side on the page."""
_BLOCKS = " ▁▂▃▄▅▆▇█"
Pairs = list[tuple[str, str]]


def print_screen(found: Inspection) -> None:
    """The screen on standard output, never wider than 80 columns."""
    console = Console(highlight=False)
    console.print(screen(found), width=min(WIDTH, console.width))


def screen(found: Inspection) -> RenderableType:
    """For a terminal."""
    parts: list[RenderableType] = [Rule("rows"), _table(_of_rows(found))]
    if found.rows:
        parts += [Rule("as the model will see them: ▐what is learnt▌")]
        for row in found.rows[:SHOWN]:
            parts += [
                Text(f"{row.file}:{row.line}, {row.tokens} tokens, {row.learnt} learnt", style="dim"),
                *(Text(f"picture: {place_of(picture.source)}", style="dim") for picture in row.pictures),
                _marked(row),
            ]
    if lengths := found.lengths:
        parts += [
            Rule("lengths"),
            _table(_of_lengths(lengths, _has_pictures(found))),
            Text(f"{'':<10}{_drawn(lengths)}"),
        ]
    return Group(*parts)


def as_json(found: Inspection) -> dict[str, Any]:
    """For machines."""
    return {
        "rows": dict(_of_rows(found)), "lengths": asdict(found.lengths) if found.lengths else None,
        "files": {file: {"format": shape.kind, "why": shape.reason, "columns": shape.roles, "unused": shape.unused}
                  for file, shape in found.loaded.shapes.items()},
        "encodings": found.loaded.table.encodings, "read": found.loaded.read, "kept": found.kept,
        "dropped": dict(Counter(d.reason for d in found.dropped)), "repaired": dict(found.repaired),
        "found": dict(Counter(f.what for f in found.found)), "near_duplicates": found.near, "sides": found.sides,
        "resembling": found.resembling,
        "shown": [{"file": r.file, "line": r.line, "tokens": r.tokens, "learnt": r.learnt, "pieces": r.pieces,
                   "pictures": [place_of(picture.source) for picture in r.pictures]} for r in found.rows],
    }  # fmt: skip


def write_page(found: Inspection, path: Path) -> Path:
    """The page, as one file that needs no network and runs no script. All of it comes from the rows, and is escaped."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    lengths = found.lengths
    most = max((count for *_, count in lengths.bars), default=1) if lengths else 1
    text = environment.get_template("inspected.html.jinja").render(
        title=found.recipe.data.place if found.recipe.data else "", about=_of_rows(found),
        rows=[(row, [(place_of(picture.source), _small(picture)) for picture in row.pictures]) for row in found.rows],
        base=found.recipe.base, max_length=lengths and lengths.max_length,
        lengths=_of_lengths(lengths, _has_pictures(found)) if lengths else [],
        bars=[(low, high, count, round(100 * count / max(most, 1), 1)) for low, high, count in (lengths.bars if lengths else [])],
    )  # fmt: skip
    write_text(path, text)
    return path


def _small(picture: Picture) -> str:
    """A picture as a data: address, for the page."""
    image = upright(read(picture.source)).image
    image.thumbnail((_SMALL, _SMALL))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()


def _of_rows(found: Inspection) -> Pairs:
    shapes, table = found.loaded.shapes, found.loaded.table
    kinds = dict.fromkeys((shape.kind, shape.reason) for shape in shapes.values())
    pairs = [("format", "; ".join(f"{kind}, since {reason}" for kind, reason in kinds))]
    columns = dict.fromkeys(f"{column} → {role}" for shape in shapes.values() for role, column in shape.roles.items())
    columns |= dict.fromkeys(f"{column} → picture" for shape in shapes.values() for column in shape.pictures)
    pairs.append(("columns", ", ".join(columns)))
    if unused := dict.fromkeys(name for shape in shapes.values() for name in shape.unused):
        pairs.append(("not used", ", ".join(unused)))
    pairs.append(("encoding", _counted(table.encodings.values(), len(table.encodings) > 1)))
    # The notes begin with what each file is, which was said above.
    pairs += [("", note) for note in found.notes if ", since " not in note and ": not used: " not in note]
    pairs += [("", told) for told in found.objective]
    pairs.append(("read", f"{found.loaded.read:,} rows, {found.kept:,} of which can be learnt from"))
    first = {d.reason: f"{d.file}:{d.line}" for d in reversed(found.dropped)}
    dropped = Counter(d.reason for d in found.dropped).most_common()
    pairs += [("dropped", f"{count:,} {reason}, first at {first[reason]}") for reason, count in dropped]
    pairs += [("repaired", f"{count:,} {what}") for what, count in found.repaired.most_common()]
    seen = {f.what: f"{f.file}:{f.line}" for f in reversed(found.found)}
    counts = Counter(f.what for f in found.found).most_common()
    pairs += [("found", f"{count:,} {what}, first at {seen[what]}") for what, count in counts]
    if found.languages:
        pairs.append(("language", _counted(found.languages.elements(), True)))
    if found.sides:
        pairs.append(("split", ", ".join(f"{count:,} {side}" for side, count in found.sides.items())))
        pairs.append(("alike", f"{found.near:,} rows nearly duplicate an earlier one"))
    if any(found.resembling.values()):
        told = " and ".join(f"{count:,} {side} rows" for side, count in found.resembling.items())
        pairs.append(("leakage", f"{told} resemble rows that would be trained on"))
    if found.refused:
        pairs.append(("refused", found.refused))
    return pairs


def _has_pictures(found: Inspection) -> bool:
    return any(row.pictures for row in found.rows)


def _counted(values: Iterable[str], with_counts: bool) -> str:
    counts = Counter(values).most_common()
    return ", ".join(f"{value} ({count:,})" if with_counts else value for value, count in counts)


def _of_lengths(lengths: Lengths, pictures: bool) -> Pairs:
    share = lengths.too_long
    told = f"{share:,} rows" if share else "nothing"
    return [
        ("tokens", f"half of the rows have up to {lengths.median:,}, 95 of 100 up to {lengths.p95:,}"),
        ("longest", f"{lengths.longest:,}, at {lengths.where}"),
        *(
            [("", "the pictures' own tokens are not counted: how many there are is up to the base and the server")]
            if pictures
            else []
        ),
        ("left out", f"{told} at train.max_length = {lengths.max_length:,} (measured on {lengths.measured:,} rows)"),
    ]


def _table(pairs: Pairs) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=8)
    table.add_column(overflow="fold")
    before = None
    for label, value in pairs:
        table.add_row(Text("" if label == before else label, style="bold"), Text(value))
        before = label
    return table


def _marked(row: Shown) -> Text:
    text = Text()
    for piece, learnt in row.pieces:
        shown = _short(piece).rstrip("\n")
        text.append(f"▐{shown}▌" if learnt else _short(piece), style="bold green" if learnt else "")
    text.append("\n")
    return text


def _short(text: str) -> str:
    half = _LONGEST_PIECE // 2
    return text if len(text) <= _LONGEST_PIECE else f"{text[:half]} […] {text[-half:]}"


def _drawn(lengths: Lengths) -> str:
    most = max(count for *_, count in lengths.bars)
    bars = "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // most)] for *_, count in lengths.bars)
    return f"{lengths.bars[0][0]} {bars} {lengths.bars[-1][0]:,} tokens and more"
