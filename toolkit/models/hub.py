"""Models and data sets of the Hugging Face hub: what is in its cache here, what is there, and fetching it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from toolkit.errors import ExternalToolError, UsageError

Kind = Literal["model", "dataset"]
_CALLED = {"model": "model", "dataset": "data set"}
_INSTEAD = {"model": "name a local folder as base", "dataset": "download its files and point data.path at them"}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def snapshot(repository: str, revision: str | None) -> Path | None:
    """The folder in the hub's cache, which may be incomplete; its name is the commit.

    Without a commit in the name it stays at the one that was first seen here.
    """
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    place = cache / f"models--{repository.replace('/', '--')}"
    pinned = place / "refs" / (revision or "main")
    commit = revision if revision and _COMMIT.fullmatch(revision) else None
    if commit is None and pinned.is_file():
        commit = pinned.read_text(encoding="utf-8").strip()
    folder = place / "snapshots" / commit if commit else None
    return folder if folder and folder.is_dir() else None


def file_names(repository: str, revision: str | None) -> list[str]:
    """Names of the files on the hub. Raises as `fetch`."""
    with _translated(repository, revision, "model"):
        from huggingface_hub import HfApi

        return [file.rfilename for file in HfApi().model_info(repository, revision=revision).siblings or []]


def fetch(repository: str, revision: str | None, wanted: list[str], kind: Kind = "model") -> Path:
    """Download the files whose names match `wanted`, unless they are here; gives the folder, whose name is the commit.

    Programs are left there, whatever matches. Of a commit that is here the hub is not asked, but where one of these files is
    missing.

    Raises:
        UsageError: no such model or data set, or none that this user may see.
        ExternalToolError: the hub does not answer, or its client is not installed.
    """
    with _translated(repository, revision, kind):
        from huggingface_hub import snapshot_download

        found = snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=wanted, ignore_patterns=["*.py"]
        )
        return Path(found)


def card(folder: Path) -> dict[str, Any]:
    """What the card of a model or data set says in its head: YAML between two lines of dashes (the hub's format)."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if match := re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL):
        with contextlib.suppress(yaml.YAMLError):
            head = yaml.safe_load(match[1])
            return head if isinstance(head, dict) else {}
    return {}


@contextlib.contextmanager
def _translated(repository: str, revision: str | None, kind: Kind) -> Iterator[None]:
    try:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise ExternalToolError(f"the hub's client is needed to get {repository}", "Run: make setup") from error
    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UsageError(
            f"the hub has no {_CALLED[kind]} {repository}{f'@{revision}' if revision else ''} that it shows you",
            f"Check the spelling; a {_CALLED[kind]} that is private, or has a licence to accept, needs: hf auth login",
        ) from error
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExternalToolError(
            f"{repository} could not be fetched from the hub: {reason}",
            f"Check the network and run again: the download goes on where it stopped. Or {_INSTEAD[kind]}.",
        ) from error
