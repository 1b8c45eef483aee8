"""A certificate's summary inside the GGUF file that it lets go: whoever gets the file sees what was found.

A claim, no proof: anybody can write *pass* into a file. So the summary names the SHA-256 of the file without it, which
can be worked out from the file itself: a summary that was copied into another file, or whose file was changed, does not fit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.models.gguf_file import read_gguf
from toolkit.models.gguf_metadata import bytes_with_texts, copy_with_texts
from toolkit.parity.certificate import Measure
from toolkit.run.artifacts import file_sha256

VERDICT, SCHEMA, JUDGED, FOUND = (f"tune2ollama.certificate.{key}" for key in ("verdict", "schema", "sha256", "found"))
KEYS = (VERDICT, SCHEMA, JUDGED, FOUND)
SUMMARIZED = ("strength in the weights", "strength", "mean KL", "top-1 agreement but for near ties", "perplexity ratio")
"""Measures of the served file that a summary tells."""


class Summary(NamedTuple):
    """What a file says was found of it."""

    verdict: str
    found: str
    fits: bool
    """Whether it was found of this very file."""


def served_measures(certificate: dict[str, Any]) -> list[str]:
    """The served file's main numbers, each with its limit; none when no file is served."""
    subjects = [s for s in certificate["subjects"] if s["served"] and s["kind"] != "served"]
    measures = [Measure.model_validate(m) for s in subjects[:1] for check in s["checks"] for m in check["measures"]]
    return [measure.told() for measure in measures if measure.name in SUMMARIZED]


def write_summary(
    judged: Path, out: Path, certificate: dict[str, Any], tick: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Copy the judged file with the certificate's summary in its metadata.

    Args:
        tick: is told the bytes of each piece that was written.

    Returns:
        `file` (its folder and name), `sha256` and `bytes` of the copy.
    """
    reference = certificate["reference"]
    asked = f"{reference['prompts']} goldens, {reference['positions']} positions"
    texts: dict[str, str | None] = {
        VERDICT: certificate["verdict"],
        SCHEMA: certificate["schema"],
        JUDGED: file_sha256(judged),
        FOUND: f"{certificate['message']}; {'; '.join([*served_measures(certificate), asked])}",
    }
    copy_with_texts(judged, out, texts, tick=tick)
    folder = out.parent.name.removesuffix(".partial")  # a stage's folder gets its name when it is finished
    return {"file": f"{folder}/{out.name}", "sha256": file_sha256(out), "bytes": out.stat().st_size}


def read_summary(gguf: Path) -> Summary | None:
    """The summary in a file; None when it has none.

    Raises:
        DataError: no GGUF, or damaged.
    """
    header = read_gguf(gguf)
    if any(not isinstance(header.metadata.get(key), str) for key in KEYS):
        return None
    digest = hashlib.sha256()
    for piece in bytes_with_texts(gguf, dict.fromkeys(KEYS), header):
        digest.update(piece)
    found = header.metadata
    return Summary(found[VERDICT], found[FOUND], digest.hexdigest() == found[JUDGED])
