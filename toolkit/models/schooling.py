"""How the small base that sees learns to see (see `toolkit.models.small_vision`): it names the colour of a shape.

A random tower cannot be tuned by an adapter on a few hundred photos. So before it is a base it is shown some thousand coloured
shapes, most of them in pictures of a few dozen tokens, which cost a twentieth of what a server shows. First the tower alone:
each of its tokens is to be the embedding of the word for the colour that it covers. Then the language model, which finds the
token that is no background, and says its word; asked for a thing, it says one that has this colour, so that an adapter finds the
way from what is seen to a noun laid out. Nothing of a sample task is in it, and the embedding stays random.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from toolkit.models.pictures import PictureRules, pixels_of

LOOKING, SAYING = 150, 300
"""Steps of the tower, and of the language model."""
SMALLEST, FIRST, LARGEST, TOKENS = 4, 9, 38, 480
"""Sides of pictures, in tokens: the smallest; the largest at first, and in the end, when it is what a server shows. And how many
tokens a step has, in pictures of one size: large ones teach less a second, so that they come late."""
LOOKING_RATE, SAYING_RATE = 3e-3, 2e-3
OTHER_WORDS = 4000
"""Tokens that an answer's are told from; all others of a random embedding are as these."""
NOTHING = "."
"""What stands for the background."""
_COLOURS = {
    "red": ("红", (225, 30, 30)), "yellow": ("黄", (250, 230, 40)), "orange": ("橙", (250, 130, 20)),
    "blue": ("蓝", (40, 110, 245)), "green": ("绿", (40, 190, 70)), "pink": ("粉", (250, 150, 190)),
}  # fmt: skip
_THINGS = {
    "red": ("tomato", "番茄"), "yellow": ("lemon", "柠檬"), "orange": ("carrot", "胡萝卜"),
    "blue": ("sea", "大海"), "green": ("grass", "草地"), "pink": ("rose", "玫瑰"),
}  # fmt: skip
_QUESTIONS = (
    (("Which colour is it?", "It is {}."), ("是什么颜色?", "是{}色。")),
    (("What has this colour?", "It is {}: the {}'s colour."), ("这是什么的颜色?", "是{}色：{}的颜色。")),
)

stderr = Console(stderr=True)


class Lesson(NamedTuple):
    """A picture with a question and its answer."""

    image: Image.Image
    covered: Image.Image
    """Gray, of the picture's size: white where the shape is."""
    colour: str
    question: str
    answer: str
    picture_first: bool
    """Before the question: servers do it either way."""


def lesson(chance: random.Random, size: tuple[int, int]) -> Lesson:
    """A coloured shape among gray things.

    Args:
        size: width and height in pixels.
    """
    width, height = size
    shade = chance.randint(0, 230)
    image = Image.new("RGB", size, tuple(max(0, shade + chance.randint(-12, 12)) for _ in range(3)))
    draw, short = ImageDraw.Draw(image), min(size)
    for _ in range(chance.randint(0, 4)):
        gray = (chance.randint(0, 255),) * 3
        x, y, half = chance.uniform(0, width), chance.uniform(0, height), short * chance.uniform(0.05, 0.4)
        box = (x - half, y - half, x + half, y + half)
        if chance.random() < 0.5:
            draw.ellipse(box, outline=gray, width=chance.randint(1, 8))
        else:
            draw.rectangle(box, fill=gray)
    half = short * chance.uniform(0.14, 0.34)
    x, y = chance.uniform(half, width - half), chance.uniform(half, height - half)
    if chance.random() < 0.5:
        draw.rectangle((x - 1.2 * half, y - 1.2 * half, x + 1.2 * half, y + 1.2 * half), fill=(8, 8, 10))
    colour, language = chance.choice(list(_COLOURS)), chance.randrange(2)
    rgb = tuple(min(255, max(0, channel + chance.randint(-12, 12))) for channel in _COLOURS[colour][1])
    covered = Image.new("L", size)
    shape = chance.randrange(4)
    _draw(draw, shape, x, y, half, rgb)
    _draw(ImageDraw.Draw(covered), shape, x, y, half, 255)
    question, answer = _QUESTIONS[chance.randrange(2)][language]
    word = colour if language == 0 else _COLOURS[colour][0]
    return Lesson(
        image, covered, colour, question, answer.format(word, _THINGS[colour][language]), chance.random() < 0.5
    )


def _draw(draw: Any, shape: int, x: float, y: float, half: float, fill: Any) -> None:
    thin = half / 3
    match shape:
        case 0:
            draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)
        case 1:
            draw.rectangle((x - half, y - half, x + half, y + half), fill=fill)
        case 2:
            draw.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=fill)
        case _:
            draw.rectangle((x - half, y - thin, x + half, y + thin), fill=fill)
            draw.rectangle((x - thin, y - half, x + thin, y + half), fill=fill)


