"""Letters of five by seven dots, so that what is drawn depends on no font of a machine."""

from __future__ import annotations

from PIL import ImageDraw

_DOTS = {
    "0": (14, 17, 19, 21, 25, 17, 14), "1": (4, 12, 4, 4, 4, 4, 14), "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14), "4": (2, 6, 10, 18, 31, 2, 2), "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14), "7": (31, 1, 2, 4, 8, 8, 8), "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12), "A": (14, 17, 17, 31, 17, 17, 17), "B": (30, 17, 17, 30, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31), "H": (17, 17, 17, 31, 17, 17, 17), "K": (17, 18, 20, 24, 20, 18, 17),
    "L": (16, 16, 16, 16, 16, 16, 31), "T": (31, 4, 4, 4, 4, 4, 4), "X": (17, 17, 10, 4, 10, 17, 17),
    "k": (16, 16, 18, 20, 24, 20, 18), "m": (0, 0, 26, 21, 21, 21, 21), "-": (0, 0, 0, 31, 0, 0, 0),
    " ": (0, 0, 0, 0, 0, 0, 0),
}  # fmt: skip
"""Character → its rows from the top, the highest of five bits on the left."""
LETTERS = "ABEHKLTX"


def width_of(text: str, dot: float) -> float:
    """How wide a text is; each character takes six dots, the last one five."""
    return (6 * len(text) - 1) * dot


def write(
    draw: ImageDraw.ImageDraw, text: str, left: float, top: float, dot: float, colour: tuple[int, int, int]
) -> None:
    """Draw a text, seven dots high.

    Args:
        left, top, dot: in pixels.

    Raises:
        KeyError: a character that is not drawn here.
    """
    for place, character in enumerate(text):
        for row, bits in enumerate(_DOTS[character]):
            for column in range(5):
                if bits >> (4 - column) & 1:
                    x, y = left + (6 * place + column) * dot, top + row * dot
                    draw.rectangle((round(x), round(y), round(x + dot) - 1, round(y + dot) - 1), fill=colour)
