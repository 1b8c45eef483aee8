"""How far can the adapter's strength in the answers be trusted? `python -m tests.bench.strength [runs/medical]`.

Needs a finished run (`make medical`). Its adapter is scaled to a tenth less, to half and to nothing, and each is merged,
converted and quantized as the run's own was. Right exports tell the bias at 1, a base that is quantized the same way the bias
at 0. The last column is how many positions bring the 99.8 % interval of the right export to ± 0.03, as the interval narrows with
their square root.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

from tests.bench.certificate import of_types, read, tuned_of
from tests.parity_chain import export, finished, scaled
from toolkit.parity.candidate import Candidate
from toolkit.parity.strength import Strength
from toolkit.parity.subjects import Tuned, evaluate
from toolkit.run.facts import AdapterFacts

FILE_TYPES = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]
FACTORS = (1.0, 0.9, 0.5, 0.0)
WANTED = 0.03


def measure(path: Path, tuned: Tuned) -> Strength:
    """The strength of one file's adapter over all goldens."""
    with Candidate(path) as candidate:
        positions, _ = evaluate(tuned.goldens, candidate, 1)
    found = positions.strength
    assert found is not None, "the tuning changed nothing on the goldens"
    return found


def rows(run: Path) -> dict[str, list[Strength]]:
    """File type → its strength at each factor."""
    recipe, tuned = tuned_of(run)
    adapter = read(run, "train", AdapterFacts)
    chosen = of_types(recipe, FILE_TYPES, FILE_TYPES[0])
    found: dict[str, list[Strength]] = {file_type: [] for file_type in FILE_TYPES}
    for factor in FACTORS:
        with tempfile.TemporaryDirectory() as scratch:
            folder = scaled(adapter.folder, Path(scratch) / "adapter", factor)
            made = export(chosen, finished(folder, adapter.facts), Path(scratch) / "export")
            for artifact in (made.gguf, made.quantized):
                for file in artifact.facts.files:
                    found[file.file_type].append(measure(artifact.folder / file.name, tuned))
                    print(f"{file.file_type} at {factor}: {found[file.file_type][-1]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print the table."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/medical")
    _, tuned = tuned_of(run)
    count = tuned.goldens.facts.positions
    print(f"{count} positions of {tuned.goldens.facts.prompts} goldens; strength [99.8 % interval]\n")
    print("| file type | " + " | ".join(f"alpha × {factor:g}" for factor in FACTORS) + f" | positions for ± {WANTED} |")
    print("|" + "---|" * (len(FACTORS) + 2))
    for file_type, strengths in rows(run).items():
        cells = [f"{s.value:.3f} [{s.low:.3f}, {s.high:.3f}]" for s in strengths]
        needed = math.ceil(count * ((strengths[0].high - strengths[0].low) / 2 / WANTED) ** 2)
        print(f"| {file_type} | {' | '.join(cells)} | {needed} |")


if __name__ == "__main__":
    main()
