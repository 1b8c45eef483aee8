"""Does llama.cpp load a file without taking the process down? Asked in a process of its own: `python -m toolkit.parity.probe`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from toolkit.errors import DataError, ExternalToolError
from toolkit.models.gguf_file import read_gguf

PATIENCE_SECONDS = 120.0
SLOWEST_BYTES_PER_SECOND = 20e6
"""A disk or a network folder that gives less is not waited for."""


def probe(path: Path) -> None:
    """Read a GGUF's header here; then load it and decode one token in a child, which may die of it.

    Raises:
        DataError: no GGUF, damaged, truncated, or one that llama.cpp cannot load or run.
        ExternalToolError: it takes too long.
    """
    header = read_gguf(path)
    if not header.tensors:
        raise DataError(f"{path} holds no weights, only {header.architecture or 'metadata'}", "Name the model's file.")
    patience = PATIENCE_SECONDS + path.stat().st_size / SLOWEST_BYTES_PER_SECOND
    command = [sys.executable, "-m", "toolkit.parity.probe", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise ExternalToolError(
            f"llama.cpp did not load {path} and decode one token within {patience:.0f} s",
            "Try a smaller file or another disk; tune2ollama doctor says whether llama.cpp decodes here.",
        ) from error
    if done.returncode == 0:
        return
    if done.returncode < 0:
        raise DataError(
            f"llama.cpp dies of {path} (signal {-done.returncode}): a {header.architecture} of {len(header.tensors)} tensors",
            "The file is damaged, or made for another llama.cpp: convert it again.",
        )
    said = done.stderr.strip().splitlines()
    try:
        told = json.loads(said[-1])
        raise DataError(str(told["message"]), str(told["hint"]))
    except (IndexError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{path} cannot be loaded: {said[-1] if said else 'no reason given'}", "Convert it again."
        ) from None


def main(path: Path) -> int:
    """The child: 0 when one token was decoded, 3 with the reason as JSON on stderr."""
    from toolkit.parity.candidate import Candidate

    try:
        with Candidate(path) as candidate, candidate.slots(1, 8) as slots:
            ids = candidate.tokenize("a", add_special=True) or [0]
            slots.logits(0, [*ids, ids[-1]], len(ids))
    except (DataError, ExternalToolError) as error:
        print(json.dumps({"message": error.message, "hint": error.hint}), file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
