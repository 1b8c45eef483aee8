"""A fault put in, and what the certificate makes of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.table import Fault


@dataclass(frozen=True)
class Row:
    """A line of the table of faults."""

    fault: Fault
    certificate: dict[str, Any]
    alone: dict[str, Any] | None
    """What is said of the served file alone; None: not asked."""

    @property
    def blame(self) -> dict[str, Any]:
        return dict(self.certificate["blame"] or {})

    @property
    def right(self) -> bool:
        """Whether the fault is refused and blamed on its link, in words that name it."""
        return all(names(found, self.fault) for found in (self.certificate, self.alone) if found is not None)


def names(certificate: dict[str, Any], fault: Fault) -> bool:
    """Whether a certificate fails, and names the fault's link and the fault."""
    blame = certificate["blame"] or {}
    said = fault.says in certificate["message"] and fault.says in blame.get("message", "")
    return certificate["verdict"] == "fail" and blame.get("link") == fault.link and said


def prove(fault: Fault, folder: Path, alone: bool = True) -> Row:
    """Put the fault into its clean chain and judge the whole chain, and the served file alone."""
    broken = fault.inject(folder / "broken")
    try:
        certificate = broken.certificate(folder / "verify")
        return Row(fault, certificate, broken.certificate_alone() if alone and fault.alone else None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
