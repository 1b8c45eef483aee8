"""A clean chain of a model that sees, for the faults of pictures: Qwen2.5-VL's shape with random weights, and an adapter on it.

The goldens are recorded with transformers' own model and PEFT's own adapter, so that nothing that is judged records them.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText

from tests.faults.chains import Clean, kept_folder
from tests.parity_chain import export, finished
from tests.seeing_models import IMAGE_PAD, seeing_model
from tests.small_models import adapter_artifact
from toolkit.models.bases import TOKENIZER_FILES
from toolkit.models.pictures import PictureRules, as_served, open_picture, pixels_of, rules_of
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.golden.goldens import shown_name
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts, GoldenFacts

FILE_TYPES = ["F32", "Q8_0"]
NEW_TOKENS = 12
SIZES = [(56, 84), (70, 98), (113, 61), (40, 150), (9, 12), (420, 308)]
"""Width and height of the golden pictures: of the patch grid, half steps, odd, portrait, very small, to be made smaller."""
ASKED = "What does the picture show?"


class SeeingChain(Clean):
    """A chain of a model that sees, right from end to end unless a fault was put in."""

    @property
    def mmproj(self) -> Path:
        """The file that sees."""
        facts = self.export.gguf.facts.mmproj
        assert facts is not None
        return self.export.gguf.folder / facts.name


def rules_for(base: Path) -> PictureRules:
    """The server's rules, with fewer tokens for a picture than Ollama asks for: a test has little time."""
    rules = rules_of(base)
    assert rules is not None
    return rules.model_copy(update={"min_tokens": 8, "max_tokens": 64})


def recipe_for(base: Path, file_types: list[str] = FILE_TYPES) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "seeing", "base": str(base), "adapter": "unused", "system": "",
            "golden": {"prompts": [ASKED], "max_new_tokens": NEW_TOKENS},
            "export": {"file_types": file_types, "serve": file_types[-1]}, "ollama": {"model": "seeing"},
        }
    )  # fmt: skip


def random_adapter(base: Path, out: Path, targets: Any = "all-linear") -> Path:
    """A LoRA on every linear layer, of the vision part, the merger and the language model, that changes what they say."""
    torch.manual_seed(4)
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape) * 0.03
    tuned.save_pretrained(out)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copy(base / name, out / name)
    return out


def draw(folder: Path, sizes: list[tuple[int, int]] = SIZES) -> list[str]:
    """Pictures of these sizes, of colours and noise; gives their names."""
    (folder / "images").mkdir(parents=True)
    names = []
    for number, (width, height) in enumerate(sizes):
        random = np.random.default_rng(number)
        down, across = np.mgrid[0:height, 0:width]
        waves = np.sin(
            down[..., None] * random.uniform(0.02, 0.2, 3) + across[..., None] * random.uniform(0.02, 0.2, 3)
        )
        values = 128 + 80 * waves + random.normal(0, 25, (height, width, 3))
        names.append(f"images/{number}.png")
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / names[-1])
    return names


Order = Callable[[str, str], list[dict[str, Any]]]


def text_first(text: str, image: str) -> list[dict[str, Any]]:
    """As Ollama's /api/chat has it."""
    return [{"type": "text", "text": text}, {"type": "image", "image": image}]


@torch.no_grad()
def record(
    base: Path, adapter: Artifact[AdapterFacts], folder: Path, shown: Callable[[Image.Image], Image.Image] = lambda i: i,
    order: Order = text_first,
) -> Artifact[GoldenFacts]:  # fmt: skip
    """Goldens of pictures, with transformers' model.

    Args:
        shown: what is done to a picture before the reference model is shown it, for faults.
    """
    rules = adapter.facts.pictures
    assert rules is not None
    tokenizer = load_tokenizer(base)
    model = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), adapter.folder
    )
    model.eval()
    rows, tuned, before = [], [], []
    for image in draw(folder):
        messages = [{"role": "user", "content": order(ASKED, image)}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        seen = as_served(shown(open_picture(folder / image)), rules)
        seen.save(folder / shown_name(image))
        pixels, grid = pixels_of(seen, rules)
        count = grid[1] * grid[2] // rules.merge**2
        ids = [i for t in tokenizer(text).input_ids for i in ([t] * count if t == IMAGE_PAD else [t])]
        given = {"pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)), "image_grid_thw": torch.tensor([grid])}
        said: list[int] = []
        for _ in range(NEW_TOKENS):
            said.append(int(_logits(model, ids + said, given)[-1].argmax()))
            if said[-1] == tokenizer.eos_token_id:
                break
        tuned.append(_logits(model, ids + said[:-1], given)[len(ids) - 1 :].numpy())
        with model.disable_adapter():
            before.append(_logits(model, ids + said[:-1], given)[len(ids) - 1 :].numpy())
        rows.append(
            {
                "messages": messages, "prompt_text": text, "prompt_ids": ids, "completion_ids": said,
                "completion": tokenizer.decode(said), "base_completion": "", "stopped": said[-1] == tokenizer.eos_token_id,
                "first_row": sum(len(row["completion_ids"]) for row in rows),
                "pictures": [{"image": image, "shown": shown_name(image), "grid": list(grid), "tokens": count}],
            }
        )  # fmt: skip
    for name, logits in (("tuned", tuned), ("base", before)):
        np.save(folder / f"{name}.npy", np.concatenate(logits).astype(np.float32))
    (folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "conversations.jsonl").write_text("", encoding="utf-8")
    facts = GoldenFacts(
        prompts=len(rows), positions=sum(map(len, tuned)), vocabulary=tuned[0].shape[1], end_tokens=[tokenizer.eos_token_id],
        forward="whole", stopped_by_themselves=sum(row["stopped"] for row in rows), turn_end=tokenizer.eos_token_id,
        turn_marks=["<|im_end|>"],
    )  # fmt: skip
    return finished(folder, facts)


def _logits(model: Any, ids: list[int], given: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = torch.tensor([ids])
    logits: torch.Tensor = model(input_ids=tokens, mm_token_type_ids=(tokens == IMAGE_PAD).long(), **given).logits[0]
    return logits


def seeing_artifact(folder: Path, base: Path, rules: PictureRules) -> Artifact[AdapterFacts]:
    """An adapter that was trained on pictures."""
    made = adapter_artifact(folder, base)
    return replace(made, facts=made.facts.model_copy(update={"pictures": rules}))


@functools.cache
def seeing_chain() -> SeeingChain:
    """The chain that faults are put into; made once."""
    folder = kept_folder()
    base = seeing_model(folder / "base", "qwen2_5_vl")
    adapter = seeing_artifact(random_adapter(base, folder / "adapter"), base, rules_for(base))
    chosen = recipe_for(base)
    golden = record(base, adapter, folder / "golden")
    return SeeingChain(chosen, base, adapter, golden, export(chosen, adapter, folder / "x"))
