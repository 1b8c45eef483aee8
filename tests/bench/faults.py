"""Which link is blamed for which fault, how clean clean chains are, and how well the weights tell the adapter's strength.

python -m tests.bench.faults                 all of it, about half an hour on two cores
python -m tests.bench.faults faults [NAME …] the table of faults; NAME: a part of a fault's name; those of a server, where
                                             there is an Ollama here
python -m tests.bench.faults clean [FAMILY …] four families, five ways of training, three file types
python -m tests.bench.faults types           one clean chain 256 wide at every file type: floors beside limits
python -m tests.bench.faults strength        bias and spread of the strength in the weights, by stored type
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench.certificate import every_file_type
from tests.conftest import free_port
from tests.faults.chains import FAMILIES, METHODS, Clean, clean_chain, family_base, fault_chain
from tests.faults.proof import prove
from tests.faults.served import SERVED_FAULTS, ServedFault, served
from tests.faults.table import FAULTS
from tests.parity_chain import AFTER, rows
from toolkit.export.ggml import stored, widened
from toolkit.ollama.client import Client
from toolkit.ollama.server import find_ollama, started
from toolkit.parity.certificate import blame_of
from toolkit.parity.limits import largest_rest
from toolkit.parity.rounding import rounded
from toolkit.parity.subjects import GGUFUnderTest, Tuned
from toolkit.parity.sums import Sums, sums_of
from toolkit.parity.tuning import Tuning
from toolkit.parity.verify import certificate_of, judge
from toolkit.train.rows import tokenize

STORED = (
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K",
    "Q5_1",
    "Q5_0",
    "Q4_K",
    "Q4_1",
    "Q4_0",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K",
    "Q2_K",
)


def say(*columns: object, widths: tuple[int, ...]) -> None:
    """A line of a table on stdout, as soon as it is known."""
    print("  ".join(str(c).ljust(w) for c, w in zip(columns, widths)).rstrip(), flush=True)


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def faults(chosen: list[str], folder: Path) -> None:
    """The table of faults."""
    widths = (46, 12, 12, 8, 38, 10, 8, 12, 3)
    say("fault", "expected", "named", "where", "measure", "value", "limit", "file alone", "", widths=widths)
    wrong = 0
    wanted = [f for f in FAULTS if not chosen or any(part in f.name for part in chosen)]
    wanted_in_all = len(wanted)
    for i, fault in enumerate(wanted):
        row = prove(fault, folder / str(i))
        blame = row.blame
        alone = "-" if row.alone is None else (row.alone["blame"] or {"link": "none"})["link"]
        say(
            fault.name, fault.link, blame.get("link", "none"), blame.get("where", ""), blame.get("measure", ""),
            number(blame.get("value")), number(blame.get("limit")), alone, "" if row.right else "WRONG", widths=widths,
        )  # fmt: skip
        if not row.right:
            wrong += 1
            print(f"    {row.certificate['message']}\n    alone: {(row.alone or {}).get('message')}", flush=True)
    served_wanted = [f for f in SERVED_FAULTS if not chosen or any(part in f.name for part in chosen)]
    binary = find_ollama()
    if binary is None:
        print("There is no Ollama here: the server's faults are left out.", flush=True)
    elif served_wanted:
        wanted_in_all += len(served_wanted)
        wrong += served_faults(served_wanted, binary, folder, widths)
    print(f"{wanted_in_all - wrong} of {wanted_in_all} faults are blamed on the right link, in words that name them")


def served_faults(wanted: list[ServedFault], binary: Path, folder: Path, widths: tuple[int, ...]) -> int:
    """The rows of a server's faults; gives how many are wrong."""
    address, wrong = f"http://127.0.0.1:{free_port()}", 0
    environment = {"HOME": str(folder), "OLLAMA_MODELS": str(folder / "models")}
    with started(binary, address, folder / "ollama.log", environment), Client(address) as client:
        for fault in wanted:
            blame = blame_of([served(client, fault.parameters(), fault.template)])
            link, message = (blame.link, blame.message) if blame else ("none", "")
            right = (link, fault.says in message) == (fault.link, True)
            say(
                fault.name, fault.link, link, "Ollama", blame.measure if blame else "", number(blame and blame.value),
                number(blame and blame.limit), "-", "" if right else "WRONG", widths=widths,
            )  # fmt: skip
            wrong += not right
            if not right:
                print(f"    {message}", flush=True)
    return wrong


def measure(subject: dict[str, Any], check: str, name: str) -> dict[str, Any]:
    """One measure of a certificate's subject."""
    found = next((c for c in subject["checks"] if c["name"] == check), {"measures": []})
    return next((m for m in found["measures"] if m["name"] == name), {"value": None, "limit": None, "floor": None})


WIDTHS = (14, 8, 9, 9, 9, 9, 8, 8, 9, 9, 7, 10)


def head_of_measures(first: str) -> None:
    """The head of a table of clean files."""
    say(
        first, "type", "KL floor", "KL", "KL limit", "p99 KL", "top-1", "strength", "weights", "± error", "rest", "verdict",
        widths=WIDTHS,
    )  # fmt: skip


