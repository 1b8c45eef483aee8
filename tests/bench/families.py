"""Which families go the whole way, proved: `python -m tests.bench.families [--only qwen3,gemma3] [--again] [--table]`.

Each family's small model (see `tests.families`) is taught, tuned, merged, converted, quantized, certified and served by a real
Ollama; `docs/families.md` is written from what happened. What is finished lies in runs/families and is not done again: `--again`
redoes the chain of the families named, `--table` only writes the page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from tests.conftest import free_port
from tests.families.chain import FARTHEST, take
from tests.families.table import FAMILIES
from tests.families.zoo import Family
from toolkit.ollama.server import find_ollama, started
from toolkit.run.places import cache_home

RUNS = Path("runs") / "families"
PAGE = Path("docs") / "families.md"


@contextlib.contextmanager
def server(folder: Path) -> Iterator[None]:
    """A real Ollama of the bench's own, where `OLLAMA_HOST` points until the block ends."""
    binary = find_ollama()
    assert binary is not None, "build an Ollama first: make ollama"
    address = f"127.0.0.1:{free_port()}"
    shutil.rmtree(folder, ignore_errors=True)
    own = {"HOME": str(folder), "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_KEEP_ALIVE": "10s"}
    with started(binary, f"http://{address}", folder / "server.log", own):
        os.environ["OLLAMA_HOST"] = address
        yield
    shutil.rmtree(folder, ignore_errors=True)


def in_child(family: Family, upto: str) -> int:
    """Take one family the whole way in a process of its own: llama.cpp ends the process on some files. Gives the process id."""
    pid = os.fork()
    if pid:
        return pid
    folder = RUNS / family.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        code = 1
        try:
            row = take(family, folder, upto=upto)
            (RUNS / f"{family.name}.json").write_text(row.as_json(), encoding="utf-8")
            shutil.rmtree(folder / "run", ignore_errors=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        log.flush()
        os._exit(code)


def run(families: list[Family], workers: int, upto: str, again: bool) -> None:
    """Every family in turn, `workers` at a time."""
    torch.set_num_threads(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with server(cache_home() / "tests" / f"families-ollama-{os.getpid()}"):
        left = list(families)
        running: dict[int, tuple[Family, FileLock]] = {}
        while left or running:
            while left and len(running) < workers:
                family = left.pop(0)
                if (claim := claimed(family, again)) is not None:
                    running[in_child(family, upto)] = family, claim
            if not running:
                break
            pid, status = os.wait()
            if pid in running:
                family, claim = running.pop(pid)
                claim.release()
                print(told(family, os.waitstatus_to_exitcode(status)), flush=True)


def claimed(family: Family, again: bool) -> FileLock | None:
    """The right to take a family; None where it is finished, or another run of this bench is at it."""
    lock = FileLock(RUNS / f".{family.name}.lock", blocking=False)
    with contextlib.suppress(Timeout):
        lock.acquire()
        if again or read(family) is None:
            (RUNS / f"{family.name}.json").unlink(missing_ok=True)
            return lock
        lock.release()
    return None


def told(family: Family, code: int) -> str:
    """One line about a family that ended."""
    row = read(family)
    if row is None:
        log = (RUNS / family.name / "log.txt").read_text(encoding="utf-8").strip().splitlines()
        how = signal.Signals(-code).name if code < 0 else (log[-1] if log else "no word")
        return f"{family.name:<12}broke: {how}"
    kl = "-" if row["kl"] is None else f"{row['kl']:.1e}"
    return f"{family.name:<12}{'served' if row['served'] else row['reached']:<9} KL {kl:<8} {row['reason'][:300]}"


def read(family: Family) -> dict[str, Any] | None:
    """What was found of a family, or None."""
    path = RUNS / f"{family.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def page() -> str:
    """`docs/families.md`."""
    rows = [(family, read(family)) for family in FAMILIES]
    served = sum(bool(row and row["served"]) for _, row in rows)
    lines = [
        "# Families", "",
        f"{served} of {len(rows)} families were tuned, exported, certified and served. Each row is a small model of the "
        "published shape (layer pattern, head sizes, scales, ends and template as published; width 256, few layers), taught to "
        "answer, then tuned with LoRA on all linear layers; its F32 file (gpt-oss: F16) was compared with transformers, its Q8_0 "
        "and Q4_K_M files were certified, and Q4_K_M was published by Ollama 0.34.1 and proved there. The F32 column is the mean "
        f"KL of llama.cpp against transformers in nats: a shape that llama.cpp computes is under {FARTHEST:g}.",
        "", "Written by `python -m tests.bench.families`, which does it all again.", "",
        "| family | what of its shape is kept | tokenizer | template | converts | F32, KL | Q8_0 | Q4_K_M | served | reason |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    order = ("built", "train", "merge", "golden", "convert", "quantize", "verify", "create")
    for family, row in rows:
        if row is None:
            lines.append(f"| {family.title} | {family.shape} | | | not tried | | | | | |")
            continue
        converts = order.index(row["reached"]) >= order.index("convert")
        kl = "" if row["kl"] is None else f"{row['kl']:.0e}"
        verdicts = [row["verdicts"].get(name, "") for name in ("Q8_0", "Q4_K_M")]
        reason = " ".join(row["reason"].split()).replace("|", "\\|")
        if reason:
            reason = f"{reason}; {family.note}" if family.note else reason
            reason += "; told before training" if row["foretold"] else "; not told before training"
        reason = reason or family.note
        lines.append(
            f"| {family.title} | {family.shape} | {row['tokenizer']} | {row['template']} | {'yes' if converts else 'no'} "
            f"| {kl} | {verdicts[0]} | {verdicts[1]} | {'yes' if row['served'] else 'no'} | {reason} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.families", description=__doc__)
    parser.add_argument("--only", default="", help="names, with commas between them")
    parser.add_argument("--again", action="store_true", help="redo those that are finished")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--upto", default="create", help="the last stage: convert is enough to compare the F32 file")
    parser.add_argument("--table", action="store_true", help="only write the page")
    asked = parser.parse_args()
    by_name = {family.name: family for family in FAMILIES}
    names = asked.only.split(",") if asked.only else list(by_name)
    if unknown := set(names) - set(by_name):
        sys.exit(f"no such family: {', '.join(sorted(unknown))}")
    chosen = [by_name[name] for name in names if asked.again or read(by_name[name]) is None]
    if chosen and not asked.table:
        run(chosen, asked.workers, asked.upto, asked.again)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
