"""Pictures for judging a file that sees where no golden prompt shows one: drawn, of the sizes that servers treat differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit.models.pictures import PictureRules
from toolkit.parity.checks.prompts import render

SIZES = ((8, 6), (6.5, 5.5), (7.3, 4.1), (2.2, 9.7), (0.4, 0.3), (40.0, 30.0))
"""Width and height in merged patches: of the grid, half steps between, odd, portrait, very small, and large."""
QUESTION = "What does the picture show?"


def drawn_rows(folder: Path, rules: PictureRules, tokenizer: Any, day: str, fields: Any) -> list[dict[str, Any]]:
    """Prompts that show one picture each, as goldens have them but for answers; the pictures are written into `folder`."""
    rows = []
    for number, (across, down) in enumerate(SIZES):
        width, height = (max(1, round(length * rules.patch)) for length in (across, down))
        name = f"drawn-{width}x{height}.png"
        _draw(number, width, height).save(folder / name)
        parts = [{"type": "text", "text": QUESTION}, {"type": "image"}]
        text = render(tokenizer, [{"role": "user", "content": parts}], day, fields) or ""
        count, (wide, high) = rules.tokens(width, height), rules.size(width, height)
        ids = [i for t in tokenizer(text, add_special_tokens=False).input_ids for i in _shown(t, count, rules)]
        grid = [1, high // rules.patch * rules.merge, wide // rules.patch * rules.merge]
        picture = {"image": name, "grid": grid, "tokens": count}
        rows.append({"prompt_text": text, "prompt_ids": ids, "pictures": [picture]})
    return rows


def _shown(token: int, count: int, rules: PictureRules) -> list[int]:
    return [token] * count if token == rules.image_token_id else [token]


def _draw(seed: int, width: int, height: int) -> Image.Image:
    """Waves of colour, so that another size, place or order of the patches shows."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0:height, 0:width]
    waves = np.sin(down[..., None] * random.uniform(0.01, 0.2, 3) + across[..., None] * random.uniform(0.01, 0.2, 3))
    noise = random.normal(0, 20, (height, width, 3))
    return Image.fromarray((128 + 90 * waves + noise).clip(0, 255).astype(np.uint8))