def tell(first: str, subject: dict[str, Any]) -> None:
    """A clean file: what was measured beside what is allowed. rest: as a share of its limit."""
    kl, strength = measure(subject, "logits", "mean KL"), measure(subject, "strength", "strength")
    p99 = measure(subject, "logits", "p99 KL")
    top1, weights = (
        measure(subject, "logits", "top-1 agreement"),
        measure(subject, "weights", "strength in the weights"),
    )
    error, rest = (
        measure(subject, "weights", "its error"),
        measure(subject, "weights", "largest rest, as a share of its type's limit"),
    )
    say(
        first, subject["name"], number(kl["floor"]), number(kl["value"]), number(kl["limit"]), number(p99["value"]),
        number(top1["value"]), number(strength["value"]), number(weights["value"]), number(error["value"]), number(rest["value"]),
        subject["verdict"], widths=WIDTHS,
    )  # fmt: skip


def clean(chosen: list[str], folder: Path) -> None:
    """Every family with every way of training, at three file types."""
    head_of_measures("chain")
    alarms = chains = 0
    for family in chosen or FAMILIES:
        base = family_base(family, folder / family)
        for method in METHODS:
            out = folder / f"{family}-{method}"
            certificate = clean_chain(family, method, base, out).certificate(out / "verify")
            for subject in certificate["subjects"]:
                tell(f"{family} {method}", subject)
            chains += 1
            if certificate["verdict"] != "pass" or certificate["warnings"]:
                alarms += 1
                print(f"    {certificate['message']} {certificate['warnings']}", flush=True)
            shutil.rmtree(out)
    print(f"{chains - alarms} of {chains} clean chains pass without a warning")


def types(folder: Path) -> None:
    """One clean chain at every file type, 256 wide, so that every K-quant is real."""
    head_of_measures("")
    chain: Clean = fault_chain()
    tuned = Tuned.of(chain.recipe, chain.adapter, chain.golden, _tokenizer(chain))
    taught = [row.input_ids for row in (tokenize(_tokenizer(chain), row)[0] for row in rows(AFTER))]
    for kind, path, _ in every_file_type(chain.recipe, chain.adapter, folder, taught):
        certificate = certificate_of(tuned, judge(tuned, None, [GGUFUnderTest(path, kind, kind, served=True)]), {})
        tell("", certificate["subjects"][-1])
        if certificate["verdict"] != "pass":
            print(f"    {certificate['message']}", flush=True)


def _tokenizer(chain: Clean) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chain.adapter.folder)


def with_importance(rows: torch.Tensor, kind: str) -> torch.Tensor:
    """Rounded as others do it, with an importance matrix that spreads over two orders of magnitude."""
    if kind in ("F16", "BF16", "Q8_0"):
        return rounded(rows, kind)
    random = np.random.default_rng(rows.shape[1])
    importance = np.exp(random.standard_normal(rows.shape[1])).astype(np.float32) ** 2
    return torch.from_numpy(widened(stored(rows.numpy(), kind, importance), kind))


def strength(_: Path) -> None:
    """Strength and rest of right exports and of a tenth of the adapter missing, by stored type."""
    chain: Clean = fault_chain()
    tuning = Tuning(chain.adapter, "as trained")
    weights = [tuning.load(name) for name in tuning.names() if tuning.changes(name)]
    ours: Callable[[torch.Tensor, str], torch.Tensor] = rounded
    widths = (8, 22, 6, 9, 9, 9, 11, 11, 8)
    say("type", "rounded", "alpha", "strength", "± error", "spread", "share 16", "max rest", "limit", widths=widths)
    for kind in STORED:
        for told, rounding in (("as llama.cpp does", ours), ("with importance matrix", with_importance)):
            for factor in (1.0, 0.9):
                each = [_sums(w, kind, rounding, factor) for w in weights]
                total = Sums()
                for one in each:
                    total += one
                spread = float(np.std([one.strength for one in each if one.strength is not None]))
                say(
                    kind, told, factor, number(total.strength), number(total.strength_error), number(spread),
                    number(total.original_share), number(max(one.rest for one in each)), number(largest_rest(kind)),
                    widths=widths,
                )  # fmt: skip


def _sums(weights: Any, kind: str, rounding: Callable[[torch.Tensor, str], torch.Tensor], factor: float) -> Sums:
    base, tuned, original = weights.base, weights.tuned, weights.original
    change = tuned - base
    stored = [rounded(weight, kind, "F16") for weight in (base, tuned)]
    export = rounding((base + factor * change).half().float(), kind)
    if original is None:
        return sums_of(*stored, export, change)
    return sums_of(*stored, export, change, (rounded(original + change, kind, "F16"), original - base))


def main() -> None:
    """Run the parts that the command line names, or all."""
    part, chosen = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    folder = Path(tempfile.mkdtemp(prefix="tune2ollama-bench-"))
    started = time.monotonic()
    try:
        if part in ("", "faults"):
            faults(chosen, folder)
        if part in ("", "strength"):
            strength(folder)
        if part in ("", "types"):
            types(folder)
        if part in ("", "clean"):
            clean(chosen, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
