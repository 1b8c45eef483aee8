"""The certificate in the terminal: a row per subject, a column per check, the link to blame."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from toolkit.parity.certificate import apart, worst

COLOURS = {"pass": "green", "inconclusive": "yellow", "fail": "red", "not compared": "dim"}


def certificate_table(certificate: dict[str, Any]) -> Table:
    """The certificate as one table: a row per subject, a column per check; the served file is starred.

    text: prompts and their tokens; adapter: its strength in the weights and in the answers, 1 when it is there whole, once;
    ends: where answers stop, and where they may.
    """
    said = certificate["message"]
    title = f"Certificate: {certificate['verdict']}. {said[:1].upper()}{said[1:]}"
    table = Table(title=Text(title, style=COLOURS[certificate["verdict"]]), title_justify="left")
    for column in ("", "text", "structure", "adapter", "mean KL (limit)", "ends", "verdict"):
        table.add_column(column)
    for subject in certificate["subjects"]:
        by_name = {check["name"]: check for check in subject["checks"]}
        name = Text(f"{subject['name']}{' *' if subject['served'] else ''}")
        cells = [_worst_cell(by_name, ("prompts", "tokens")), _cell(by_name.get("structure")), _adapter_cell(by_name)]
        cells += [_kl_cell(by_name.get("logits") or by_name.get("answers")), _worst_cell(by_name, ("ends", "stops"))]
        table.add_row(name, *cells, Text(subject["verdict"], style=COLOURS[subject["verdict"]]))
    return table


def _worst_cell(by_name: dict[str, dict[str, Any]], checks: tuple[str, ...]) -> Text:
    verdicts = [by_name[check]["verdict"] for check in checks if check in by_name]
    return _cell({"verdict": worst(verdicts)} if verdicts else None)


def _adapter_cell(by_name: dict[str, dict[str, Any]]) -> Text:
    """Strength of the adapter: in the weights, then in the answers."""
    if "moved" in by_name:
        return _cell(by_name["moved"])
    lines = []
    for check, form in ((by_name.get("weights"), _in_weights), (by_name.get("strength"), _in_answers)):
        if check is not None:
            lines.append(Text(form(check) or check["verdict"], style=COLOURS[check["verdict"]]))
    return Text("\n").join(lines) if lines else Text("-")


def _in_weights(check: dict[str, Any]) -> str:
    value, error = _measure(check, "strength in the weights"), _measure(check, "its error")
    return f"{value['value']:.3f} ± {error['value']:.3f}" if value and error else ""


def _in_answers(check: dict[str, Any]) -> str:
    value, low, high = (_measure(check, name) for name in ("strength", "strength low", "strength high"))
    return f"{value['value']:.3f} [{low['value']:.3f}, {high['value']:.3f}]" if value and low and high else ""


def _cell(check: dict[str, Any] | None) -> Text:
    return Text("-") if check is None else Text(check["verdict"], style=COLOURS[check["verdict"]])


def _measure(check: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    # A value of null is no number, and is not shown.
    found = next((m for m in check["measures"] if m["name"] == name), None) if check else None
    return found if found and found["value"] is not None else None


def _kl_cell(check: dict[str, Any] | None) -> Text:
    found = _measure(check, "mean KL")
    if check is None or found is None:
        return _cell(check)
    value, limit = apart(found["value"], found["limit"], lambda number, digits: f"{number:.{digits}e}", 1)
    return Text(f"{value} ({limit})", style=COLOURS[check["verdict"]])
