"""The certificate: what was compared with what, how near it is, which link of the chain broke, and the verdict.

`certificate.json`, schema "tune2ollama.certificate/2" (docs/certificate.md tells every key):

    schema          "tune2ollama.certificate/2"; the number grows when a key changes its meaning or goes away
    verdict         pass | fail | inconclusive
    message         the verdict in one sentence
    blame           null, or the first link that broke: {link, where, check, measure, value, limit, message}
    chain           the links in their order, each {link, verdict, where, message}; see `LINKS`
    served_file     name of the GGUF file that the verdict lets go to Ollama
    warnings        a line each: other files that fail (they are made, and must not be used); what a check warns of
    reference       what everything was compared with: goldens, positions, forward, precision
    subjects        what was judged, in the order of the chain; each {name, kind, file, file_type, counts, served, made_from,
                    relaxed, verdict, seconds, checks}. counts: "everything", "ancestor" or "text only", see `counts`
      checks        each {name, verdict, message, measures, details, suspect}; verdict as above, or "not compared"
        measures    each {name, value, low, high, unit, limit, floor, verdict}; all but name and value may be null; low and high:
                    what it may be for all texts, where it was taken over some; verdict null: told, not judged
    files           path → {sha256, bytes} of every file that was compared
    versions        package → version
    made            date and time, UTC
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, field_serializer, field_validator

SCHEMA = "tune2ollama.certificate/2"

Verdict = Literal["pass", "fail", "inconclusive"]
CheckVerdict = Literal["pass", "fail", "inconclusive", "not compared"]
"""not compared: there was nothing to compare, which is said, and proves nothing either way."""
Kind = Literal["adapter", "merged", "projector", "converted", "quantized", "served"]
EXPORTS: tuple[Kind, ...] = ("merged", "converted", "quantized", "served")
"""What an adapter became. Without one of these nothing was compared: an adapter alone is only looked at."""
LinkName = Literal[
    "training",
    "template",
    "tokenizer",
    "structure",
    "picture",
    "merge",
    "projector",
    "conversion",
    "quantization",
    "server prompt",
    "server answers",
    "defaults",
]
LINKS: tuple[LinkName, ...] = get_args(LinkName)
"""The chain, in the order in which blame is laid: whoever breaks an early link breaks the later ones with it."""
OF_PICTURES: tuple[LinkName, ...] = ("picture", "projector")
"""Links of models that see; the chain of others does not have them."""
Suspect = Literal["", "merge", "conversion"]
_WORSE = {"not compared": -1, "pass": 0, "inconclusive": 1, "fail": 2}
_BY_CHECK: dict[str, LinkName] = {
    "prompts": "template",
    "tokens": "tokenizer",
    "ends": "tokenizer",
    "structure": "structure",
    "picture": "picture",
}
_BY_KIND: dict[Kind, LinkName] = {
    "adapter": "training", "merged": "merge", "projector": "projector", "converted": "conversion",
    "quantized": "quantization", "served": "server answers",
}  # fmt: skip
_ORDER: tuple[Kind, ...] = get_args(Kind)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def finite(value: Any) -> Any:
    """A value of JSON with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Measure(_Part):
    """One number beside its limit and its noise floor."""

    name: str
    value: float
    """null in JSON, which has no other way to say that it is no number."""
    low: float | None = None
    """What the value may be for all texts, where it was taken over some; see `toolkit.parity.sample`."""
    high: float | None = None
    unit: str = ""
    limit: float | None = None
    floor: float | None = None
    """What an export that is known to be right was measured at."""
    verdict: Verdict | None = None

    @field_validator("low", "high")
    @classmethod
    def _unknown_is_null(cls, value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    @field_validator("value", mode="before")
    @classmethod
    def _null_is_no_number(cls, value: Any) -> Any:
        return math.nan if value is None else value

    @field_serializer("value")
    def _no_number_is_null(self, value: float) -> float | None:
        return value if math.isfinite(value) else None

    def told(self) -> str:
        """'mean KL 0.4 nats (limit 0.1)', with as many digits as tell the two apart; where it is open, with what it may be."""
        value, limit = apart(self.value, self.limit, lambda number, digits: f"{number:.{digits}g}", 4)
        told = f" (limit {limit})" if self.limit is not None else ""
        if self.verdict == "inconclusive" and self.low is not None:
            value += f" [{self.low:.4g}, {'any' if self.high is None else f'{self.high:.4g}'}]"
        return f"{self.name} {value}{' ' if self.unit else ''}{self.unit}{told}"


def apart(value: float, other: float | None, form: Callable[[float, int], str], digits: int) -> tuple[str, str]:
    """Two numbers as text, of so many digits, or of as many more as it takes for what differs to look different.

    Args:
        other: None gives an empty text.
        form: a number and how many digits → its text.
    """
    if other is None:
        return form(value, digits), ""
    for more in range(digits, 18):
        first, second = form(value, more), form(other, more)
        if first != second or value == other:
            break
    return first, second


def within(value: float, low: float, high: float, band: tuple[float, float]) -> str:
    """'1.004 [0.998, 1.010], wanted within [0.95, 1.05]': an end that is beyond the band never looks like it."""

    def shown(number: float, digits: int) -> str:
        return f"{number:.{digits}f}"

    ends = [apart(end, limit, shown, 3)[0] for end, limit in zip((low, high), band, strict=True)]
    return f"{value:.3f} [{ends[0]}, {ends[1]}], wanted within [{band[0]:g}, {band[1]:g}]"


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
    """One question about one subject."""

    name: str
    """moved, forward, ends, prompts, tokens, structure, picture, weights, vision, projector, source, strength, logits, stops,
    answers, defaults."""
    verdict: CheckVerdict
    message: str
    measures: list[Measure] = []
    details: dict[str, Any] = {}
    suspect: Suspect = ""
    """The earlier link that makes such a fault, where the check can tell; it is blamed unless its own product is right."""

    @field_serializer("details")
    def _no_numbers_are_null(self, details: dict[str, Any]) -> Any:
        return finite(details)

    @classmethod
    def of(
        cls,
        name: str,
        measures: list[Measure],
        message: str,
        details: dict[str, Any] | None = None,
        suspect: Suspect = "",
    ) -> Check:
        """A check that is as good as its worst measure."""
        verdict = worst([m.verdict for m in measures if m.verdict is not None])
        return cls(
            name=name, verdict=verdict, message=message, measures=measures, details=details or {}, suspect=suspect
        )


class Subject(_Part):
    """A file, a folder or a served model, compared with the tuned model."""

    name: str
    kind: Kind
    file: str
    file_type: str
    counts: Literal["everything", "ancestor", "text only"]
    served: bool = False
    made_from: str = ""
    """Name of the subject that it was made from; empty where that is not known."""
    relaxed: str = ""
    """Why its limits are wider than the file type's own; empty when they are not."""
    checks: list[Check]
    seconds: float = 0.0

    @property
    def verdict(self) -> CheckVerdict:
        return worst([check.verdict for check in self.checks])

    def as_json(self) -> dict[str, Any]:
        """The subject as the certificate holds it."""
        return {**self.model_dump(), "verdict": self.verdict}


class Blame(_Part):
    """The first link that broke."""

    link: LinkName
    where: str
    """Name of the subject that shows it first."""
    check: str
    measure: str
    value: float | None
    limit: float | None
    message: str


class ChainLink(_Part):
    """One link of the chain, and how it did."""

    link: LinkName
    verdict: CheckVerdict
    where: str = ""
    message: str = ""


def worst(verdicts: Sequence[CheckVerdict]) -> CheckVerdict:
    """fail before inconclusive before pass before not compared."""
    return max(verdicts, key=_WORSE.__getitem__, default="pass")


def link_of(subject: Subject, check: Check, subjects: list[Subject]) -> LinkName:
    """The link that answers for a check."""
    if subject.kind == "served":
        own: dict[str, LinkName] = {"prompts": "server prompt", "tokens": "server prompt", "defaults": "defaults"}
        return own.get(check.name, "server answers")
    if subject.kind != "adapter" and check.name in _BY_CHECK:
        return _BY_CHECK[check.name]
    # What a merged folder shows came in no later than the merge.
    if check.suspect and subject.kind != "merged" and not _acquitted(subject, check, subjects):
        return check.suspect
    return _BY_KIND[subject.kind]


def _acquitted(subject: Subject, check: Check, subjects: list[Subject]) -> bool:
    """Whether something that the subject was made from passes the same check: then the fault came in after it."""
    by_name = {s.name: s for s in subjects if s is not subject}
    source = by_name.get(subject.made_from)
    if source is None or _ORDER.index(source.kind) >= _ORDER.index(subject.kind):
        return False
    passed = any(c.name == check.name and c.verdict == "pass" for c in source.checks)
    return passed or _acquitted(source, check, subjects)


def chain_of(subjects: list[Subject]) -> list[ChainLink]:
    """Every link with the worst that counts against it."""
    found: dict[LinkName, ChainLink] = {}
    for subject in sorted(subjects, key=lambda s: _ORDER.index(s.kind)):
        for check in subject.checks:
            if not counts(subject, check):
                continue
            link = link_of(subject, check, subjects)
            before = found.get(link)
            if before is None or _WORSE[check.verdict] > _WORSE[before.verdict]:
                found[link] = ChainLink(link=link, verdict=check.verdict, where=subject.name, message=check.message)
            if check.name == "weights" and check.verdict == "pass":
                # A file that was made straight from base and adapter answers for the merge itself.
                whole = ChainLink(link="merge", verdict="pass", where=subject.name, message=check.message)
                found.setdefault("merge", whole)
    links = LINKS if any(s.kind == "projector" for s in subjects) else [n for n in LINKS if n not in OF_PICTURES]
    return [found.get(link, ChainLink(link=link, verdict="not compared")) for link in links]


def blame_of(subjects: list[Subject]) -> Blame | None:
    """The first broken link of the chain; None when none broke."""
    broken = next((link for link in chain_of(subjects) if link.verdict == "fail"), None)
    if broken is None:
        return None
    check = next(
        check
        for subject in sorted(subjects, key=lambda s: _ORDER.index(s.kind))
        for check in subject.checks
        if check.verdict == "fail" and subject.name == broken.where and link_of(subject, check, subjects) == broken.link
        and counts(subject, check)
    )  # fmt: skip
    measure = next((m for m in check.measures if m.verdict == "fail"), None)
    return Blame(
        link=broken.link, where=broken.where, check=check.name, message=check.message,
        measure=measure.name if measure else "", value=measure.value if measure and math.isfinite(measure.value) else None,
        limit=measure.limit if measure else None,
    )  # fmt: skip


def certificate_text(certificate: dict[str, Any]) -> str:
    """`certificate.json`.

    Raises:
        ValueError: NaN or infinity is in it, which JSON does not have.
    """
    return json.dumps(certificate, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def verdict_of(subjects: list[Subject]) -> tuple[Verdict, str, list[str]]:
    """The certificate's verdict, why, and warnings about files that it is not about."""
    chain = chain_of(subjects)
    warnings = [
        f"{subject.name}: {check.name} {_said(check.verdict)}: {check.message}"
        for subject in subjects
        for check in subject.checks
        if check.verdict in ("fail", "inconclusive") and not counts(subject, check)
    ]
    warnings += [
        f"{subject.name}: {warned}"
        for subject in subjects
        for check in subject.checks
        for warned in check.details.get("warned", [])
    ]
    found = {link.verdict for link in chain}
    verdict: Verdict = "fail" if "fail" in found else "inconclusive" if "inconclusive" in found else "pass"
    if verdict == "pass" and not any(subject.kind in EXPORTS for subject in subjects):
        return "inconclusive", "nothing was compared with what was trained", warnings
    if verdict == "pass":
        asked = any(subject.kind == "served" for subject in subjects)
        what = "what is served is what was trained" if asked else "the export is what was trained"
        return verdict, what, warnings
    link = next(link for link in chain if link.verdict == verdict)
    what = "broke" if verdict == "fail" else "is not proved"
    return verdict, f"{link.link} {what}, seen in {link.where}: {link.message}", warnings


def counts(subject: Subject, check: Check) -> bool:
    """Whether a check is about what is served:

    - of the served file, the adapter, the merged folder and the server: every check;
    - of the converted file that the served one was quantized from ("ancestor"): a failing check, since its limits are the
      tightest and what is broken there is broken in all that is made from it;
    - of every other quantization ("text only"): prompts, tokens, ends and structure, since those are copied, not quantized.
    A failing check anywhere else does not stop the served file, but is listed as a warning.
    """
    if subject.counts == "everything" or check.name in ("tokens", "ends", "prompts", "structure"):
        return True
    return subject.counts == "ancestor" and check.verdict != "inconclusive"


def _said(verdict: CheckVerdict) -> str:
    return "fails" if verdict == "fail" else "is inconclusive"
