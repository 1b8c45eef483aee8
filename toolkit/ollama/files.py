"""The files that go to Ollama."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, CertificateFacts

if TYPE_CHECKING:
    from toolkit.models.pictures import PictureRules


MISSING = "files that are missing in Ollama"
"""A measure of the certificate: a model that sees is two files."""


@dataclass(frozen=True)
class ServedFiles:
    """A GGUF file, and the projector of a model that sees."""

    gguf: Path
    mmproj: Path | None = None
    pictures: PictureRules | None = None
    """What the model was shown of pictures in training; None: it was trained on texts."""

    def named_from(self, folder: Path) -> tuple[str, ...]:
        """As a Modelfile in a folder names them, each in a FROM line of its own."""
        files = [self.gguf, *([self.mmproj] if self.mmproj else [])]
        paths = [Path(os.path.relpath(file, folder)).as_posix() for file in files]
        return tuple(path if path.startswith("..") else f"./{path}" for path in paths)


def certified_files(certificate: Artifact[CertificateFacts], trained: AdapterFacts) -> ServedFiles:
    """What a passing certificate lets go to Ollama."""
    facts = certificate.facts
    mmproj = certificate.folder / facts.served_mmproj if facts.served_mmproj else None
    return ServedFiles(certificate.folder / facts.served_file, mmproj, trained.pictures)
