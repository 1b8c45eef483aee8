"""How often is a certificate wrong by the chance of its prompts? `python -m tests.bench.odds [FOLDER] [--read]`.

Right exports, and exports with a tenth of the adapter missing, of every file type and of six families (`tests.bench.odds_files`;
half an hour on two cores, kept in FOLDER). Every file is judged many times, each time on other prompts drawn from all that there
are: what the prompts of a certificate decide by chance is then counted. Two ways: as a file is judged whose weights can be read,
and by its answers alone. `--read`: judge what FOLDER holds already, and make nothing.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tests.bench.odds_files import DAMAGES, REAL, Reading, kept, make_all
from tests.bench.odds_models import FAMILIES
from toolkit.parity.certificate import CheckVerdict, worst
from toolkit.parity.checks.logits import Positions, logits_check
from toolkit.parity.checks.stops import ends_missed, least_endings
from toolkit.parity.checks.strength import strength_check
from toolkit.parity.limits import Limits, limits_for
from toolkit.parity.more import decide
from toolkit.recipe.schema import FILE_TYPES

SIZES = (4, 8, 16, 32)
DRAWS = 8
"""Certificates of each file at each number of prompts."""
FOUR_BITS = FILE_TYPES[: FILE_TYPES.index("Q3_K_L")]
RIGHT, DAMAGED = DAMAGES


@dataclass(frozen=True)
class Verdicts:
    """What one draw of prompts says of one file."""

    with_weights: CheckVerdict | None
    """None: its weights cannot be read."""
    alone: CheckVerdict
    positions: int
    failed: tuple[str, ...]
    """Measures that fail, of the answers."""


@dataclass(frozen=True)
class File:
    family: str
    kind: str
    damage: str
    name: str
    reading: Reading

    @property
    def limits(self) -> Limits:
        return limits_for(self.kind, self.reading.parameters, 0.0)[0]


def files(folder: Path) -> Iterator[File]:
    """Every file that was read."""
    for path in sorted((folder / "read").glob("*-*.npz")):
        family, _, damage, kind = path.stem.split("-", 3)
        yield File(family, kind, damage.replace("_", " "), path.stem, kept(path))


def part(positions: Positions, chosen: Iterable[int]) -> Positions:
    """The positions of some texts, numbered anew."""
    texts, wanted = np.array(positions.text), list(chosen)
    rows = [np.flatnonzero(texts == text) for text in wanted]
    index = np.concatenate(rows)
    number = {text: i for i, text in enumerate(wanted)}
    lists = {
        name: np.array(getattr(positions, name))[index].tolist()
        for name in ("kl", "kl_base", "margin", "loss_tuned", "loss_export", "together", "alone")
    }
    where = {int(old): new for new, old in enumerate(index)}
    flips = [(flip, where[at]) for flip, at in zip(positions.flips, positions.flipped) if at in where]
    return Positions(
        **lists, text=[i for i, found in enumerate(rows) for _ in found],
        flips=[flip._replace(golden=number[flip.golden]) for flip, _ in flips], flipped=[at for _, at in flips],
    )  # fmt: skip


def certificate(file: File, chosen: list[int]) -> Verdicts:
    """Judge a file on some prompts, as `toolkit.parity.subjects` does."""
    reading, limits = file.reading, file.limits
    own = part(reading.rounds[0], chosen)
    ends = _ends(reading, own, chosen, limits)
    found: dict[bool, CheckVerdict] = {}
    failed: set[str] = set()
    positions = 0
    for whole in {reading.whole, False}:
        checks = decide(
            lambda so_far, whole=whole: [strength_check(so_far, limits, whole), logits_check(so_far, limits)],  # type: ignore[misc]
            own, (part(more, chosen) for more in reading.rounds[1:]),
        )  # fmt: skip
        found[whole] = worst([*(check.verdict for check in checks), ends])
        positions = max(positions, *(int(check.details["positions"]) for check in checks))
        failed |= {m.name for check in checks for m in check.measures if m.verdict == "fail"}
    if ends == "fail":
        failed.add("ends")
    readable = reading.weights != "not compared"
    with_weights = worst([reading.weights, found[reading.whole]]) if readable else None  # type: ignore[list-item]
    return Verdicts(with_weights, found[False], positions, tuple(sorted(failed)))


def _ends(reading: Reading, own: Positions, chosen: list[int], limits: Limits) -> CheckVerdict:
    wanted = [number for number, text in enumerate(chosen) if reading.wanted[text]]
    last = Counter(own.text)
    missed = [
        flip.golden
        for flip in own.flips
        if flip.golden in wanted and flip.margin > limits.flip_margin and flip.position == last[flip.golden] - 1
    ]
    ended = sum(reading.ended[text] for text in chosen)
    verdict = ends_missed(missed, wanted).verdict or "pass"
    return "fail" if ended < least_endings(len(wanted), limits.stops) else verdict


def too_rough(file: File) -> bool:
    """Whether a right file is beyond a limit over all prompts: then it is the file type that fails, not the chance."""
    limits, own = file.limits, file.reading.rounds[0]
    values = {m.name: m for m in logits_check(own, replace(limits, floor=None)).measures}
    return any(
        values[name].value > (values[name].limit or math.inf) for name in ("mean KL", "p99 KL", "perplexity ratio")
    ) or values["top-1 agreement but for near ties"].value < (values["top-1 agreement but for near ties"].limit or 0)


def wilson(found: int, of: int) -> str:
    """A share with its 95 % interval, Wilson's; the rule of three where there is none."""
    if of == 0:
        return "-"
    if found == 0:
        return f"0 of {of} (at most {3 / of:.2%})"
    z, p = 1.96, found / of
    middle, wide = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return f"{found} of {of} ({p:.2%}; {(middle - wide) / (1 + z * z / of):.2%} to {(middle + wide) / (1 + z * z / of):.2%})"