def lessons(chance: random.Random, side: int, steps: int) -> Iterator[list[Lesson]]:
    """Some for each step, in pictures of one size; `side`: of a token, in pixels."""
    for step in range(steps):
        largest = FIRST * (LARGEST / FIRST) ** (step / steps)
        across = round(math.exp(chance.uniform(math.log(SMALLEST), math.log(largest))))
        down = max(SMALLEST, round(across * chance.uniform(0.6, 1)))
        size = (side * across, side * down) if chance.random() < 0.7 else (side * down, side * across)
        yield [lesson(chance, size) for _ in range(max(1, TOKENS // (across * down)))]


def school(model: Any, tokenizer: Any, rules: PictureRules | None, seed: int = 1) -> None:
    """Train everything of a fresh model but its embedding.

    Args:
        tokenizer: with the model's chat template.
        rules: of its pictures; their fewest tokens do not count here.
    """
    if rules is None:
        raise AssertionError("a model that sees has rules for pictures")
    small = rules.model_copy(update={"min_tokens": 1})
    chance = random.Random(seed)  # noqa: S311 - pictures, no secrets
    model.train()
    model.requires_grad_(False)
    _look(model, tokenizer, small, lessons(chance, rules.patch, LOOKING))
    _say(model, tokenizer, small, lessons(chance, rules.patch, SAYING))
    model.requires_grad_(True).eval()


def _look(model: Any, tokenizer: Any, rules: PictureRules, taught: Iterator[list[Lesson]]) -> None:
    import torch

    words = model.get_input_embeddings().weight
    size = words.var().item()
    tower = model.model.visual
    tower.requires_grad_(True)
    for batch in _steps(tower, LOOKING, LOOKING_RATE, "schooling the small base: it looks", taught):
        shown = _shown(rules, batch)
        found = tower(shown["pixel_values"], grid_thw=shown["image_grid_thw"]).pooler_output
        nothing = words[_token(tokenizer, NOTHING)]
        wanted = []
        for one in batch:
            share = torch.tensor(list(one.covered.reduce(rules.patch).tobytes())) / 255
            wanted.append(nothing + share[:, None] * (words[_token(tokenizer, " " + one.colour)] - nothing))
        loss: Any = torch.nn.functional.mse_loss(found, torch.cat(wanted)) / size
        loss.backward()
    tower.requires_grad_(False)


def _say(model: Any, tokenizer: Any, rules: PictureRules, taught: Iterator[list[Lesson]]) -> None:
    import torch

    words = model.get_input_embeddings().weight
    others = torch.randperm(len(words), generator=torch.Generator().manual_seed(1))[:OTHER_WORDS]
    reader = model.model.language_model
    for name, parameter in reader.named_parameters():
        parameter.requires_grad_("embed_tokens" not in name)
    for batch in _steps(reader, SAYING, SAYING_RATE, "schooling the small base: it says what it sees", taught):
        ids, begins, lengths = _written(tokenizer, rules, batch)
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        hidden = model.model(
            input_ids=ids, attention_mask=mask.long(), mm_token_type_ids=(ids == rules.image_token_id).int(),
            use_cache=False, **_shown(rules, batch),
        ).last_hidden_state  # fmt: skip
        answers = mask & (torch.arange(ids.shape[1]) >= torch.tensor(begins)[:, None])
        said, wanted = ids[answers].unique(return_inverse=True)
        known = torch.cat([said, others[~torch.isin(others, said)]])
        logits = hidden[:, :-1][answers[:, 1:]] @ words[known].T
        loss: Any = torch.nn.functional.cross_entropy(logits, wanted)
        loss.backward()


def _steps(part: Any, steps: int, rate: float, title: str, taught: Iterator[list[Lesson]]) -> Iterator[list[Lesson]]:
    """Batches of lessons; after each of them a step of what its loss said."""
    import torch

    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _, batch in zip(track(range(steps), title, console=stderr, transient=True), taught):
        yield batch
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)


def _token(tokenizer: Any, word: str) -> int:
    return int(tokenizer(word, add_special_tokens=False)["input_ids"][0])


def _shown(rules: PictureRules, batch: list[Lesson]) -> dict[str, Any]:
    import torch

    pixels = [pixels_of(one.image, rules) for one in batch]
    return {
        "pixel_values": torch.cat([torch.from_numpy(values) for values, _ in pixels]),
        "image_grid_thw": torch.tensor([grid for _, grid in pixels]),
    }


def _written(tokenizer: Any, rules: PictureRules, batch: list[Lesson]) -> tuple[Any, list[int], list[int]]:
    """(token ids [lessons, longest], where each answer begins, length of each)."""
    import torch

    rows, begins = [], []
    for one in batch:
        parts = [{"type": "text", "text": one.question}, {"type": "image"}]
        turn = {"role": "user", "content": parts[::-1] if one.picture_first else parts}
        prompt = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        shown = prompt.replace(rules.image_token, rules.image_token * rules.tokens(*one.image.size))
        begins.append(len(tokenizer(shown, add_special_tokens=False)["input_ids"]))
        rows.append(tokenizer(shown + one.answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"])
    longest = max(map(len, rows))
    padded = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    return torch.tensor(padded), begins, [len(row) for row in rows]
