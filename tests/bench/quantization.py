"""What each way of rounding costs: both bases of a QLoRA adapter × file types × with and without an importance matrix.

python -m tests.bench.quantization [runs/medical]   a finished run of the medical recipe (`make medical`), and a small
                                                    trained chain 256 wide, where every type is real; prints the tables
                                                    of docs/quantization.md

All files of a base are made from its one F16 file. KL, what is kept of the gain and the adapter's strength are measured on the
run's golden answers, against the tuned model as it was trained; the loss on rows that are held out.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.certificate import of_types, read
from tests.parity_chain import AFTER, chain, rows
from toolkit.evaluate.held_out import of_rows
from toolkit.evaluate.readers import FileReader
from toolkit.export.imatrix import CHUNK, collect, training_sequences
from toolkit.export.imatrix_file import IMATRIX_FILE, write_imatrix
from toolkit.export.quantize import quantize_file
from toolkit.export.straight import export
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.candidate import Candidate
from toolkit.parity.golden.goldens import Goldens
from toolkit.parity.subjects import evaluate
from toolkit.recipe.reading import load_recipe
from toolkit.recipe.schema import NEED_IMATRIX, Recipe
from toolkit.run.artifacts import Artifact, read_jsonl
from toolkit.run.facts import AdapterFacts, DatasetFacts, GoldenFacts
from toolkit.train.rows import tokenize

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K")
HEAD = "| merged onto | file type | matrix | MB | mean KL, nats | gain kept | strength in answers | held-out loss |"


@dataclass(frozen=True)
class Measured:
    """A tuned model, and what its files are measured with."""

    recipe: Recipe
    adapter: Artifact[AdapterFacts]
    goldens: Goldens
    read: list[list[int]]
    """Tokens of rows that were trained on."""
    held_out: list[dict[str, Any]]

    def row(self, path: Path, onto: str, kind: str, matrix: str) -> str:
        """A line of the table."""
        with Candidate(path) as candidate:
            positions, _ = evaluate(self.goldens, candidate, 1)
        strength = positions.strength
        return (
            f"| {onto} | {kind} | {matrix} | {path.stat().st_size / 1e6:.1f} | {np.mean(positions.kl):.2e} | "
            f"{positions.gain_kept:.1%} | {strength.value if strength else float('nan'):.3f} | {self.loss(path):.4f} |"
        )

    def loss(self, path: Path) -> float:
        """Of the held-out rows, nats per answer token."""
        kept = of_rows(self.held_out, load_tokenizer(self.adapter.folder), self.recipe.train.max_length, 0)
        found = FileReader(path).read(kept.sequences)
        return -sum(float(np.sum(one.nats)) for one in found) / sum(len(one.nats) for one in found)


def tell(measured: Measured) -> None:
    """Print the table of one tuned model."""
    print(f"{HEAD}\n|---|---|---|---|---|---|---|---|", flush=True)
    for onto in ("as trained", "16-bit"):
        merge = measured.recipe.merge.model_copy(update={"onto": onto})
        recipe = of_types(measured.recipe, ["F16"], "F16").model_copy(update={"merge": merge})
        with tempfile.TemporaryDirectory() as scratch:
            made = export(recipe, measured.adapter, ["F16"], Path(scratch))
            assert made is not None
            source = Path(scratch) / made.facts.files[0].name
            found = collect(source, measured.read)
            write_imatrix(found, Path(scratch) / IMATRIX_FILE, "rows of the training split", len(measured.read), CHUNK)
            print(measured.row(source, onto, "F16", "–"), flush=True)
            for kind in TYPES:
                for matrix in ("–", "yes"):
                    if matrix == "yes" or kind not in NEED_IMATRIX:
                        given = Path(scratch) / IMATRIX_FILE if matrix == "yes" else None
                        target = Path(scratch) / "rounded.gguf"
                        quantize_file(source, {kind: target}, given)
                        print(measured.row(target, onto, kind, matrix), flush=True)


def of_run(run: Path) -> Measured:
    """A finished run."""
    recipe, adapter = load_recipe(run / "recipe.yaml"), read(run, "train", AdapterFacts)
    dataset: Artifact[DatasetFacts] = read(run, "prepare", DatasetFacts)
    goldens = Goldens.read(read(run, "golden", GoldenFacts))
    held_out = read_jsonl(dataset.folder / "validation.jsonl") + read_jsonl(dataset.folder / "test.jsonl")
    return Measured(recipe, adapter, goldens, training_sequences(dataset, adapter), held_out)


def of_chain() -> Measured:
    """The trained chain of the tests; its rows have no others beside them, so its loss is of rows that it learnt."""
    clean = chain()
    tokenizer, learnt = load_tokenizer(clean.adapter.folder), rows(AFTER)
    taught = [tokenize(tokenizer, row)[0].input_ids for row in learnt]
    return Measured(clean.recipe, clean.adapter, Goldens.read(clean.golden), taught, learnt)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/medical")
    if (folder / "report" / "artifact.json").is_file():
        print(f"{folder}:\n")
        tell(of_run(folder))
    else:
        print(f"{folder} is not finished (make medical), so only the small chain is measured.\n")
    print("\nA trained Llama 256 wide:\n")
    tell(of_chain())
