"""Pieces of Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown; `|` and line ends in cells are made harmless."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(inline(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def inline(text: str) -> str:
    """A text on one line."""
    return " ".join(text.split())
