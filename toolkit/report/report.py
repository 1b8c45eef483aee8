"""The end of a run: the last screen, report.md, certificate.html, model_card.md and pictures, all from one summary."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from toolkit.recipe.schema import Recipe
from toolkit.report.answers import Answer
from toolkit.report.card import card_text
from toolkit.report.certificate_table import certificate_table
from toolkit.report.evaluated import evaluation_cells, evaluation_lines, evaluation_parts
from toolkit.report.markdown import inline, markdown_table
from toolkit.report.page import PAGE, write_page
from toolkit.report.pictured import PICTURES, pictured_table, write_pictures
from toolkit.report.plot import plot_losses, plot_rewards
from toolkit.report.summary import Summary, duration, size, summarize
from toolkit.run.artifacts import Artifact, Cost, write_text
from toolkit.run.facts import ReportFacts

_LONGEST_ANSWER = 600


def write_report(recipe: Recipe, artifacts: dict[str, Artifact[Any]], out: Path) -> ReportFacts:
    """Write report.md, certificate.html, model_card.md and (where something was trained here) loss.png
    and rewards.png into `out`; of a model that sees also pictures.html, and its pictures in small.

    Args:
        artifacts: every stage before `report`.
    """
    summary = summarize(recipe, artifacts)
    adapter = artifacts["train"]
    validation = (adapter.facts.validation_loss_before, adapter.facts.validation_loss_after)
    metrics = adapter.folder / "metrics.jsonl"
    drawn = {
        "Rewards over the steps": plot_rewards(metrics, out / "rewards.png") and "rewards.png",
        "Training loss over the steps": plot_losses(metrics, validation, out / "loss.png") and "loss.png",
    }
    seen = write_pictures(summary, out)
    write_text(out / "report.md", report_text(summary, {told: name for told, name in drawn.items() if name}, seen))
    write_page(summary.certificate, out)
    write_text(out / "model_card.md", card_text(recipe, adapter.facts, summary))
    return ReportFacts(verdict=summary.certificate["verdict"])


def print_last_screen(recipe: Recipe, artifacts: Mapping[str, Artifact[Any]]) -> None:
    """The last screen on standard output; its last line is the command to run."""
    Console(highlight=False).print(last_screen(recipe, artifacts), crop=False)


def last_screen(recipe: Recipe, artifacts: Mapping[str, Artifact[Any]]) -> RenderableType:
    """What a finished run shows, for a terminal."""
    summary = summarize(recipe, artifacts)
    parts: list[RenderableType] = [Rule(summary.name), _pairs(summary.trained + summary.losses)]
    for answer in summary.answers:
        parts += [Text(""), _answer_table(answer)]
    if summary.evaluation:
        parts += [Text(""), *evaluation_parts(summary.evaluation)]
    parts += [Text(""), certificate_table(summary.certificate)]
    parts += [Text(warning, style="yellow") for warning in summary.certificate.get("warnings", [])]
    parts += [Text(summary.served)] if summary.served else []
    parts += [Text(""), _side_by_side(files_table(summary), costs_table(summary))]
    if "report" in artifacts:
        folder = artifacts["report"].folder
        told = f"\nAll of it: {folder / 'report.md'}\nThe certificate, for a browser: {folder / PAGE}"
        told += f"\nThe pictures and the answers: {folder / PICTURES}" if summary.pictured else ""
        parts.append(Text(told, no_wrap=True, overflow="ignore"))
    parts.append(Text(""))
    parts += [Text(command, style="bold green", no_wrap=True, overflow="ignore") for command in summary.commands]
    return Group(*parts)


def _pairs(pairs: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for label, value in pairs:
        table.add_row(Text(label, style="bold"), Text(value))
    return table


def _answer_table(answer: Answer) -> Table:
    table = Table(title=Text(answer.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, expand=True)
    cells = {"before": _short(answer.before), "after": _after(answer.after, answer.ended)}
    cells |= {"served": _short(answer.served)} if answer.served else {}
    for name in cells:
        table.add_column(name, ratio=1)
    table.add_row(*map(Text, cells.values()))
    return table


def _side_by_side(left: Table, right: Table) -> Table:
    grid = Table.grid(padding=(0, 4))
    grid.add_row(left, right)
    return grid


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_ANSWER else text[:_LONGEST_ANSWER].rstrip() + " …"


def _after(text: str, ended: bool) -> str:
    return _short(text) if ended else f"{_short(text)} [cut at golden.max_new_tokens]"


def files_table(summary: Summary) -> Table:
    """The GGUF files and their sizes; the served one is starred."""
    table = Table("file", "size", box=box.SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for file in summary.files:
        table.add_row(f"{file.file_type}{' *' if file.name == summary.served_file else ''}", size(file.bytes))
    return table


def costs_table(summary: Summary) -> Table:
    """Time and peak memory of every stage; time of all, memory of the largest."""
    costs = [cost for _, cost in summary.costs]
    of_all = Cost(
        seconds=sum(cost.seconds for cost in costs),
        peak_memory_bytes=max(cost.peak_memory_bytes for cost in costs),
        peak_card_bytes=max(cost.peak_card_bytes for cost in costs),
    )
    shown = 4 if of_all.peak_card_bytes else 3
    table = Table(*("stage", "time", "peak memory", "of the card")[:shown], box=box.SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage, cost in summary.costs:
        table.add_row(*_cost_cells(stage, cost)[:shown])
    table.add_section()
    table.add_row(*_cost_cells("all", of_all)[:shown])
    return table


def _cost_cells(stage: str, cost: Cost) -> tuple[str, ...]:
    of_card = size(cost.peak_card_bytes) if cost.peak_card_bytes else ""
    return stage, duration(cost.seconds), size(cost.peak_memory_bytes), of_card


def report_text(summary: Summary, drawn: Mapping[str, str], seen: Sequence[str] = ()) -> str:
    """report.md: the same as the last screen.

    Args:
        drawn: pictures that lie beside it, what they show → file.
        seen: the pictures of `Summary.pictured` in small, a file for each.
    """
    parts = [f"# {summary.name}", markdown_table(("", ""), summary.trained + summary.losses)]
    parts += [f"![{told}]({name})" for told, name in drawn.items()]
    parts.append("## Answers before and after")
    for answer in summary.answers:
        parts.append(f"**{inline(answer.title)}**")
        parts.append(f"Before:\n\n{_quote(answer.before)}")
        parts.append(f"After:\n\n{_quote(_after(answer.after, answer.ended))}")
        parts += [f"Served, as an app is given it:\n\n{_quote(answer.served)}"] if answer.served else []
    if seen:
        parts += [
            "## What it sees",
            pictured_table(summary.pictured, seen),
            f"The same, larger: [{PICTURES}]({PICTURES}).",
        ]
    if summary.evaluation:
        parts += ["## Did it help, did it forget?", *evaluation_lines(summary.evaluation)]
        parts.append(markdown_table(*evaluation_cells(summary.evaluation)))
    parts += ["## Certificate", f"**{summary.certificate['verdict']}**: {inline(summary.certificate['message'])}."]
    parts.append(_as_markdown(certificate_table(summary.certificate)))
    parts += [f"- {inline(warning)}" for warning in summary.certificate.get("warnings", [])]
    parts += [summary.served] if summary.served else []
    parts += [
        f"A star marks the file that is served. The whole certificate, for people: [{PAGE}]({PAGE}); for machines: "
        "`certificate.json` in the verify folder."
    ]
    parts += ["## Files", _as_markdown(files_table(summary))]
    parts += ["## Time and memory", _as_markdown(costs_table(summary))]
    parts += ["## Run it", "```\n" + "\n".join(summary.commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _as_markdown(table: Table) -> str:
    # Whoever makes the table for the screen makes it for the page too, so they cannot differ.
    table.title, table.box = None, box.MARKDOWN
    for column in table.columns:
        column.no_wrap = True
    target = io.StringIO()
    Console(file=target, width=1000, color_system=None).print(table)
    head, rule, *rows = [line for line in target.getvalue().splitlines() if line.strip()]
    # A total stands under a rule on the screen; a Markdown table has only the one under its head.
    return "\n".join([head, rule, *(row for row in rows if set(row) - set("|- "))])


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" if line.strip() else ">" for line in text.splitlines()) or "> (nothing)"
