"""What the certificate's page draws: strength on a line, strength of every layer, KL along an answer. Numbers, no HTML.

A certificate may come from anywhere, and details have no fixed schema: whatever is not as expected is left out, not guessed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.parity.certificate import Check, CheckVerdict, Measure, Subject, apart

COLDEST, HOTTEST = 1e-5, 1.0
"""Ends of the colour scale, in nats: what rounding to 16 bits costs, and a whole nat."""
FURTHEST = 2.0
"""Right end of the line of strengths: an adapter that was applied twice."""
LAYER_ROOM = 0.1
"""A layer is marked when its strength is surely farther from 1 than this."""


@dataclass(frozen=True)
class Strip:
    """A strength on the line from 0 (lost) to 2 (twice). Places are percentages of the line's length."""

    subject: str
    source: str
    """weights or answers."""
    told: str
    verdict: CheckVerdict
    place: float
    low: float
    high: float
    band: tuple[float, float] | None
    """Where it is accepted; None when no limits are known."""


@dataclass(frozen=True)
class Bar:
    """A layer: how high its bar is, in percent of the picture."""

    layer: str
    told: str
    height: float
    marked: bool


@dataclass(frozen=True)
class Layers:
    """A bar per layer."""

    caption: str
    bars: list[Bar]
    line: float | None
    """Where 1 is, in percent of the height; None where there is no right value."""


@dataclass(frozen=True)
class Token:
    """A token of a golden answer."""

    text: str
    told: str
    heat: float
    """0 (cold) … 1 (hot), on a logarithmic scale."""
    flip: str | None
    """What the export would have said here; None: the same."""


@dataclass(frozen=True)
class HeatMap:
    """The KL along one golden."""

    number: int
    prompt: str
    tokens: list[Token]
    told: str


class _Golden(BaseModel):
    model_config = ConfigDict(extra="ignore")

    golden: int
    prompt: str
    tokens: list[str]
    kl: list[float]
    flips: dict[int, str] = {}
    left_out: int = 0


def find(subject: Subject, name: str) -> Check | None:
    """A subject's check by its name."""
    return next((check for check in subject.checks if check.name == name), None)


def measure(check: Check | None, name: str) -> Measure | None:
    """A check's measure by its name."""
    return next((m for m in check.measures if m.name == name), None) if check else None


def number(value: float | None, digits: int = 4) -> str:
    """A number for people, of four digits: 20, 0.9954, 4.172e-5."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.{digits - 4}f}"
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e")


def value_told(found: Measure) -> str:
    """A measure's value, with digits enough to tell it from its limit."""
    return apart(found.value, found.limit, number, 4)[0]


def limit_told(found: Measure) -> str:
    """A limit with the side on which a measure passes, where its verdict shows that: '≤ 0.015', '≥ 0.94'."""
    if found.limit is None:
        return ""
    told = apart(found.value, found.limit, number, 4)[1]
    if found.verdict not in ("pass", "fail") or math.isnan(found.value) or found.value == found.limit:
        return told
    return f"{'≤' if (found.value < found.limit) == (found.verdict == 'pass') else '≥'} {told}"


def strips(subjects: list[Subject]) -> list[Strip]:
    """Every strength that was measured, in the order of the chain."""
    found = []
    for subject in subjects:
        found += [_weights_strip(subject, check) for check in subject.checks if check.name == "weights"]
        found += [_answers_strip(subject, check) for check in subject.checks if check.name == "strength"]
    return [strip for strip in found if strip is not None]


def _weights_strip(subject: Subject, check: Check) -> Strip | None:
    value, error = measure(check, "strength in the weights"), measure(check, "its error")
    if value is None or error is None or math.isnan(value.value):
        return None
    # The check tells the limit of one side; the other is as far from 1.
    band = (1 - abs(1 - value.limit), 1 + abs(1 - value.limit)) if value.limit is not None else None
    low, high = value.value - error.value, value.value + error.value
    told = f"{value.value:.3f} ± {error.value:.3f}"
    return _strip(subject, "weights", told, check.verdict, (value.value, low, high), band)


