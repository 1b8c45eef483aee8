"""Bars of work that is under way."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def passing_bar(*columns: ProgressColumn) -> Progress:
    """A bar on stderr that is gone when its work is done; where no terminal shows it, nothing: rich would leave an empty line.

    Args:
        columns: what it shows; rich's usual ones where none are named.
    """
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
