"""Without a card: what is passed to Unsloth is what the installed Unsloth takes, and its trainer learns the answers only."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.children import ROOT, child_environment
from toolkit.recipe.lora import PARTS
from toolkit.run.artifacts import text_sha256, write_text
from toolkit.run.places import cache_home

# In processes of their own: Unsloth patches torch and transformers as it is imported.
CHILD = """\
import inspect, json, sys
from pathlib import Path
from unsloth import FastLanguageModel, FastVisionModel
from unsloth.models import llama, vision
import torch
from toolkit.run.facts import BaseFacts
from toolkit.recipe.lora import ALL_SEVEN_PROJECTIONS, PARTS
from toolkit.recipe.schema import Recipe
from toolkit.train import model as training


class Stub(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(2, 2)
        for name in ALL_SEVEN_PROJECTIONS:
            setattr(self, name, torch.nn.Linear(2, 2))

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return None


found = {}


def watched(name, answer):
    signature = inspect.signature(getattr(engine, name))

    def call(*given, **named):
        signature.bind(*given, **named)
        found[name] = sorted(named.keys() - signature.parameters.keys())
        return answer

    return staticmethod(call)


stub = Stub()
sees = sys.argv[1] == "sees"
engine = FastVisionModel if sees else FastLanguageModel
engine.from_pretrained = watched("from_pretrained", (stub, None))
engine.get_peft_model = watched("get_peft_model", stub)
training.sees_pictures = lambda folder: sees
recipe = Recipe.model_validate({
    "name": "x", "base": "x", "data": {"path": "x"}, "train": {"method": "lora"}, "ollama": {"model": "x"},
})
base = BaseFacts(id="x", folder="x", revision="", license="", digest="")
training.own_tokenizer = lambda folder: None
training._through_unsloth(recipe, base, torch.float32)
found["read by name"] = [name for name in ("local_files_only", "use_dora") if f'"{name}"' in inspect.getsource(llama)]
found["switches"] = [name for name in PARTS if f"{name}" in inspect.getsource(vision)]
print(json.dumps(found))
"""

# With UNSLOTH_ALLOW_CPU Unsloth leaves TRL's trainers alone, unless it is told.
TRAINER = """\
import sys
from pathlib import Path
import unsloth
from unsloth.models.rl import patch_trl_rl_trainers
patch_trl_rl_trainers()
import torch
from tests.small_models import tiny_llama
from toolkit.models.bases import resolve_base
from toolkit.recipe.schema import Recipe
from toolkit.train.methods import trainer_of
from toolkit.train.methods.common import Order
from toolkit.train.model import _through_transformers
from toolkit.train.progress import TrainingProgress
from toolkit.train.rows import tokenized

out = Path(sys.argv[1])
base = tiny_llama(out / "base")
recipe = Recipe.model_validate({
    "name": "x", "base": str(base), "data": {"path": "x"}, "train": {"method": "lora", "bf16": False},
    "ollama": {"model": "x"},
})
loaded = _through_transformers(recipe, resolve_base(str(base)), torch.float32)._replace(through_unsloth=True)
rows = [
    {
        "prompt": [{"role": "user", "content": "Why? " * (i + 1)}],
        "completion": [{"role": "assistant", "content": f"Because of {i}."}],
    }
    for i in range(4)
]
rows, _ = tokenized(loaded.tokenizer, rows, 4096)
examples = [row.example() for row in rows]
trainer = trainer_of("sft", Order(recipe, loaded, out / "checkpoints"), examples, [TrainingProgress(out / "metrics.jsonl")])
labels = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])["labels"]
learned = loaded.tokenizer.decode(labels[labels != -100]).split("<|im_end|>\\n")
print(type(trainer).__name__, trainer.args.loss_type, learned)
"""


def child(code: str, unsloth: str, folder: Path, *arguments: str) -> str:
    """Run code in a process of its own, where Unsloth may be imported without a card; gives its last line."""
    environment = child_environment(
        unsloth,
        UNSLOTH_ALLOW_CPU="1",
        UNSLOTH_DISABLE_STATISTICS="1",
        UNSLOTH_COMPILE_LOCATION=str(folder / "compiled"),
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unsloth() -> str:
    """The folder that the pinned Unsloth is in: of the environment, or else of the cache, where only these tests see it."""
    if importlib.util.find_spec("unsloth") is not None:
        return ""
    lines = (ROOT / "toolkit" / "constraints-gpu.txt").read_text(encoding="utf-8").splitlines()
    # Attention kernels for a card, 100 MB, and not needed to import it.
    wanted = "\n".join(line for line in lines if not line.startswith("xformers"))
    folder = cache_home() / "tests" / f"unsloth-{text_sha256(wanted)[:12]}"
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        write_text(partial / "wanted.txt", wanted)
        uv = Path(sys.executable).with_name(
            "uv"
        )  # as in toolkit.setup.bootstrap, which takes pip where uv cannot be had
        pip = [str(uv), "pip", "install", "--python", sys.executable]
        command = pip if uv.exists() else [sys.executable, "-m", "pip", "install"]
        command += ["--quiet", "--no-deps", "--target", str(partial / "site"), "-r", str(partial / "wanted.txt")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        partial.rename(folder)
    return str(folder / "site")


def test_unsloth_knows_every_argument_that_it_is_given(unsloth: str, tmp_path: Path) -> None:
    assert json.loads(child(CHILD, unsloth, tmp_path, "reads")) == {
        # These two it takes among its further arguments.
        "from_pretrained": ["local_files_only"],
        "get_peft_model": ["use_dora"],
        "read by name": ["local_files_only", "use_dora"],
        "switches": list(PARTS),
    }


def test_unsloth_knows_the_switches_of_a_model_that_sees(unsloth: str, tmp_path: Path) -> None:
    found = json.loads(child(CHILD, unsloth, tmp_path, "sees"))
    # It takes them among its further arguments, and reads them by name.
    assert set(PARTS) <= set(found["get_peft_model"]) and found["switches"] == list(PARTS)


def test_unsloths_trainer_learns_the_answers_only(unsloth: str, tmp_path: Path) -> None:
    learned = [f"Because of {i}." for i in range(4)]
    assert child(TRAINER, unsloth, tmp_path, str(tmp_path)) == f"UnslothSFTTrainer nll {[*learned, '']}"