def judge_all(folder: Path) -> list[tuple[File, int, Verdicts]]:
    """Every file, at every number of prompts, on prompts drawn anew each time."""
    random, found = np.random.default_rng(1), []
    for file in files(folder):
        pool = len(file.reading.wanted)
        for size in SIZES:
            for _ in range(DRAWS if size <= pool else 0):
                chosen = random.choice(pool, size, replace=False).tolist()
                found.append((file, size, certificate(file, chosen)))
    return found


def table(found: list[tuple[File, int, Verdicts]], way: str) -> None:
    """Shares of the verdicts, by number of prompts, and both errors."""
    judged = [(file, size, verdict) for file, size, v in found if (verdict := getattr(v, way)) is not None]
    print("| files | prompts | pass | inconclusive | fail |\n|---|---|---|---|---|")
    for damage in (RIGHT, DAMAGED):
        for name, kinds in (("4 bits and more", FOUR_BITS), ("fewer", FILE_TYPES[len(FOUR_BITS) :])):
            for size in SIZES:
                counted = Counter(
                    v for file, n, v in judged if (file.damage, n) == (damage, size) and file.kind in kinds
                )
                total = sum(counted.values())
                cells = (
                    " | ".join(f"{counted[v] / total:.1%}" for v in ("pass", "inconclusive", "fail"))
                    if total
                    else "| | "
                )
                print(f"| {damage}, {name} | {size} | {cells} |")
    for damage, wrong, said in ((RIGHT, "fail", "right, and fails"), (DAMAGED, "pass", "a tenth missing, and passes")):
        of = [(file, verdict) for file, _, verdict in judged if file.damage == damage]
        names = {file.name for file, verdict in of if verdict == wrong}
        print(
            f"\n{said}: {wilson(sum(verdict == wrong for _, verdict in of), len(of))} certificates, "
            f"{len(names)} of {len({file.name for file, _ in of})} files {', '.join(sorted(names)[:12])}"
        )


def main() -> None:
    folder = Path(next((a for a in sys.argv[1:] if not a.startswith("--")), "runs/.odds"))
    if "--read" not in sys.argv:
        make_all(folder, [*FAMILIES, REAL])
    found = judge_all(folder)
    rough = {
        file.name for file in {f.name: f for f, _, _ in found}.values() if file.damage == RIGHT and too_rough(file)
    }
    print(
        f"{len({f.name for f, _, _ in found})} files; right but beyond a limit over all prompts, and left out: {sorted(rough)}"
    )
    found = [row for row in found if row[0].name not in rough]
    for way, said in (("with_weights", "The file's weights are read"), ("alone", "By the answers alone")):
        print(f"\n### {said}\n")
        table(found, way)
    fails = Counter(name for file, _, v in found if file.damage == RIGHT for name in v.failed)
    print(f"\nMeasures that fail for right files: {dict(fails)}")


if __name__ == "__main__":
    main()
