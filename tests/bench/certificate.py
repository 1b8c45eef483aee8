"""What a certificate costs, and the noise floor of every file type: `python -m tests.bench.certificate [runs/medical]`.

Needs a finished run of the medical recipe (`make medical`). Its goldens are cut to 16, as many as a certificate should have;
then the run's own files are judged in a process of its own, timed, and every file type is made from the merged folder and judged.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from toolkit.export.imatrix import CHUNK, collect, training_sequences
from toolkit.export.imatrix_file import IMATRIX_FILE, write_imatrix
from toolkit.export.quantize import quantize_file
from toolkit.export.straight import convert_straight
from toolkit.parity.certificate import Subject
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.limits import limits_for
from toolkit.parity.subjects import GGUFUnderTest, Tuned
from toolkit.parity.verify import judge
from toolkit.recipe.schema import CONVERTED_FILE_TYPES, NEED_IMATRIX, QUANTIZED_FILE_TYPES, Recipe
from toolkit.run.artifacts import Artifact, read_artifact
from toolkit.run.facts import AdapterFacts, DatasetFacts, Facts, GGUFFacts, GoldenFacts

GOLDENS = 16


def read(run: Path, stage: str, facts: type[Facts]) -> Artifact[Any]:
    """An artifact of the run."""
    found = read_artifact(run / stage, facts)
    if found is None:
        raise SystemExit(f"{run / stage} is not finished: make medical")
    return found


def tuned_of(run: Path) -> tuple[Recipe, Tuned]:
    """The run's tuned model, with 16 goldens."""
    from transformers import AutoTokenizer

    adapter, golden = read(run, "train", AdapterFacts), read(run, "golden", GoldenFacts)
    base = adapter.facts.base.id
    recipe = Recipe.model_validate(
        {"name": "bench", "base": base, "adapter": "unused", "system": adapter.facts.system, "ollama": {"model": "bench"},
         "golden": {"prompts": ["unused"]}}
    )  # fmt: skip
    tuned = Tuned.of(recipe, adapter, golden, AutoTokenizer.from_pretrained(adapter.folder))
    whole = tuned.goldens
    positions = sum(len(row["completion_ids"]) for row in whole.rows[:GOLDENS])
    facts = whole.facts.model_copy(update={"prompts": GOLDENS, "positions": positions})
    cut = Goldens(facts, whole.rows[:GOLDENS], whole.conversations, whole.tuned[:positions], whole.base[:positions])
    return recipe, replace(tuned, goldens=cut)


def cost(run: Path) -> None:
    """Judge the run's own files once, here; prints seconds and the largest resident set as JSON."""
    started = time.monotonic()
    _, tuned = tuned_of(run)
    files = []
    converted = read(run, "convert", GGUFFacts)
    source = converted.folder / converted.facts.files[0].name
    for artifact in (converted, read(run, "quantize", GGUFFacts)):
        files += [
            GGUFUnderTest(artifact.folder / f.name, f.file_type, f.file_type, source=source)
            for f in artifact.facts.files
        ]
    subjects = judge(tuned, None, files)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": time.monotonic() - started, "bytes": used, "files": len(files),
                      "verdicts": {s.name: s.verdict for s in subjects}}))  # fmt: skip


def floors(run: Path) -> Table:
    """Make every file type of the adapter, judge it, and set value, floor and limit side by side."""
    recipe, tuned = tuned_of(run)
    adapter = read(run, "train", AdapterFacts)
    table = Table(
        title=f"Right exports of {adapter.facts.base.id}, {tuned.goldens.facts.positions} positions; value (limit)"
    )
    for column in ("type", "mean KL, nats", "p99 KL", "top-1", "top-1 but near ties", "perplexity ratio", "adapter in weights",
                   "adapter in answers", "verdict"):  # fmt: skip
        table.add_column(column)
    with tempfile.TemporaryDirectory() as scratch:
        sequences = training_sequences(read(run, "prepare", DatasetFacts), adapter)
        for file_type, path, source in every_file_type(recipe, adapter, Path(scratch), sequences):
            table.add_row(
                *_row(judge(tuned, None, [GGUFUnderTest(path, file_type, file_type, source=source)])[-1], tuned)
            )
    return table


def every_file_type(
    recipe: Recipe,
    adapter: Artifact[AdapterFacts],
    folder: Path,
    sequences: list[list[int]],
) -> Iterator[tuple[str, Path, Path | None]]:
    """Make a file of each type in turn: its type, where it is, and what it was quantized from. It goes when the next is made.

    Args:
        sequences: tokens of training rows, for the types that need an importance matrix.
    """
    source = None
    for file_type in CONVERTED_FILE_TYPES:
        made = folder / file_type
        made.mkdir()
        path = made / convert_straight(of_types(recipe, [file_type], file_type), adapter, made).files[0].name
        yield file_type, path, None
        if file_type == "F16":
            source = path
        else:
            path.unlink()
    assert source is not None
    matrix = folder / IMATRIX_FILE
    write_imatrix(collect(source, sequences), matrix, "rows of the training split", len(sequences), CHUNK)
    for file_type in QUANTIZED_FILE_TYPES:
        path = folder / f"{file_type}.gguf"
        quantize_file(source, {file_type: path}, matrix if file_type in NEED_IMATRIX else None)
        yield file_type, path, source
        path.unlink()


def of_types(recipe: Recipe, file_types: list[str], serve: str) -> Recipe:
    """The recipe with other files to make."""
    return recipe.model_copy(
        update={"export": recipe.export.model_copy(update={"file_types": file_types, "serve": serve})}
    )


def _row(subject: Subject, tuned: Tuned) -> list[str]:
    checks = {check.name: {m.name: m for m in check.measures} for check in subject.checks}
    logits, weights, strength = checks["logits"], checks["weights"], checks["strength"]

    def told(name: str) -> str:
        found = logits[name]
        return f"{found.value:.3g}" + ("" if found.limit is None else f" ({found.limit:.3g})")

    limits, _ = limits_for(subject.file_type, tuned.parameters, 0.0)
    return [
        subject.name, told("mean KL"), told("p99 KL"), told("top-1 agreement"), told("top-1 agreement but for near ties"),
        told("perplexity ratio"), f"{weights['strength in the weights'].value:.4f} ± {weights['its error'].value:.4f}",
        f"{strength['strength'].value:.3f} [{strength['strength low'].value:.3f}, {strength['strength high'].value:.3f}] "
        f"({limits.strength_low:g} … {limits.strength_high:g})",
        subject.verdict,
    ]  # fmt: skip


def main() -> None:
    run = Path(next((a for a in sys.argv[1:] if not a.startswith("--")), "runs/medical"))
    if "--cost" in sys.argv:
        cost(run)
        return
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.certificate", str(run), "--cost"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"A certificate of {found['files']} exports, {GOLDENS} goldens: {found['seconds']:.0f} s, "
        f"{found['bytes'] / 1e9:.1f} GB; {found['verdicts']}"
    )
    Console(width=200).print(floors(run))


if __name__ == "__main__":
    main()