def _answers_strip(subject: Subject, check: Check) -> Strip | None:
    value, low, high = (measure(check, name) for name in ("strength", "strength low", "strength high"))
    if value is None or low is None or high is None:
        return None
    band = (low.limit, high.limit) if low.limit is not None and high.limit is not None else None
    told = f"{value.value:.3f} [{low.value:.3f}, {high.value:.3f}]"
    return _strip(subject, "answers", told, check.verdict, (value.value, low.value, high.value), band)


def _strip(
    subject: Subject, source: str, told: str, verdict: CheckVerdict, values: tuple[float, float, float],
    band: tuple[float, float] | None,
) -> Strip:  # fmt: skip
    place, low, high = (_place(value) for value in values)
    return Strip(
        subject.name, source, told, verdict, place, low, high, (_place(band[0]), _place(band[1])) if band else None
    )


def _place(value: float) -> float:
    return round(min(max(value / FURTHEST, 0.0), 1.0) * 100, 2) if math.isfinite(value) else 0.0


def layers(subject: Subject) -> Layers | None:
    """A bar per layer: strength in the weights, or (of an adapter) how far it moved."""
    check = find(subject, "weights") or find(subject, "moved")
    rows = check.details.get("layers") if check else None
    if not isinstance(rows, dict) or not rows or check is None:
        return None
    bars = []
    if check.name == "weights":
        for layer, row in rows.items():
            if not isinstance(row, dict) or not _numbers(row.get("strength"), row.get("error")):
                return None
            strength, error = float(row["strength"]), 2 * float(row["error"])
            off = strength + error < 1 - LAYER_ROOM or strength - error > 1 + LAYER_ROOM
            told = f"layer {layer}: {strength:.3f} ± {error:.3f}"
            bars.append(Bar(str(layer), told, _place(strength), off))
        return Layers("Strength of the adapter in each layer's weights", bars, _place(1.0))
    if not _numbers(*rows.values()):
        return None
    largest = max(rows.values()) or 1.0
    for layer, norm in rows.items():
        bars.append(
            Bar(str(layer), f"layer {layer}: {norm:.3g}", round(norm / largest * 100, 2), norm < largest / 1000)
        )
    return Layers("How far training moved each layer, beside the layer that moved most", bars, None)


def _numbers(*values: Any) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def heat_maps(subject: Subject) -> list[HeatMap]:
    """The KL along the goldens that the check `logits` keeps."""
    check = find(subject, "logits")
    rows = check.details.get("heat") if check else None
    maps = []
    for row in rows if isinstance(rows, list) else []:
        try:
            golden = _Golden.model_validate(row)
        except ValidationError:
            continue
        if len(golden.tokens) == len(golden.kl) > 0:
            maps.append(_heat_map(golden))
    return maps


def _heat_map(golden: _Golden) -> HeatMap:
    tokens = []
    for i, (text, kl) in enumerate(zip(golden.tokens, golden.kl)):
        flip = golden.flips.get(i)
        told = f"KL {number(kl)} nats" + (f"; the export would have said {flip!r}" if flip is not None else "")
        tokens.append(Token(_shown(text), told, _heat(kl), None if flip is None else _shown(flip)))
    highest = max(range(len(golden.kl)), key=golden.kl.__getitem__)
    count = len(golden.tokens)
    flips = sum(token.flip is not None for token in tokens)
    told = (
        f"{count} tokens, mean KL {number(sum(golden.kl) / count)} nats, highest {number(golden.kl[highest])} at "
        f"“{tokens[highest].text.strip()}”, {flips} {'token differs' if flips == 1 else 'tokens differ'}"
    )
    if golden.left_out > 0:
        told += f"; {golden.left_out} further tokens are not shown"
    return HeatMap(golden.golden + 1, golden.prompt, tokens, told)


def _heat(kl: float) -> float:
    if not math.isfinite(kl):
        return 1.0
    share = (math.log10(max(kl, COLDEST)) - math.log10(COLDEST)) / (math.log10(HOTTEST) - math.log10(COLDEST))
    return round(min(share, 1.0), 3)


def _shown(text: str) -> str:
    """A token's text with what cannot be seen made visible."""
    return text.replace("\n", "⏎").replace("\t", "⇥") or "·"
