"""Files that are taken for pictures and are of no kind that is read here, told from how they begin."""

from __future__ import annotations

import re

BEGINNING = 1024
"""Bytes of a file that tell its kind."""
_BEGINNINGS = {
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "SVG": rb"(?:\xef\xbb\xbf)?\s*(?:<[?!][^>]*>\s*)*<(?:\w+:)?svg",
    "PDF": rb"%PDF",
    "HEIC": rb".{4}ftyp(?:hei|hev|mif1|msf1)",
    "AVIF": rb".{4}ftypavi",
    "PSD": rb"8BPS",
    "WMF": rb"\xd7\xcd\xc6\x9a|\x01\x00\x09\x00",
    "EMF": rb"\x01\x00\x00\x00.{36} EMF",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  ",
    "ICO": rb"\x00\x00\x01\x00",
    "gzip": rb"\x1f\x8b",
    "HTML": rb"\s*<(?:![Dd][Oo][Cc][Tt][Yy][Pp][Ee]\s+)?[Hh][Tt][Mm][Ll]",
    "Git LFS pointer": rb"version https://git-lfs",
}
_COMPILED = {kind: re.compile(beginning, re.DOTALL) for kind, beginning in _BEGINNINGS.items()}


def other_kind(raw: bytes) -> str:
    """What a file is instead of a picture that is read here; empty: nothing that is known."""
    head = raw[:BEGINNING]
    return next((kind for kind, beginning in _COMPILED.items() if beginning.match(head)), "")
