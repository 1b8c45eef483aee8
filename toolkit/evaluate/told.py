"""What the figures say, in plain words: did it help, did it forget, does the export keep it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from toolkit.evaluate.names import BASE, SERVED, TUNED

Told = dict[str, Any]
"""A figure as evaluation.json holds it; see `toolkit.evaluate.figure`."""
Helped = Literal["helped", "harmed", "mixed", "undecided", "unknown"]
Forgot = Literal["forgot", "nothing seen", "unknown"]
A_LITTLE = 0.1
"""Of a loss in nats a token: ten per cent more perplexity."""


def verdict_of(figures: list[Told], subject: str = TUNED) -> Helped:
    """helped, harmed, mixed or undecided; "unknown" where nothing was measured against a base.

    One figure that is surely better, and none that is surely worse, is a help; nothing is balanced against each other.
    """
    verdicts = [change["verdict"] for figure in _of(figures, "help") if (change := _change(figure, subject))]
    if not verdicts:
        return "unknown"
    better, worse = "better" in verdicts, "worse" in verdicts or "broken" in verdicts
    if better and worse:
        return "mixed"
    return "helped" if better else "harmed" if worse else "undecided"


def forgot_of(figures: list[Told], subject: str = TUNED) -> Forgot:
    """forgot, nothing seen, or unknown where it was not measured."""
    verdicts = [change["verdict"] for figure in _of(figures, "forgetting") if (change := _change(figure, subject))]
    if not verdicts:
        return "unknown"
    return "forgot" if "worse" in verdicts or "broken" in verdicts else "nothing seen"


def sentences(figures: list[Told], export: str, subject: str = TUNED) -> list[str]:
    """The whole, a sentence a question.

    Args:
        export: the file type that is served; empty: none is.
        subject: who is compared with the base.
    """
    found = [_helped(figures, subject), _forgot(figures, subject), _keeps(figures, export)]
    return [sentence for sentence in found if sentence]


def _helped(figures: list[Told], subject: str) -> str:
    verdict = verdict_of(figures, subject)
    if verdict == "unknown":
        return ""
    told: dict[str, list[str]] = {name: [] for name in ("better", "worse", "broken", "undecided", "too few")}
    open_ones = []
    for figure in _of(figures, "help"):
        change = _change(figure, subject)
        if change:
            told[change["verdict"]].append(_moved(figure, subject, change))
            if change["verdict"] in ("undecided", "too few"):
                open_ones.append((figure, change))
    if verdict == "undecided":
        few = all(change["verdict"] == "too few" for _, change in open_ones)
        why = "too few rows are held out" if few else "the held-out rows do not decide"
        return f"Whether it helped is open: {why}: {'; '.join(told['undecided'] + told['too few'])}. {_more(open_ones)}"
    good, bad = "; ".join(told["better"]), "; ".join(told["worse"] + told["broken"])
    if verdict == "mixed":
        return f"Helped in part: better is {good}; worse is {bad}."
    if verdict == "harmed":
        return f"Did not help, it did harm: {bad}."
    return f"Helped: {good}."


def _more(open_ones: list[tuple[Told, Told]]) -> str:
    """How many rows would decide, of the figure that needs fewest."""
    needed = [(change["rows_needed"], figure) for figure, change in open_ones if change["rows_needed"]]
    if not needed:
        return "The differences are so small that no number of rows worth having would decide."
    rows, figure = min(needed, key=lambda one: int(one[0]))
    return f"About {rows:,} held-out rows would decide (by {figure['name']}; {figure['rows']} are there)."


def _forgot(figures: list[Told], subject: str) -> str:
    parts, worse, broken, little = [], False, False, True
    for figure in _of(figures, "forgetting"):
        change = _change(figure, subject)
        if change is None:
            continue
        parts.append(_moved(figure, subject, change))
        if change["verdict"] in ("worse", "broken"):
            worse, broken = True, broken or change["verdict"] == "broken"
            little = little and figure["unit"] != "share" and not broken and (change["value"] or 0) <= A_LITTLE
    if not parts:
        return ""
    told = "; ".join(parts)
    if worse:
        return f"{'Forgot a little' if little else 'Forgot'}: {told}."
    return f"Forgot nothing that this can see: {told}."


def _keeps(figures: list[Told], export: str) -> str:
    """Of the figure that says most of those that improved."""
    for figure in _of(figures, "help"):
        found = figure["subjects"].get(export) or {}
        share = found.get("kept")
        tuned = _change(figure, TUNED)
        if share and tuned and tuned["verdict"] == "better":
            return f"{export}, which is served, keeps {_percent(share)} of it ({figure['name']})."
    for figure in _of(figures, "help") + _of(figures, "forgetting"):
        change = (figure["subjects"].get(export) or {}).get("from_tuned")
        if change and change["value"] is not None:
            return f"{export}, which is served, differs from the tuned model by {_signed(change, figure)} ({figure['name']})."
    return ""


def _percent(share: Told) -> str:
    value, low, high = (round(100 * share[key]) for key in ("value", "low", "high"))
    return f"{value} % [{low}, {high}]"


def _of(figures: list[Told], about: str) -> list[Told]:
    return [figure for figure in figures if figure["about"] == about]


def _change(figure: Told, subject: str) -> Told | None:
    found: Told | None = (figure["subjects"].get(subject) or {}).get("from_base")
    return found


def _moved(figure: Told, subject: str, change: Told) -> str:
    """A figure before and after, with the difference and its interval."""
    before, after = figure["subjects"][BASE], figure["subjects"][subject]
    if change["verdict"] == "broken":
        return f"{figure['name']} is no number any more: the model is broken"
    return f"{figure['name']} {number(before, figure)} → {number(after, figure)} ({_signed(change, figure)})"


def number(of: Mapping[str, Any], figure: Told) -> str:
    """A value for people: shares in per cent, losses with three places."""
    value = of["value"]
    if value is None:
        return "no number"
    return f"{100 * value:.0f} %" if figure["unit"] == "share" else f"{value:.3f}"


def with_interval(of: Mapping[str, Any], figure: Told) -> str:
    """A value and its interval, for a table."""
    if of["value"] is None:
        return "no number"
    if of["low"] is None or of["high"] is None:
        return number(of, figure)
    low, high = (number({"value": of[end]}, figure).removesuffix(" %") for end in ("low", "high"))
    return f"{number(of, figure)} [{low}, {high}]"


def _signed(change: Told, figure: Told) -> str:
    scale, unit = (100, " points") if figure["unit"] == "share" else (1, "")
    places = 0 if scale == 100 else 3
    value = f"{scale * change['value']:+.{places}f}"
    if change["low"] is None or change["high"] is None:
        return f"{value}{unit}"
    return f"{value}{unit}, between {scale * change['low']:+.{places}f} and {scale * change['high']:+.{places}f}"


def subjects_of(figures: list[Told]) -> list[str]:
    """Everybody who has a figure, as a table has them: base, tuned, exports, served."""
    names = list(dict.fromkeys(name for figure in figures for name in figure["subjects"]))
    return sorted(names, key=lambda name: {BASE: 0, TUNED: 1, SERVED: 3}.get(name, 2))
