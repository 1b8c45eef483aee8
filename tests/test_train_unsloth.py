"""Without a card: what is passed to Unsloth is what the installed Unsloth takes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# In a process of its own: Unsloth patches torch and transformers as it is imported.
CHILD = """\
import inspect, json, sys
from pathlib import Path
from unsloth import FastLanguageModel
from unsloth.models import llama
import torch
from toolkit.artifacts import BaseFacts
from toolkit.recipe import ALL_SEVEN_PROJECTIONS, Recipe
from toolkit.train.model import _through_unsloth


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
    signature = inspect.signature(getattr(FastLanguageModel, name))

    def call(*given, **named):
        signature.bind(*given, **named)
        found[name] = sorted(named.keys() - signature.parameters.keys())
        return answer

    return staticmethod(call)


stub = Stub()
FastLanguageModel.from_pretrained = watched("from_pretrained", (stub, None))
FastLanguageModel.get_peft_model = watched("get_peft_model", stub)
recipe = Recipe.model_validate({
    "name": "x", "base": "x", "data": {"path": "x"}, "train": {"method": "lora"}, "ollama": {"model": "x"},
})
base = BaseFacts(id="x", folder="x", revision="", license="", digest="")
_through_unsloth(recipe, base, torch.float32)
found["read by name"] = [name for name in ("local_files_only", "use_dora") if f'"{name}"' in inspect.getsource(llama)]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None,
    reason="Unsloth is not installed. Without a card: .venv/bin/uv pip install --no-deps -r toolkit/constraints-gpu.txt",
)
def test_unsloth_knows_every_argument_that_it_is_given(tmp_path: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled"),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        # These two it takes among its further arguments.
        "from_pretrained": ["local_files_only"],
        "get_peft_model": ["use_dora"],
        "read by name": ["local_files_only", "use_dora"],
    }
