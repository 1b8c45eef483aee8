"""Where along an answer an export differs: the KL of every token of two goldens, for the certificate's page."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.parity.checks.logits import Positions
from toolkit.recipe.prompts_file import asked

SHOWN = 2
"""Goldens: the first, which is the same for every file, and the one that this file differs most from."""
LONGEST = 160
"""Tokens of one golden at most."""


def heat(positions: Positions, rows: list[dict[str, Any]], piece: Callable[[int], bytes]) -> list[dict[str, Any]]:
    """The KL along two goldens, small enough for a certificate.

    Args:
        positions: of all goldens, in the order of `rows`.
        rows: of golden.jsonl.
        piece: the bytes that a token stands for.

    Returns:
        For each golden {golden, prompt, tokens, kl, flips, left_out}. golden: its index; prompt: the last question of its
        conversation; tokens: their texts; kl: nats, to three digits; flips: index → what the export would have said there,
        in bytes ("<F0 9F>") where that is no whole character; left_out: tokens beyond the longest that is shown.
    """
    starts = np.cumsum([0] + [len(row["completion_ids"]) for row in rows])
    spans = [positions.kl[a:b] for a, b in itertools.pairwise(starts)]
    return [_one(golden, rows[golden], spans[golden], positions, piece) for golden in chosen(spans)]


def chosen(spans: list[list[float]]) -> list[int]:
    """The first golden, and of the others the one with the largest mean KL."""
    others = sorted(range(1, len(spans)), key=lambda i: -sum(spans[i]) / max(len(spans[i]), 1))
    return [0, *others[: SHOWN - 1]]


def _one(
    golden: int, row: dict[str, Any], kl: list[float], positions: Positions, piece: Callable[[int], bytes]
) -> dict[str, Any]:
    flips = {
        str(flip.position): _told(piece(flip.export))
        for flip in positions.flips
        if flip.golden == golden and flip.position < LONGEST
    }
    return {
        "golden": golden,
        "prompt": asked(row["messages"]),
        "tokens": token_texts([piece(token) for token in row["completion_ids"][:LONGEST]]),
        "kl": [float(f"{value:.3g}") for value in kl[:LONGEST]],
        "flips": flips,
        "left_out": max(0, len(kl) - LONGEST),
    }


def _told(piece: bytes) -> str:
    try:
        return piece.decode()
    except UnicodeDecodeError:  # as text, all half characters look alike
        return f"<{piece.hex(' ').upper()}>"


def token_texts(pieces: list[bytes]) -> list[str]:
    """Texts of tokens that follow each other; joined, they are the whole text.

    A character may be spelled with several tokens (Chinese often is): it goes to the last of them, the others are empty.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(piece) for piece in pieces]
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts
