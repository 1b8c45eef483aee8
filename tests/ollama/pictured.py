"""Goldens with pictures for the tiny model that sees, recorded with llama.cpp, and what `create` needs beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tests.ollama.seeing import IMAGE_PAD, TEMPLATE
from toolkit.models.chat_template import render_trained
from toolkit.models.picture_block import picture_block
from toolkit.models.pictures import PictureRules
from toolkit.ollama.own_model import OwnModel, Row
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.facts import GoldenFacts

QUESTIONS = ["What is the mileage?", "仪表盘上亮的是哪个灯？", "Is the bumper damaged?"]
LIMIT = 8
RULES = PictureRules(
    kind="dynamic", patch=28, min_tokens=1024, max_tokens=4096, mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711), image_token="<|image_pad|>", image_token_id=IMAGE_PAD,
)  # fmt: skip
BLOCK = picture_block(TEMPLATE, "", "") or ""


def draw(path: Path, size: tuple[int, int], seed: int) -> Path:
    """A picture of boxes."""
    image = Image.new("RGB", size, (20 * seed % 256, 90, 160))
    pen, random = ImageDraw.Draw(image), np.random.default_rng(seed)
    for _ in range(12):
        left, top = (int(random.integers(0, side)) for side in size)
        pen.rectangle((left, top, left + 30, top + 20), fill=tuple(int(c) for c in random.integers(0, 256, 3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def seen_golden(folder: Path, gguf: Path, mmproj: Path, system: str = "") -> Artifact[GoldenFacts]:
    """Two questions about pictures and one about none, with the model's own answers and logits; the base is made up."""
    logits: list[Row] = []
    rows: list[dict[str, Any]] = []
    own = OwnModel(gguf, 2048, mmproj, (RULES.min_tokens, RULES.max_tokens))
    for number, question in enumerate(QUESTIONS):
        picture = draw(folder / "images" / f"{number}.png", (224, 140) if number else (300, 500), number)
        parts = [{"type": "text", "text": question}, {"type": "image", "image": f"images/{picture.name}"}]
        messages = [{"role": "user", "content": question if number == 2 else parts}]
        messages = [*([{"role": "system", "content": system}] if system else []), *messages]
        text = render_trained(TEMPLATE, messages, "", "") or ""
        row = {"messages": messages, "prompt_text": text, "first_row": number * LIMIT, "stopped": False}
        if number == 2:
            ids, likeliest = own.tokenize(text), own.start(own.tokenize(text))
        else:
            with own.sight.read(text, BLOCK, [picture.read_bytes()]) as prompt:
                ids, likeliest = prompt.ids(IMAGE_PAD), own.start_seeing(prompt)
                row["pictures"] = [{"image": f"images/{picture.name}", "grid": [1, 2, 2], "tokens": prompt.pictures[0]}]
        said: list[int] = []
        while len(said) < LIMIT:
            said.append(int(likeliest.argmax()))
            logits.append(likeliest)
            likeliest = own.step(said[-1:])
        answer = b"".join(map(own.piece, said)).decode(errors="replace")
        rows.append(
            {
                **row,
                "prompt_ids": ids,
                "completion_ids": said,
                "completion": answer,
                "base_completion": "…",
                "content": answer,
            }
        )
    tuned = np.array(logits, dtype=np.float32)
    np.save(folder / "tuned.npy", tuned)
    np.save(folder / "base.npy", tuned + np.random.default_rng(3).normal(0, 0.5, tuned.shape).astype(np.float32))
    ends, size = own.end_ids, own.size
    own.close()
    (folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    facts = GoldenFacts(
        prompts=3, positions=3 * LIMIT, vocabulary=size, end_tokens=ends[:1], forward="whole", stopped_by_themselves=0
    )
    return Artifact(folder, facts, "", {}, Cost())
