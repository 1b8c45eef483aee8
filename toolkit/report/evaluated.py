"""The figures of the evaluate stage for people: sentences, and a table of base, tuned model, exports and what is served."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from toolkit.evaluate.told import number, subjects_of, with_interval

_COLOURS = {"helped": "green", "harmed": "red", "mixed": "yellow"}


def evaluation_parts(evaluation: dict[str, Any]) -> list[RenderableType]:
    """For a terminal: the sentences, then the figures that they are about; all others are in report.md."""
    lines = evaluation_lines(evaluation)
    if not lines:
        return []
    parts: list[RenderableType] = [Text(lines[0], style=_COLOURS.get(evaluation["helped"], ""))]
    parts += [Text(line) for line in lines[1:]]
    figures = [figure for figure in evaluation["figures"] if figure["about"] != "beside"]
    if figures:
        parts += [Text(""), evaluation_table(figures)]
    return parts


def evaluation_lines(evaluation: dict[str, Any]) -> list[str]:
    """What the figures say, and what must be known besides."""
    return [*evaluation["sentences"], *(f"{remark[:1].upper()}{remark[1:]}." for remark in evaluation["remarks"])]


def evaluation_table(figures: list[dict[str, Any]]) -> Table:
    """A row for each subject; 95 % intervals stand under the values."""
    table = Table("")
    for figure in figures:
        table.add_column(f"{figure['name']} ({figure['rows']})")
    for name in subjects_of(figures):
        cells = []
        for figure in figures:
            found = figure["subjects"].get(name)
            # A value and its interval would not fit beside each other.
            cells.append("–" if found is None else with_interval(found, figure).replace(" [", "\n["))
        table.add_row(name, *cells)
    return table


def evaluation_cells(evaluation: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(head, rows) of all figures: a row for each, a column for each subject."""
    figures = evaluation["figures"]
    names = subjects_of(figures)
    rows = []
    for figure in figures:
        label = f"{figure['name']}, {figure['rows']} rows"
        found = [figure["subjects"].get(name) for name in names]
        rows.append((label, *("–" if one is None else with_interval(one, figure) for one in found)))
        if any(one and one.get("perplexity") is not None for one in found):
            told = [number({"value": one.get("perplexity")}, {"unit": ""}) if one else "–" for one in found]
            rows.append((f"perplexity ({figure['name']})", *told))
    return ("", *names), rows
