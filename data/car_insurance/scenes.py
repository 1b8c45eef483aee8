"""What the pictures show: an instrument cluster, a number plate, a car with a damage. Drawn twice as large, then halved."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from data.car_insurance.glyphs import width_of, write

Colour = tuple[int, int, int]
Size = tuple[int, int]
Box = tuple[float, float, float, float]

_FACTOR = 2
_PALE: Colour = (200, 204, 208)
_BLACK: Colour = (8, 8, 10)


def cluster(size: Size, chance: random.Random, mileage: int, light: str = "") -> Image.Image:
    """An instrument cluster.

    Args:
        size: width and height in pixels.
        mileage: in kilometres; shown large where no light is on.
        light: a key of `LIGHTS`; empty: none is on.

    Raises:
        KeyError: an unknown light.
    """
    shade = chance.randint(20, 44)
    image, draw, (width, height) = _canvas(size, (shade, shade, shade + chance.randint(2, 12)))
    short, long = min(width, height), max(width, height)
    for at in (0.5 - 0.47 * short / long, 0.5 + 0.47 * short / long):
        x, y = (at * width, 0.45 * height) if width >= height else (0.5 * width, at * height)
        _dial(draw, x, y, 0.36 * short, chance)
    x = width * (0.5 + chance.uniform(-0.04, 0.04))
    y = height * ((0.42 if light else 0.5) + chance.uniform(-0.05, 0.05))
    if light:
        half = short * chance.uniform(0.24, 0.29)
        draw.rectangle((x - 1.25 * half, y - 1.2 * half, x + 1.25 * half, y + 1.2 * half), fill=_BLACK)
        LIGHTS[light](draw, x, y, half)
        _odometer(draw, mileage, width / 2, 0.9 * height, 0.011 * width)
    else:
        _odometer(draw, mileage, x, y, 0.0165 * width)
    return _halved(image)


def plate(size: Size, chance: random.Random, text: str) -> Image.Image:
    """The back of a car with its number plate."""
    image, draw, (width, height) = _canvas(size, _paint(chance))
    for x in (0.08 * width, 0.78 * width):
        draw.rectangle((x, 0.12 * height, x + 0.14 * width, 0.3 * height), fill=(150, 16, 20))
    dot = width * chance.uniform(0.0145, 0.0165)
    x, y = width * (0.5 + chance.uniform(-0.03, 0.03)), height * (0.6 + chance.uniform(-0.06, 0.06))
    half, board = width_of(text, dot) / 2, chance.choice([(20, 60, 160), (240, 240, 236), (236, 196, 40)])
    draw.rectangle((x - half - 4 * dot, y - 6.5 * dot, x + half + 4 * dot, y + 6.5 * dot), fill=board)
    write(draw, text, x - half, y - 3.5 * dot, dot, _PALE if board[0] < 100 else _BLACK)
    return _halved(image)


def car(size: Size, chance: random.Random, damage: str) -> Image.Image:
    """A car from its side.

    Args:
        damage: scratch, dent, window or headlight.
    """
    sky = chance.randint(190, 230)
    image, draw, (width, height) = _canvas(size, (sky - 20, sky, 240))
    draw.rectangle((0, 0.78 * height, width, height), fill=(96, 98, 100))
    unit, left, top, paint = 0.92 * width, 0.04 * width, 0.78 * height - 0.4 * width, _paint(chance)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(left + x * unit, top + y * unit) for x, y in points]

    draw.polygon(at((0.2, 0.2), (0.32, 0.04), (0.64, 0.04), (0.78, 0.2)), fill=paint)
    draw.polygon(at((0, 0.22), (0.04, 0.19), (0.96, 0.19), (1, 0.25), (1, 0.37), (0, 0.37)), fill=paint)
    glass = (176, 208, 224)
    draw.polygon(at((0.25, 0.19), (0.34, 0.07), (0.47, 0.07), (0.47, 0.19)), fill=glass)
    draw.polygon(at((0.5, 0.19), (0.5, 0.07), (0.62, 0.07), (0.72, 0.19)), fill=glass)
    draw.line(at((0.485, 0.2), (0.485, 0.36)), fill=_BLACK, width=round(0.006 * unit))
    for x in (0.2, 0.8):
        draw.ellipse(at((x - 0.085, 0.3), (x + 0.085, 0.47)), fill=_BLACK)
        draw.ellipse(at((x - 0.04, 0.345), (x + 0.04, 0.425)), fill=_PALE)
    lamp = (40, 40, 44) if damage == "headlight" else (255, 244, 180)
    draw.ellipse(at((0.93, 0.22), (0.995, 0.285)), fill=lamp)
    thick = round(0.008 * unit)
    if damage == "headlight":
        draw.line(at((0.935, 0.23), (0.96, 0.26), (0.955, 0.275), (0.99, 0.28)), fill=_PALE, width=thick)
    elif damage == "window":
        for x, y in ((0.3, 0.15), (0.36, 0.08), (0.44, 0.09), (0.45, 0.17), (0.36, 0.18)):
            draw.line(at((0.39, 0.13), (x, y)), fill=_BLACK, width=thick)
    elif damage == "scratch":
        for shift in (0.0, 0.025, 0.05):
            draw.line(at((0.32, 0.25 + shift), (0.62, 0.22 + shift)), fill=(250, 250, 250), width=thick)
    elif damage == "dent":
        draw.ellipse(at((-0.01, 0.24), (0.1, 0.36)), fill=tuple(channel // 3 for channel in paint))
        draw.ellipse(at((0.01, 0.26), (0.075, 0.33)), fill=tuple(channel // 2 for channel in paint))
    else:
        raise KeyError(damage)
    return _halved(image)


def _oil(draw: ImageDraw.ImageDraw, x: float, y: float, half: float) -> None:
    red, thick = (236, 20, 24), round(0.16 * half)
    body = [(-0.5, -0.15), (0.35, -0.15), (0.6, 0.1), (0.3, 0.55), (-0.5, 0.55)]
    draw.polygon([(x + a * half, y + b * half) for a, b in body], fill=red)
    draw.line([(x + 0.4 * half, y + 0.25 * half), (x + 0.98 * half, y - 0.25 * half)], fill=red, width=thick)
    draw.line([(x - 0.45 * half, y), (x - 0.95 * half, y - 0.3 * half)], fill=red, width=thick)
    draw.rectangle((x - 0.25 * half, y - 0.42 * half, x + 0.1 * half, y - 0.1 * half), fill=red)
    draw.ellipse((x + 0.82 * half, y + 0.05 * half, x + 1.02 * half, y + 0.4 * half), fill=red)


def _battery(draw: ImageDraw.ImageDraw, x: float, y: float, half: float) -> None:
    yellow = (255, 236, 30)
    draw.rectangle((x - 0.95 * half, y - 0.5 * half, x + 0.95 * half, y + 0.7 * half), fill=yellow)
    for shift in (-0.6, 0.6):
        at = x + shift * half
        draw.rectangle((at - 0.2 * half, y - 0.75 * half, at + 0.2 * half, y - 0.4 * half), fill=yellow)
        draw.rectangle((at - 0.25 * half, y + 0.02 * half, at + 0.25 * half, y + 0.16 * half), fill=_BLACK)
    at = x + 0.6 * half
    draw.rectangle((at - 0.07 * half, y - 0.16 * half, at + 0.07 * half, y + 0.34 * half), fill=_BLACK)


def _engine(draw: ImageDraw.ImageDraw, x: float, y: float, half: float) -> None:
    orange = (255, 128, 0)
    body = [(-0.6, -0.3), (-0.3, -0.5), (0.4, -0.5), (0.6, -0.2), (0.6, 0.45), (0.3, 0.7), (-0.35, 0.7), (-0.6, 0.4)]
    draw.polygon([(x + a * half, y + b * half) for a, b in body], fill=orange)
    for box in ((-0.35, -0.85, 0.35, -0.7), (-0.08, -0.8, 0.08, -0.4), (-0.95, -0.25, -0.8, 0.4), (-0.9, 0.0, -0.5, 0.15),
                (0.55, 0.0, 0.8, 0.2), (0.75, -0.3, 0.97, 0.55)):  # fmt: skip
        draw.rectangle(_box(x, y, half, box), fill=orange)


def _coolant(draw: ImageDraw.ImageDraw, x: float, y: float, half: float) -> None:
    blue, thick = (40, 120, 255), round(0.14 * half)
    draw.ellipse(_box(x, y, half, (-0.3, 0.0, 0.3, 0.6)), fill=blue)
    draw.rectangle(_box(x, y, half, (-0.11, -0.95, 0.11, 0.3)), fill=blue)
    for shift in (-0.85, -0.55, -0.25):
        draw.rectangle(_box(x, y, half, (0.0, shift, 0.45, shift + 0.14)), fill=blue)
    for side in (-1, 1):
        wave = [(0.45 * side, 0.75), (0.6 * side, 0.65), (0.8 * side, 0.85), (0.98 * side, 0.75)]
        draw.line([(x + a * half, y + b * half) for a, b in wave], fill=blue, width=thick)
    draw.line([(x - 0.3 * half, y + 0.85 * half), (x + 0.3 * half, y + 0.85 * half)], fill=blue, width=thick)


LIGHTS: dict[str, Callable[[ImageDraw.ImageDraw, float, float, float], None]] = {
    "oil": _oil, "battery": _battery, "engine": _engine, "coolant": _coolant,
}  # fmt: skip
"""A warning light's name → what draws it: (draw, its middle, half of its side)."""


