"""What training takes of a CUDA card, beside what `plan` foretells: `python -m tests.bench.card [gpu-4gb gpu-16gb …]`.

Every gpu profile of recipes/medical.yaml trains a few steps, as `tune2ollama train` does, on the Chinese sample. The bases have
the shape, tokenizer and template of the profile's Qwen2.5 and random weights, made on the card, so that nothing is downloaded:
memory and speed do not depend on what the weights are. The longest rows come first, so that the peak is in it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from toolkit.recipe.estimates import CUDA_CONTEXT_BYTES, GIB, tokens_per_second
from toolkit.recipe.plan import make_plan
from toolkit.recipe.reading import load_recipe
from toolkit.recipe.sizes import KNOWN, Shape
from toolkit.run.hardware import read_hardware
from toolkit.run.places import cache_home

RECIPE = Path("recipes/medical.yaml")
PROFILES = [name for name in yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["profiles"] if name.startswith("gpu")]
STEPS = 12


def random_qwen2(shape: Shape, folder: Path) -> None:
    """Write a Qwen2 of this shape in bfloat16, with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.small_models import put_tokenizer

    put_tokenizer(folder, "qwen2")
    config = Qwen2Config(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32768,
        eos_token_id=151645,
        pad_token_id=151643,
        bos_token_id=None,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size="2GB")


def measured(profile: str, folder: Path) -> dict[str, Any]:
    """Train; gives the artifact, or {"failed": the last lines}."""
    name = f"card-{profile}"
    settings = [
        f"base={folder}", f"name={name}", f"train.max_steps={STEPS}", "train.train_sampling_strategy=group_by_length",
    ]  # fmt: skip
    command = [sys.executable, "-m", "toolkit.cli", "train", str(RECIPE), "--profile", profile]
    command += [word for setting in settings for word in ("--set", setting)]
    run = Path("runs") / name
    shutil.rmtree(run, ignore_errors=True)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        return {"failed": " ".join(done.stderr.split()[-30:])}
    found: dict[str, Any] = json.loads((run / "train" / "artifact.json").read_text(encoding="utf-8"))
    shutil.rmtree(run)
    return found


def main() -> None:
    """Print one row a profile."""
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA card here.")
    hardware = read_hardware()
    table = Table("profile", "base", "card holds", "plan", "measured", "tokens/s: plan", "measured", "seconds")
    for profile in sys.argv[1:] or PROFILES:
        base = load_recipe(RECIPE, profile).base.partition("@")[0]
        folder = cache_home() / "tests" / f"card-{base.rpartition('/')[2]}"
        if not (folder / "config.json").is_file():
            subprocess.run([sys.executable, "-m", "tests.bench.card", "--make", base, str(folder)], check=True)
        recipe = load_recipe(RECIPE, profile, [f"base={folder}"])
        plan = make_plan(recipe, hardware)
        planned = next(stage for stage in plan.stages if stage.name == "train")
        found = measured(profile, folder)
        foretold = f"{tokens_per_second(recipe, KNOWN[base], hardware, plan.tokens_per_row):,.0f}"
        if "failed" in found:
            table.add_row(profile, base, "", _gib(planned.gpu_memory_bytes), found["failed"], foretold, "", "")
            continue
        held = found["cost"]["peak_card_bytes"] + CUDA_CONTEXT_BYTES
        speed = f"{found['facts']['tokens_per_second']:,.0f}"
        limit = f"{profile.removeprefix('gpu-').removesuffix('gb')} GiB"
        seconds = f"{found['cost']['seconds']:.0f}"
        row = (profile, base, limit, _gib(planned.gpu_memory_bytes), _gib(held), foretold, speed, seconds)
        table.add_row(*row)
        Console(stderr=True, width=160).print(*row, sep=" | ")
    Console(width=160).print(
        f"{hardware.gpu_name}; memory with {CUDA_CONTEXT_BYTES / GIB:.0f} GiB for CUDA itself", table
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        random_qwen2(KNOWN[sys.argv[2]], Path(sys.argv[3]))
    else:
        main()
