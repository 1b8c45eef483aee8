"""The certificate in the terminal: a row per subject, a column per check, the link to blame."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from toolkit.parity.certificate import worst

COLOURS = {"pass": "green", "inconclusive": "yellow", "fail": "red", "not compared": "dim"}


def certificate_table(certificate: dict[str, Any]) -> Table:
    """The certificate as one table: a row per subject, a column per check; the served file is starred.

    text: prompts and their tokens; adapter: its strength, 1 when it is there whole, once.
    """
    said = certificate["message"]
    title = f"Certificate: {certificate['verdict']}. {said[:1].upper()}{said[1:]}"
    table = Table(title=Text(title, style=COLOURS[certificate["verdict"]]), title_justify="left")
    columns = (
        "",
        "prompts",
        "tokens",
        "structure",
        "weights",
        "answers",
        "mean KL (limit)",
        "top-1",
        "stops",
        "verdict",
    )
    for column in columns:
        table.add_column(column)
    for subject in certificate["subjects"]:
        by_name = {check["name"]: check for check in subject["checks"]}
        name = f"{subject['name']}{' *' if subject['served'] else ''}"
        strength, logits = by_name.get("strength"), by_name.get("logits")
        cells = [_worst_cell(by_name, ("prompts", "tokens")), _cell(by_name.get("structure"))]
        cells += [_weights_cell(by_name.get("weights") or by_name.get("moved")), _strength_cell(strength)]
        cells += [_measure_cell(logits, "mean KL", "{:.1e}"), _top1_cell(logits), _cell(by_name.get("stops"))]
        table.add_row(name, *cells, Text(subject["verdict"], style=COLOURS[subject["verdict"]]))
    return table


def _worst_cell(by_name: dict[str, dict[str, Any]], checks: tuple[str, ...]) -> Text:
    verdicts = [by_name[check]["verdict"] for check in checks if check in by_name]
    return _cell({"verdict": worst(verdicts)} if verdicts else None)


def _weights_cell(check: dict[str, Any] | None) -> Text:
    value, error = _measure(check, "strength in the weights"), _measure(check, "its error")
    if check is None or value is None or error is None:
        return _cell(check)
    return Text(f"{value['value']:.3f} ± {error['value']:.3f}", style=COLOURS[check["verdict"]])


def _cell(check: dict[str, Any] | None) -> Text:
    return Text("-") if check is None else Text(check["verdict"], style=COLOURS[check["verdict"]])


def _measure(check: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    return next((m for m in check["measures"] if m["name"] == name), None) if check else None


def _measure_cell(check: dict[str, Any] | None, name: str, form: str) -> Text:
    found = _measure(check, name)
    if check is None or found is None:
        return _cell(check)
    return Text(f"{form.format(found['value'])} ({form.format(found['limit'])})", style=COLOURS[check["verdict"]])


def _strength_cell(check: dict[str, Any] | None) -> Text:
    value, low, high = (_measure(check, name) for name in ("strength", "strength low", "strength high"))
    if check is None or value is None or low is None or high is None:
        return _cell(check)
    return Text(f"{value['value']:.3f} [{low['value']:.3f}, {high['value']:.3f}]", style=COLOURS[check["verdict"]])


def _top1_cell(check: dict[str, Any] | None) -> Text:
    found = _measure(check, "top-1 agreement")
    if check is None or found is None:
        return _cell(check)
    return Text(f"{found['value']:.1%}", style=COLOURS[check["verdict"]])
