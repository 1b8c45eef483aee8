"""How far logits behind pictures are from the tuned model's: of right exports, and of language models beside a wrong mmproj.

    python -m tests.bench.behind_pictures

Small random models of every shape whose pictures have sizes of their own, with an adapter on all linear layers; for each file
type the mean KL and the largest difference of a logit, behind six pictures. The limits of `toolkit.parity.limits` stand on these.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.faults.seeing_chain import NEW_TOKENS, random_adapter, recipe_for, record, rules_for, seeing_artifact
from tests.parity_chain import export
from tests.seeing_models import seeing_model
from toolkit.export.convert import convert
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.candidate import Candidate
from toolkit.parity.eyes import Eyes
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.subjects import evaluate

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
SEEDS = (2, 3)
FILE_TYPES = ["F32", "Q8_0", "Q6_K", "Q4_K_M"]
FURTHER = ("F16", "BF16")


class Found(NamedTuple):
    """Of one file."""

    mmproj: str
    file_type: str
    mean_kl: float
    largest: float


def measured(family: str, seed: int, folder: Path) -> list[Found]:
    """A right export, the same beside the base's mmproj, and beside one of other random weights."""
    base = seeing_model(folder / "base", family, seed)
    rules = rules_for(base)
    adapter = seeing_artifact(random_adapter(base, folder / "adapter"), base, rules)
    (folder / "golden").mkdir()
    golden = record(base, adapter, folder / "golden")
    chosen = recipe_for(base, FILE_TYPES)
    made = export(chosen, adapter, folder / "right")
    mmprojs = {"right": made.gguf}
    files = {f.file_type: a.folder / f.name for a in (made.gguf, made.quantized) for f in a.facts.files}
    for kind in FURTHER:
        (out := folder / kind).mkdir()
        of_kind = convert(recipe_for(base, [kind]), adapter, made.model, out)
        files[kind] = out / of_kind.files[0].name
    for name, model in (("of the base", base), ("of another model", seeing_model(folder / "other", family, seed + 40))):
        whole = seeing_artifact(model, model, rules)
        whole = replace(whole, facts=whole.facts.model_copy(update={"method": "full"}))
        mmprojs[name] = export(recipe_for(model, ["F32"]), whole, folder / name).gguf
    goldens = Goldens.read(golden)
    found = []
    for name, seen in mmprojs.items():
        assert seen.facts.mmproj is not None
        for kind, path in files.items():
            eyes = Eyes.of(seen.folder / seen.facts.mmproj.name, rules, load_tokenizer(base), golden.folder)
            with Candidate(path) as candidate:
                positions, _ = evaluate(goldens, candidate, NEW_TOKENS, eyes=eyes)
            found.append(Found(name, kind, float(np.mean(positions.kl)), positions.largest_difference))
    return found


def main() -> None:
    """Print a table."""
    print(f"{'shape':<12}{'seed':<6}{'mmproj':<18}{'file':<8}{'mean KL':>10}{'max |dz|':>10}")
    for seed in SEEDS:
        for family in FAMILIES:
            with tempfile.TemporaryDirectory() as folder:
                for one in measured(family, seed, Path(folder)):
                    print(
                        f"{family:<12}{seed:<6}{one.mmproj:<18}{one.file_type:<8}{one.mean_kl:>10.2g}{one.largest:>10.3g}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
