"""Do the servers answer the goldens as llama.cpp does on the same file? On each Ollama that `make ollama` built here.

    python -m tests.bench.served_answers [runs/medical] [--version 0.34.1]

Needs a finished run (`make medical`). Every golden question is asked at /api/chat, and the first five at the other addresses,
greedily and with the 20 log-probabilities that a server tells; llama.cpp follows each answer token by token with the server's
settings (F16 cache, flash attention). Numbers are differences of log-probabilities in nats; nothing is timed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.certificate import read
from tests.bench.ollama_templates import built_versions
from tests.conftest import free_port
from toolkit.errors import ParityError
from toolkit.ollama.asked import ENDPOINTS
from toolkit.ollama.client import Client
from toolkit.ollama.own_model import OwnModel
from toolkit.ollama.served import Question, Served, check_answers, check_rendering, largest_means, read_questions
from toolkit.ollama.server import started
from toolkit.run.facts import AdapterFacts, GGUFFacts
from toolkit.run.places import cache_home

NAME, CONTEXT, LIMIT = "answers", 2048, 96
ELSEWHERE = 5


def files_of(run: Path) -> dict[str, Path]:
    """File type → GGUF of the run."""
    made = [read(run, stage, GGUFFacts) for stage in ("convert", "quantize")]
    return {file.file_type: artifact.folder / file.name for artifact in made for file in artifact.facts.files}


def measure_file(client: Client, path: Path, questions: list[Question], system: str) -> list[str]:
    """A cell for the prompts, then one for each address: answers compared, mean and largest difference."""
    settings = {"num_ctx": CONTEXT, "temperature": 0.0, "repeat_penalty": 1.0}
    client.create(NAME, {"files": {path.name: client.upload(path)}, "system": system, "parameters": settings})
    own = OwnModel(path, CONTEXT)
    try:
        wrong = check_rendering(client, NAME, questions, own, lambda: None)
        cells = [f"{len(questions) - len(wrong)} of {len(questions)} equal"]
        for endpoint in ENDPOINTS:
            asked = questions if endpoint == ENDPOINTS[0] else questions[:ELSEWHERE]
            cells.append(_told(client, asked, own, endpoint))
        return cells
    finally:
        own.close()
        client.delete(NAME)


def _told(client: Client, questions: list[Question], own: OwnModel, endpoint: Any) -> str:
    try:
        found = check_answers(client, Served(NAME), questions, own, LIMIT, lambda: None, endpoint)
    except ParityError as error:
        return f"differs: {error.message}"
    means = f"mean {found.mean:.2g}, of all told {found.mean_told:.2g}"
    return f"{found.answers} answers, {found.tokens} tokens: {means}, largest {found.largest:.2g}"


def measure_version(version: str, run: Path) -> None:
    """Print a row per file type."""
    adapter = read(run, "train", AdapterFacts)
    questions = read_questions(run / "golden" / "golden.jsonl", adapter.facts.system)
    binary = cache_home() / "ollama" / version / "bin" / "ollama"
    with tempfile.TemporaryDirectory() as scratch:
        folder, address = Path(scratch), f"http://127.0.0.1:{free_port()}"
        environment = {"HOME": scratch, "OLLAMA_MODELS": str(folder / "models")}
        with started(binary, address, folder / "log", environment), Client(address) as client:
            for file_type, path in files_of(run).items():
                cells = measure_file(client, path, questions, adapter.facts.system)
                print(f"| {version} | {file_type} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure every built version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/medical"))
    parser.add_argument("--version", action="append")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print("Limits of the means: " + "; ".join(f"{t} {largest_means(t)}" for t in ("F16", "BF16", "Q8_0", "Q4_K_M")))
    print("| Ollama | file | prompts | " + " | ".join(ENDPOINTS) + " |\n|" + "---|" * (3 + len(ENDPOINTS)))
    for version in options.version or built_versions():
        measure_version(version, options.run)


if __name__ == "__main__":
    main()
