"""An adapter's way into a GGUF file, as others go it and as this project does: `python -m tests.bench.speed [--times 3]`.

The reference is what everybody does by hand, a process for each step: PEFT's `merge_and_unload` and `save_pretrained`, the pinned
tree's own `convert_hf_to_gguf.py`, and `llama_model_quantize` (for Q8_0 too). Ours is the export in one pass. They take turns, so
that a machine that is slower for a while is so for both; what counts are the ratios of neighbours.

The adapter is a LoRA of rank 16 on all linear layers, of the embedded base and of a Llama of 1.1B random parameters in bfloat16,
which is made in the cache's folder `bench` when it is not there (2.2 GB).

Behind the exports trainings take turns, as `tests.bench.training` has them; last come the bars, and whether they are met.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.bench import bars, training
from tests.bench.speed_models import Case, cases
from tests.children import child_environment
from toolkit.export.llama_cpp import converter_environment, tree
from toolkit.run.places import cache_home

FILE_TYPES = ("Q8_0", "Q4_K_M")
MERGE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, out, dtype = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""
QUANTIZE = """
import sys
from pathlib import Path
from tests.llama_quantizer import quantize_with_llama_cpp
quantize_with_llama_cpp(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
"""
OURS = """
import sys
from pathlib import Path
from toolkit.export.straight import export
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import AdapterFacts
facts, adapter, recipe, file_type, out = sys.argv[1:]
artifact = Artifact(Path(adapter), AdapterFacts.model_validate_json(facts), "", {}, Cost())
export(Recipe.model_validate_json(recipe), artifact, [file_type], Path(out))
"""


LAUNCHER = """
import json, os, subprocess, sys, time
start = time.monotonic()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, used = os.wait4(process.pid, 0)
wall = time.monotonic() - start
print(json.dumps([wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, used.ru_inblock * 512, used.ru_oublock * 512]))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""
"""A process's peak begins with that of the one that starts it, so a small one starts it."""


@dataclass(frozen=True)
class Spent:
    """What one or several processes took."""

    wall: float = 0.0
    """Seconds."""
    cpu: float = 0.0
    """Seconds of all cores."""
    peak: int = 0
    """Bytes of the largest process."""
    read: int = 0
    """Bytes from the disk; what the system still had in memory is not among them."""
    written: int = 0
    """Bytes."""
    disk: int = 0
    """Bytes of all files that were left."""
    made: int = 0
    """Bytes of the GGUF files among them."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.wall + other.wall, self.cpu + other.cpu, max(self.peak, other.peak), self.read + other.read,
            self.written + other.written, self.disk + other.disk, self.made + other.made,
        )  # fmt: skip


def spent(command: list[str], folder: Path, environment: dict[str, str]) -> Spent:
    """Run a process, in `folder`; what it and its children took, and what it left there."""
    before, made = bytes_in(folder), bytes_in(folder, ".gguf")
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(
        launcher, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=folder
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    figures = json.loads(done.stdout.splitlines()[-1])
    return Spent(*figures, bytes_in(folder) - before, bytes_in(folder, ".gguf") - made)


def bytes_in(folder: Path, ending: str = "") -> int:
    """Of all files below whose names end so."""
    return sum(path.stat().st_size for path in folder.rglob(f"*{ending}") if path.is_file())


def reference(case: Case, file_type: str, work: Path) -> tuple[Spent, Spent]:
    """(The whole chain, its last step alone)."""
    merged, converted = work / "merged", work / "merged-f16.gguf"
    here, theirs = child_environment(), converter_environment(tree())
    python = sys.executable
    merging = [python, "-c", MERGE, str(case.base), str(case.adapter.folder), str(merged), case.dtype]
    converting = [python, str(tree() / "convert_hf_to_gguf.py"), str(merged), "--outfile", str(converted)]
    before = spent(merging, work, here) + spent([*converting, "--outtype", "f16"], work, theirs)
    quantizing = [python, "-c", QUANTIZE, str(converted), str(work / "reference.gguf"), file_type]
    last = spent(quantizing, work, here)
    return before + last, last


def ours(case: Case, file_type: str, work: Path, home: Path | None = None) -> Spent:
    """The export in one pass.

    Args:
        home: another cache than this user's.
    """
    recipe = case.recipe(file_type).model_dump_json()
    facts = case.adapter.facts.model_dump_json()
    command = [sys.executable, "-c", OURS, facts, str(case.adapter.folder), recipe, file_type, str(work)]
    environment = child_environment(**({"TUNE2OLLAMA_HOME": str(home)} if home else {}))
    return spent(command, work, environment)


def as_a_command(case: Case, file_type: str, work: Path) -> Spent:
    """The same as a user has it: with all that is checked before, in processes of their own, and what a run keeps."""
    command = [sys.executable, "-m", "toolkit.cli", "export", str(case.adapter.folder), "--name", "speed"]
    command += ["--base", str(case.base), "--file-type", file_type, "--upto", "quantize"]
    return spent(command, work, child_environment())


def first_time(case: Case, file_type: str, work: Path) -> Spent:
    """The same, where nothing is known of the base yet."""
    with tempfile.TemporaryDirectory() as home:
        for name in ("llama.cpp", "sources", "bases", "k_quants"):
            if (cache_home() / name).exists():
                (Path(home) / name).symlink_to(cache_home() / name)
        return ours(case, file_type, work, Path(home))


def measured(case: Case, file_type: str, times: int) -> dict[str, Any]:
    """Reference and ours in turns; what is to be known of the base is known before."""
    with tempfile.TemporaryDirectory(dir=work_folder()) as before:
        ours(case, file_type, Path(before))
    ways = ("reference", "quantize alone", "ours", "ours, as a command", "ours, first time")
    found: dict[str, list[Spent]] = {way: [] for way in ways}
    rounds = track(range(times), f"{case.name} to {file_type}", console=Console(stderr=True))
    for number in rounds:
        with (
            tempfile.TemporaryDirectory(dir=work_folder()) as one,
            tempfile.TemporaryDirectory(dir=work_folder()) as two,
        ):
            whole, last = reference(case, file_type, Path(one))
            found["reference"].append(whole)
            found["quantize alone"].append(last)
            found["ours"].append(ours(case, file_type, Path(two)))
            _emptied(Path(two))
            found["ours, as a command"].append(as_a_command(case, file_type, Path(two)))
            if number == 0:
                _emptied(Path(two))
                found["ours, first time"].append(first_time(case, file_type, Path(two)))
    return {"case": case.name, "file_type": file_type, "parameters": case.parameters, "spent": found}


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def alone(case: Case, small: Case, file_type: str) -> Table:
    """Ours on a model that is too large for the reference, beside the disk's time and the quantizer's.

    Args:
        small: tells the quantizer's rate.
    """
    with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
        work = Path(folder)
        ours(small, "F16", work)
        (converted,) = work.glob("*.gguf")
        quantizing = [sys.executable, "-c", QUANTIZE, str(converted), str(work / "alone.gguf"), file_type]
        rate = small.parameters / spent(quantizing, work, child_environment()).wall
        for path in work.glob("*.gguf"):
            path.unlink()
        found = ours(case, file_type, work)
        moving = _seconds_to_read(case.base) + _seconds_to_write(found.disk, work / "written")
    table = Table(
        "model",
        "to",
        "wall s",
        "CPU s",
        "peak GB",
        "disk GB",
        "reading, writing s",
        "quantizer alone s",
    )
    table.add_row(
        case.name, file_type, f"{found.wall:.0f}", f"{found.cpu:.0f}", f"{found.peak / 1e9:.2f}", f"{found.disk / 1e9:.2f}",
        f"{moving:.0f}", f"{case.parameters / rate:.0f}",
    )  # fmt: skip
    return table


def _seconds_to_read(folder: Path) -> float:
    """From the disk itself, as far as the system lets its cache go."""
    seconds = 0.0
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start = time.monotonic()
            while stream.read(1 << 24):
                pass
            seconds += time.monotonic() - start
    return seconds


def _seconds_to_write(size: int, path: Path) -> float:
    block, start = bytes(1 << 24), time.monotonic()
    with path.open("wb", buffering=0) as stream:
        for _ in range(size // len(block)):
            stream.write(block)
        os.fsync(stream.fileno())
    return time.monotonic() - start


def work_folder() -> Path:
    """Where the files go: on the disk that the cache is on."""
    folder = cache_home() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table_of(rows: list[dict[str, Any]]) -> Table:
    """A row for each way: medians, and ratios to the reference of the same round with their range."""
    table = Table(
        "model", "to", "way", "wall s", "CPU s", "peak GB", "read GB", "written GB", "wall / ref.", "peak / ref."
    )
    for row in rows:
        whole: list[Spent] = row["spent"]["reference"]
        for way, several in row["spent"].items():
            wall = [one.wall / other.wall for one, other in zip(several, whole)]
            peak = [one.peak / other.peak for one, other in zip(several, whole)]
            keys = ("wall", "cpu", "peak", "read", "written")
            middle = [median(getattr(one, key) for one in several) for key in keys]
            table.add_row(
                row["case"],
                row["file_type"],
                way,
                f"{middle[0]:.1f}",
                f"{middle[1]:.1f}",
                f"{middle[2] / 1e9:.2f}",
                f"{middle[3] / 1e9:.2f}",
                f"{middle[4] / 1e9:.2f}",
                f"{median(wall):.2f} ({min(wall):.2f}–{max(wall):.2f})",
                f"{median(peak):.2f}",
            )
    return table


def main() -> None:
    """Print the tables, and every figure of the exports as JSON below them with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--only", default="", help="embedded or 1.1B (no training); 7B (ours alone; 13 GB)")
    parser.add_argument("--types", default=",".join(FILE_TYPES))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.only == "7B":
        (large,), (small,) = cases(work_folder(), "7B"), cases(work_folder(), "1.1B")
        for file_type in asked.types.split(","):
            Console(width=140).print(alone(large, small, file_type))
        return
    rows = [
        measured(case, file_type, asked.times)
        for case in cases(work_folder(), asked.only)
        for file_type in asked.types.split(",")
    ]
    console = Console(width=140)
    console.print(table_of(rows))
    held = bars.exports(rows)
    if not asked.only:
        trained = training.trained(asked.times, steps=12)
        console.print(training.table_of(trained))
        held += bars.trainings(training.ratios(trained))
    console.print(bars.table_of(held))
    if asked.json:
        print(json.dumps(rows, default=vars))


if __name__ == "__main__":
    main()