def _box(x: float, y: float, half: float, box: Box) -> Box:
    return x + box[0] * half, y + box[1] * half, x + box[2] * half, y + box[3] * half


def _dial(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, chance: random.Random) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(14, 14, 16), outline=_PALE, width=3)
    draw.arc(_box(x, y, 0.85 * radius, (-1, -1, 1, 1)), 135, 405, fill=_PALE, width=round(0.06 * radius))
    start = chance.randint(140, 380)
    draw.pieslice(_box(x, y, 0.75 * radius, (-1, -1, 1, 1)), start, start + 5, fill=(230, 230, 230))


def _odometer(draw: ImageDraw.ImageDraw, mileage: int, x: float, y: float, dot: float) -> None:
    text = f"{mileage} km"
    half = width_of(text, dot) / 2
    draw.rectangle((x - half - 2 * dot, y - 5.5 * dot, x + half + 2 * dot, y + 5.5 * dot), fill=_BLACK)
    write(draw, text, x - half, y - 3.5 * dot, dot, (226, 232, 236))


def _paint(chance: random.Random) -> Colour:
    return chance.choice([(170, 30, 36), (40, 84, 150), (60, 120, 84), (120, 124, 130), (180, 140, 60)])


def _canvas(size: Size, colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw, Size]:
    large = (size[0] * _FACTOR, size[1] * _FACTOR)
    image = Image.new("RGB", large, colour)
    return image, ImageDraw.Draw(image), large


def _halved(image: Image.Image) -> Image.Image:
    return image.reduce(_FACTOR)
