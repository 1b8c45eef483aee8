"""A family's adapter the whole way, with the stages' own functions in one process, and what became of it as a row."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.families.tokenizers import is_of_the_tree
from tests.families.zoo import Family, build
from tests.parity_chain import GOLDEN
from toolkit.errors import ToolkitError
from toolkit.models.tokenizer import load_tokenizer
from toolkit.parity.candidate import Candidate
from toolkit.recipe.plan import make_plan
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, Cost
from toolkit.run.hardware import read_hardware
from toolkit.run.preflight import preflight
from toolkit.run.stages import call_stage, stages_of

FILE_TYPES = ("Q8_0", "Q4_K_M")
"""Besides the converted file."""
FARTHEST = 1e-6
"""Mean KL, nats. The floor of llama.cpp's F32 against torch is 1e-11; beyond this, the shape is not what llama.cpp computes."""


@dataclass
class Row:
    """What became of a family."""

    family: str
    title: str
    shape: str
    tokenizer: str
    template: str
    parameters: int = 0
    kl: float | None = None
    """llama.cpp's converted file against transformers on the merged folder, mean KL in nats; independent of the certificate."""
    foretold: str = ""
    """What `run` and `plan` say of it before anything is spent."""
    reached: str = "built"
    """The last stage that was finished."""
    verdicts: dict[str, str] = field(default_factory=dict)
    measures: dict[str, str] = field(default_factory=dict)
    served: bool = False
    served_facts: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    reason: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> str:
        """For the file that makes the bench resumable."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)


def recipe_of(family: Family, base: Path, adapter: Path, file_types: tuple[str, ...], prompts: list[str]) -> Recipe:
    """As `export` would have it."""
    return Recipe.model_validate(
        {
            "name": family.name, "profile": "export", "base": str(base), "system": family.system, "adapter": str(adapter),
            "load_in_4bit": False, "merge": {"folder": True}, "train": {"chat_template_kwargs": family.told},
            "golden": {"prompts": prompts, "from_test": 0, "max_new_tokens": 32},
            "export": {"file_types": list(file_types), "serve": file_types[-1]}, "ollama": {"model": f"family-{family.name}"},
            "evaluate": {"rows": 0, "forgetting": False},
        }
    )  # fmt: skip


def take(
    family: Family,
    folder: Path,
    file_types: tuple[str, ...] | None = None,
    upto: str = "create",
    prompts: list[str] = GOLDEN,
) -> Row:
    """Build the family's model in `folder`, adopt its adapter, and go as far as it gets; the reason where it stops."""
    vocabulary = family.vocabulary
    row = Row(
        family.name, family.title, family.shape,
        "own" if vocabulary is None or vocabulary.own else f"borrowed ({vocabulary.source})",
        "own" if vocabulary is None or is_of_the_tree(vocabulary.template) else "its form, in short",
    )  # fmt: skip
    start = time.monotonic()
    base, adapter = build(family, folder)
    row.seconds["build"] = time.monotonic() - start
    recipe = recipe_of(family, base, adapter, file_types or (family.converted, *FILE_TYPES), prompts)
    have: dict[str, Artifact[Any]] = {}
    run = folder / "run"
    row.foretold = "; ".join(note for note in make_plan(recipe, read_hardware()).notes if "Ollama" in note)
    try:
        preflight(recipe, run, {stage.name for stage in stages_of(recipe)})
    except ToolkitError as error:
        row.foretold = error.message
    for stage in stages_of(recipe):
        out = run / stage.name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        start = time.monotonic()
        try:
            facts = call_stage(stage, recipe, have, out)
        except ToolkitError as error:
            row.reason = f"{stage.name}: {error.message}"
            return row
        row.seconds[stage.name] = round(time.monotonic() - start, 1)
        have[stage.name] = Artifact(out, facts, "", {}, Cost())
        row.reached = stage.name
        if stage.name == "convert":
            row.kl, row.answer = against_transformers(
                have["merge"].folder, out / facts.files[0].name, have["golden"].folder
            )
        if stage.name == "merge":
            row.parameters = facts.parameters
        if stage.name == "verify":
            _read_certificate(row, out)
            if facts.verdict != "pass":
                row.reason = f"verify says {facts.verdict}: {facts.message}"
                return row
        if stage.name == "create":
            row.served = facts.published
            row.served_facts = facts.model_dump(mode="json")
        if stage.name == upto:
            break
    return row


def _read_certificate(row: Row, folder: Path) -> None:
    certificate = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    for subject in certificate["subjects"]:
        row.verdicts[subject["name"]] = subject["verdict"]
        for check in subject["checks"]:
            for measure in check["measures"]:
                if measure["name"] in ("mean KL", "strength", "strength in the weights"):
                    row.measures[f"{subject['name']} {measure['name']}"] = f"{measure['value']:.3g}"
            if check["verdict"] != "pass":
                row.measures[f"{subject['name']} {check['name']}"] = f"{check['verdict']}: {check['message']}"


@torch.inference_mode()
def against_transformers(merged: Path, gguf: Path, golden: Path) -> tuple[float, str]:
    """Mean KL in nats over the first golden answers, prompts included, and one answer; no code of the certificate's checks."""
    rows = [json.loads(line) for line in (golden / "golden.jsonl").read_text(encoding="utf-8").splitlines()][:3]
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    found = []
    with Candidate(gguf) as candidate, candidate.slots(1, 512) as slots:
        for row in rows:
            ids = [*row["prompt_ids"], *row["completion_ids"]]
            theirs = torch.log_softmax(torch.from_numpy(slots.logits(0, ids, 1)).double(), -1)
            ours = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1, : theirs.shape[1]].double(), -1)
            theirs = theirs[:, : ours.shape[1]]
            found.append((ours.exp() * (ours - theirs)).sum(-1))
    return float(torch.cat(found).mean()), load_tokenizer(merged).decode(rows[0]["completion_ids"])
