"""The certificate: what was compared with what, how near it is, and the verdict.

`certificate.json`, schema "tune2ollama.certificate/1":

    schema          "tune2ollama.certificate/1"; the number grows when a key changes its meaning or goes away
    verdict         pass | fail | inconclusive
    message         the verdict in one sentence
    served_file     name of the GGUF file that the verdict lets go to Ollama
    warnings        other files that fail, a line each: they are made, and must not be used
    reference       what every link was compared with: goldens, positions, forward, precision
    links           in the order of the chain; each {name, kind, file, file_type, counts, served, relaxed, verdict, seconds,
                    checks}. counts: "everything", "ancestor" or "text only", see `verdict_of`
      checks        each {name, verdict, message, measures, details}
        measures    each {name, value, unit, limit, floor, verdict}; limit and floor may be null; verdict null: told, not judged
    files           path → {sha256, bytes} of every file that was compared
    versions        package → version
    made            date and time, UTC
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich.table import Table
from rich.text import Text

SCHEMA = "tune2ollama.certificate/1"

Verdict = Literal["pass", "fail", "inconclusive"]
_WORSE = {"pass": 0, "inconclusive": 1, "fail": 2}
_COLOURS = {"pass": "green", "inconclusive": "yellow", "fail": "red"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measure(_Part):
    """One number beside its limit and its noise floor."""

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    floor: float | None = None
    """What an export that is known to be right was measured at."""
    verdict: Verdict | None = None

    def told(self) -> str:
        """'mean KL 0.4 nats (limit 0.1)'."""
        limit = "" if self.limit is None else f" (limit {self.limit:.4g})"
        return f"{self.name} {self.value:.4g}{' ' if self.unit else ''}{self.unit}{limit}"


def lower_is_better(name: str, value: float, limit: float, floor: float | None = None, unit: str = "") -> Measure:
    """A measure that passes at or below its limit. NaN fails."""
    return Measure(
        name=name, value=value, unit=unit, limit=limit, floor=floor, verdict="pass" if value <= limit else "fail"
    )


def higher_is_better(name: str, value: float, limit: float, floor: float | None = None, unit: str = "") -> Measure:
    """A measure that passes at or above its limit. NaN fails."""
    return Measure(
        name=name, value=value, unit=unit, limit=limit, floor=floor, verdict="pass" if value >= limit else "fail"
    )


class Check(_Part):
    """One question about one link."""

    name: str
    """tokens, prompts, logits, strength, stops."""
    verdict: Verdict
    message: str
    measures: list[Measure] = []
    details: dict[str, Any] = {}

    @classmethod
    def of(cls, name: str, measures: list[Measure], message: str, details: dict[str, Any] | None = None) -> Check:
        """A check that is as good as its worst measure."""
        verdict = worst([m.verdict for m in measures if m.verdict is not None])
        return cls(name=name, verdict=verdict, message=message, measures=measures, details=details or {})


class Link(_Part):
    """One step of the way from the tuned model to what is served, compared with the tuned model."""

    name: str
    kind: Literal["merged", "converted", "quantized"]
    file: str
    file_type: str
    counts: Literal["everything", "ancestor", "text only"]
    served: bool
    relaxed: str = ""
    """Why its limits are wider than the file type's own; empty when they are not."""
    checks: list[Check]
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        return worst([check.verdict for check in self.checks])

    def as_json(self) -> dict[str, Any]:
        """The link as the certificate holds it."""
        return {**self.model_dump(), "verdict": self.verdict}


def worst(verdicts: list[Verdict]) -> Verdict:
    """fail before inconclusive before pass."""
    return max(verdicts, key=_WORSE.__getitem__, default="pass")


def verdict_of(links: list[Link]) -> tuple[Verdict, str, list[str]]:
    """The certificate's verdict, why, and warnings about files that it is not about.

    The verdict is about the served file, so what counts is:
    - the served file and the merged folder: every check;
    - the converted file that the served one was quantized from ("ancestor"): a failing check, since its limits are the
      tightest and what is broken there is broken in all that is made from it;
    - every other quantization ("text only"): its tokens and prompts checks, since those are copied, not quantized.
    A failing check anywhere else does not stop the served file, but is listed as a warning.
    """
    verdicts: list[Verdict] = []
    reasons, warnings = [], []
    for link in links:
        for check in link.checks:
            if check.verdict == "pass":
                continue
            said = f"{link.name}: {check.name} {_said(check.verdict)}: {check.message}"
            if _counts(link, check):
                verdicts.append(check.verdict)
                reasons.append((_WORSE[check.verdict], said))
            else:
                warnings.append(said)
    verdict = worst(verdicts)
    if verdict == "pass":
        return verdict, "what is served is what was trained", warnings
    # The first link of the chain that broke is the one to blame.
    return verdict, next(said for rank, said in reasons if rank == _WORSE[verdict]), warnings


def _counts(link: Link, check: Check) -> bool:
    if link.counts == "everything" or check.name in ("tokens", "prompts"):
        return True
    return link.counts == "ancestor" and check.verdict == "fail"


def _said(verdict: Verdict) -> str:
    return {"pass": "passes", "fail": "fails", "inconclusive": "is inconclusive"}[verdict]


def certificate_table(certificate: dict[str, Any]) -> Table:
    """The certificate as one table: a row per link, a column per check; the served file is starred."""
    checks = ("prompts", "tokens", "stops", "strength", "logits")
    said = certificate["message"]
    title = f"Certificate: {certificate['verdict']}. {said[:1].upper()}{said[1:]}"
    table = Table(title=Text(title, style=_COLOURS[certificate["verdict"]]), title_justify="left")
    for column in ("link", *checks[:3], "adapter strength", "mean KL (limit)", "top-1", "verdict"):
        table.add_column(column)
    for link in certificate["links"]:
        by_name = {check["name"]: check for check in link["checks"]}
        name = f"{link['name']}{' *' if link['served'] else ''}"
        cells = [_cell(by_name.get(check)) for check in checks[:3]]
        strength, logits = by_name.get("strength"), by_name.get("logits")
        cells += [_strength_cell(strength), _measure_cell(logits, "mean KL", "{:.1e}"), _top1_cell(logits)]
        table.add_row(name, *cells, Text(link["verdict"], style=_COLOURS[link["verdict"]]))
    return table


def _cell(check: dict[str, Any] | None) -> Text:
    return Text("-") if check is None else Text(check["verdict"], style=_COLOURS[check["verdict"]])


def _measure(check: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    return next((m for m in check["measures"] if m["name"] == name), None) if check else None


def _measure_cell(check: dict[str, Any] | None, name: str, form: str) -> Text:
    found = _measure(check, name)
    if check is None or found is None:
        return _cell(check)
    return Text(f"{form.format(found['value'])} ({form.format(found['limit'])})", style=_COLOURS[check["verdict"]])


def _strength_cell(check: dict[str, Any] | None) -> Text:
    value, low, high = (_measure(check, name) for name in ("strength", "strength low", "strength high"))
    if check is None or value is None or low is None or high is None:
        return _cell(check)
    return Text(f"{value['value']:.3f} [{low['value']:.3f}, {high['value']:.3f}]", style=_COLOURS[check["verdict"]])


def _top1_cell(check: dict[str, Any] | None) -> Text:
    found = _measure(check, "top-1 agreement")
    if check is None or found is None:
        return _cell(check)
    return Text(f"{found['value']:.1%}", style=_COLOURS[check["verdict"]])
