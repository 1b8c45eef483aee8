"""What exports and trainings are held to, beside what was measured: the last table of `make bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any, NamedTuple

from rich.table import Table

from toolkit.run.hardware import has_bfloat16_products

Row = dict[str, Any]
EXPORTS = (
    ("embedded", "Q4_K_M", "wall", "reference", 1 / 6),
    ("1.1B", "Q8_0", "wall", "reference", 1 / 5),
    ("1.1B", "Q4_K_M", "wall", "reference", 1 / 2),
    ("1.1B", "Q4_K_M", "wall", "quantize alone", 1.15),
    ("1.1B", "Q8_0", "peak", "reference", 1 / 2),
    ("1.1B", "Q4_K_M", "peak", "reference", 1 / 2),
)
"""Of a model and file type, what ours is at most so many times the other way's; see `tests.bench.speed.Spent`."""
TRAININGS = {
    "ours, float32": 1.9,
    "ours, float32, by length": 1.9,
    "ours, bfloat16": 3.0,
    "ours, bfloat16, by length": 3.0,
}
"""Real tokens a second, at least so many times the plain script's."""


class Held(NamedTuple):
    """One bar."""

    what: str
    bar: str
    measured: str
    met: bool


def exports(rows: Iterable[Row]) -> list[Held]:
    """Of the rows that were measured; see `tests.bench.speed.measured`."""
    found = []
    by_name = {(row["case"], row["file_type"]): row["spent"] for row in rows}
    for case, file_type, key, other, most in EXPORTS:
        spent = by_name.get((case, file_type))
        if spent is None:
            continue
        ratios = [getattr(one, key) / getattr(two, key) for one, two in zip(spent["ours"], spent[other])]
        what = f"{case} → {file_type}: {key}, of {other}"
        found.append(_held(what, ratios, most, lambda value, bar: value <= bar, "≤"))
    for (case, file_type), spent in by_name.items():
        beyond = max(one.disk - one.made for one in spent["ours"])
        found.append(Held(f"{case} → {file_type}: bytes left beside the file", "0", f"{beyond}", beyond == 0))
    return found


def trainings(ratios: dict[str, list[float]]) -> list[Held]:
    """Of each way, its tokens a second over those of the plain script in the same round."""
    found = []
    for way, least in TRAININGS.items():
        if "bfloat16" in way and not has_bfloat16_products():
            continue  # this processor computes in float32
        what = f"training, {way.removeprefix('ours, ')}: tokens/s, of the plain script's"
        found.append(_held(what, ratios[way], least, lambda value, bar: value >= bar, "≥"))
    return found


def table_of(held: Iterable[Held]) -> Table:
    """As it is printed."""
    table = Table("what ours is held to", "bar", "measured", "met")
    for one in held:
        table.add_row(one.what, one.bar, one.measured, "yes" if one.met else "no")
    return table


def _held(what: str, ratios: list[float], bar: float, met: Callable[[float, float], bool], sign: str) -> Held:
    middle = median(ratios)
    return Held(what, f"{sign} {bar:.2f}", f"{middle:.2f} ({min(ratios):.2f}–{max(ratios):.2f})", met(middle, bar))
