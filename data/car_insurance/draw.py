"""Draws the sample workbook again: `python -m data.car_insurance.draw`, in the project's folder."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data.car_insurance import scenes
from data.car_insurance.glyphs import LETTERS
from data.car_insurance.workbook import KINDS, Picture, write_workbook

WORKBOOK = Path(__file__).parent / "car_insurance.xlsx"
_ROWS = {"light": 160, "mileage": 40, "plate": 20, "damage": 20}
_SIZES = ((280, 196), (308, 224), (336, 224), (420, 280), (350, 250), (301, 211), (224, 308), (196, 280))
_QUESTIONS = {
    "light": ("Which warning light is on?", "哪个警告灯亮了?"),
    "mileage": ("What is the mileage?", "里程是多少?"),
    "plate": ("What is on the plate?", "车牌号是什么?"),
    "damage": ("What is damaged?", "哪里损坏了?"),
}
_LIGHTS = {
    "oil": ("It is red: the oil warning light.", "是红色：机油警告灯。"),
    "battery": ("It is yellow: the battery warning light.", "是黄色：蓄电池警告灯。"),
    "engine": ("It is orange: the engine warning light.", "是橙色：发动机警告灯。"),
    "coolant": ("It is blue: the coolant warning light.", "是蓝色：冷却液警告灯。"),
}
_DAMAGES = {
    "scratch": ("The door is scratched.", "车门有划痕。"),
    "dent": ("The bumper is dented.", "保险杠凹陷。"),
    "window": ("The window is cracked.", "车窗开裂。"),
    "headlight": ("The headlight is broken.", "大灯破损。"),
}


class Sample(NamedTuple):
    """A picture, and what is asked and answered about it, in one language."""

    image: Image.Image
    """RGB."""
    question: str
    answer: str


def samples() -> Iterator[Sample]:
    """The rows of the workbook, in its order: always the same ones, as many in English as in Chinese."""
    chance = random.Random(13)  # noqa: S311 - pictures, no secrets
    about = [(topic, number) for topic, count in _ROWS.items() for number in range(count)]
    chance.shuffle(about)
    for topic, number in about:
        language, turn = number % 2, number // 2
        image, answers = _drawn(topic, turn, chance)
        yield Sample(image, _QUESTIONS[topic][language], answers[language])


def _drawn(topic: str, turn: int, chance: random.Random) -> tuple[Image.Image, tuple[str, str]]:
    size = chance.choice(_SIZES)
    if topic == "plate":
        number = f"{chance.choice(LETTERS)}{chance.choice(LETTERS)}-{chance.randint(1000, 9999)}"
        return scenes.plate(size, chance, number), (f"The plate is {number}.", f"车牌号是{number}。")
    if topic == "damage":
        damage = list(_DAMAGES)[turn % len(_DAMAGES)]
        return scenes.car(size, chance, damage), _DAMAGES[damage]
    mileage = 10_000 * (1 + turn % 9) + chance.randint(0, 9_999)
    if topic == "mileage":
        return scenes.cluster(size, chance, mileage), (f"The mileage is {mileage} km.", f"里程是{mileage}公里。")
    light = list(_LIGHTS)[turn % len(_LIGHTS)]
    return scenes.cluster(size, chance, mileage, light), _LIGHTS[light]


def draw(file: Path) -> None:
    """Write the workbook: the three kinds of picture take turns, row by row."""
    rows = [
        (Picture(_png(sample.image), sample.image.size, KINDS[number % len(KINDS)]), sample.question, sample.answer)
        for number, sample in enumerate(samples())
    ]
    write_workbook(file, ("photo", "question", "answer"), rows)


def _png(image: Image.Image) -> bytes:
    packed = io.BytesIO()
    image.save(packed, "PNG", optimize=True)
    return packed.getvalue()


if __name__ == "__main__":
    draw(WORKBOOK)
