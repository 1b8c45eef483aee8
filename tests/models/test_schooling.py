"""What the small base learns before it is a base: lessons that say what they show, and that it has learnt them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.models.bases import resolve_base
from toolkit.models.pictures import rules_of
from toolkit.models.schooling import LARGEST, SMALLEST, TOKENS, lesson, lessons
from toolkit.models.seen import Shown, expanded, given
from toolkit.models.tokenizer import load_tokenizer
from toolkit.models.weights import model_class, model_config


def test_a_lesson_is_right_about_its_picture() -> None:
    for seed in range(12):
        one = lesson(random.Random(seed), (196, 168))
        covered = np.asarray(one.covered) == 255
        inside = np.asarray(one.image)[covered]
        assert covered.any() and (inside == inside[0]).all()
        assert one.colour in one.answer or "颜色" in one.question
        again = lesson(random.Random(seed), (196, 168))
        assert again.answer == one.answer and np.array_equal(np.asarray(again.image), np.asarray(one.image))


def test_pictures_grow_to_what_a_server_shows_and_a_step_stays_bounded() -> None:
    found = [(batch[0].image.size, len(batch)) for batch in lessons(random.Random(3), 28, 200)]
    sides = [max(size) // 28 for size, _ in found]
    assert len(found) == 200 and min(sides) >= SMALLEST and max(sides) <= LARGEST
    assert max(sides[:50]) < max(sides[150:])
    for (width, height), together in found:
        assert together == 1 or together * (width // 28) * (height // 28) <= TOKENS


@pytest.mark.slow
def test_the_base_names_colours_in_pictures_that_it_has_not_seen(tmp_path: Path) -> None:
    folder = Path(resolve_base("embedded:qwen2.5-vl-small").folder)
    rules, tokenizer, chance = rules_of(folder), load_tokenizer(folder), random.Random(77)
    assert rules is not None
    few = rules.model_copy(update={"min_tokens": 1})
    model = model_class(model_config(folder)).from_pretrained(folder, dtype=torch.float32).eval()
    right = 0
    for number in range(24):
        one = lesson(chance, (28 * 8, 28 * 7))
        path = tmp_path / f"{number}.png"
        one.image.save(path)
        turn = {
            "role": "user",
            "content": [{"type": "text", "text": one.question}, {"type": "image", "image": path.name}],
        }
        prompt = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        written = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids, pictures = expanded(written, [turn], Shown(tmp_path, few))
        answer = tokenizer(one.answer, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([ids + answer])
        with torch.no_grad():
            said = model(tokens, **given(tokens, pictures)).logits[0, len(ids) - 1 : -1].argmax(-1)
        right += said.tolist() == answer
    assert right >= 18  # by chance a sixth: four
