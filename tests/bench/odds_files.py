"""Files for the bench of the odds, right ones and ones that lack a tenth of the adapter; each is read once and kept.

Six families: five 256 wide (`tests.bench.odds_models`), taught to answer in one sentence, two adapters on each, every file type;
and SmolLM2-135M. Each right, and at nine tenths of its alpha. What is kept of a file is all that the sampled checks need,
position by position, over all prompts: a certificate over some of the prompts is then worked out without running anything.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from transformers import AutoTokenizer

from tests.bench.odds_models import small_model
from tests.parity_chain import AFTER, ASKED, PROBLEMS, blend, finished, record, scaled, teach, trained_base
from tests.small_models import EMBEDDED, adapter_artifact, tiny_adapter
from toolkit.export.convert import convert
from toolkit.export.llama_cpp import captured_log
from toolkit.export.merge import merge
from toolkit.export.quantize import quantize_file
from toolkit.models.bases import resolve_base
from toolkit.parity.candidate import Candidate
from toolkit.parity.certificate import Check
from toolkit.parity.checks.logits import Flip, Positions
from toolkit.parity.checks.weights import Expected, weights_check
from toolkit.parity.comparison import compare_weights
from toolkit.parity.exported import Exported, GGUFWeights
from toolkit.parity.limits import largest_rest
from toolkit.parity.more import Further, Round, read_round
from toolkit.parity.subjects import Tuned, evaluate, whole_in_weights
from toolkit.recipe.schema import CONVERTED_FILE_TYPES, FILE_TYPES, Recipe
from toolkit.run.artifacts import Artifact
from toolkit.run.facts import AdapterFacts
from toolkit.train.model import load_tuned

NEW_TOKENS, STEPS, TAUGHT = 24, 30, 80
UNSEEN = ("a headache", "a fever")
QUESTIONS = [asked.format(problem) for problem in (*PROBLEMS, *UNSEEN) for asked in ASKED]
ADAPTERS = {"strong": 1.0, "weak": 0.5}
"""The trained one, and one of half its alpha, which is a tuned model of its own."""
DAMAGES = {"right": 1.0, "a tenth missing": 0.9}
ROUNDS = 1
"""Further rounds that are kept, of those that a certificate may add."""
REAL, REAL_TYPES = "smollm2", ("F16", "Q8_0", "Q4_K_M")
"""SmolLM2-135M, of which fewer files are read: each takes many times as long."""


@dataclass
class Reading:
    """What one file shows over all prompts: its own positions, those of each further round, and the ends of its answers."""

    rounds: list[Positions]
    """The goldens, then the base's answers. Texts are numbered from 0 in each."""
    wanted: list[bool]
    """Whether the tuned model's answer to each prompt ended by itself."""
    ended: list[bool]
    whole: bool
    """Whether the file's weights show the adapter whole; see `toolkit.parity.subjects.whole_in_weights`."""
    weights: str
    """Verdict of the file's weights: pass, fail, or not compared."""
    parameters: int


def make_all(folder: Path, families: list[str]) -> None:
    """Make and read every file that was not read yet."""
    for family in families:
        real = family == REAL
        _make(family, folder, QUESTIONS[:24] if real else QUESTIONS, REAL_TYPES if real else FILE_TYPES)


def _base(family: str, folder: Path) -> Path:
    if family == REAL:
        return Path(resolve_base(EMBEDDED).folder)
    base = folder / "bases" / family
    if not (base / "taught").exists():
        shutil.rmtree(base, ignore_errors=True)
        trained_base(small_model(family, base), steps=TAUGHT, system="")
        (base / "taught").touch()
    return base


def _adapter(base: Path, out: Path) -> Path:
    taught = (base / "taught").exists()
    made = tiny_adapter(base, out, "lora", r=8, alpha=16)
    model, _ = load_tuned(adapter_artifact(made, base, "lora"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            parameter.data.zero_()
    loss = teach(model.train(), AutoTokenizer.from_pretrained(base), AFTER, STEPS, 5e-3 if taught else 1e-3, 1, "")
    print(f"{base.name}: loss {loss:.2f}", file=sys.stderr, flush=True)
    model.save_pretrained(out)
    return out


def _make(family: str, folder: Path, questions: list[str], kinds: Sequence[str]) -> None:
    wanted = {
        (adapter, damage): {kind: folder / "read" / f"{family}-{adapter}-{damage.replace(' ', '_')}-{kind}.npz" for kind in kinds}
        for adapter in ADAPTERS for damage in DAMAGES
    }  # fmt: skip
    if all(path.exists() for paths in wanted.values() for path in paths.values()):
        return
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    base = _base(family, folder)
    trained = _adapter(base, work / "adapter")
    chosen = Recipe.model_validate(
        {"name": "odds", "base": str(base), "adapter": "unused", "ollama": {"model": "odds"},
         "golden": {"prompts": questions, "max_new_tokens": NEW_TOKENS}, "export": {"file_types": ["F32"], "serve": "F32"}}
    )  # fmt: skip
    # Merged weights are linear in alpha, so two files in 32 bits are enough for all.
    whole = _converted(chosen, adapter_artifact(trained, base, "lora"), work / "whole")
    without = _converted(chosen, adapter_artifact(scaled(trained, work / "zero", 0.0), base, "lora"), work / "without")
    for name, share in ADAPTERS.items():
        artifact = adapter_artifact(scaled(trained, work / name, share), base, "lora")
        tokenizer = AutoTokenizer.from_pretrained(trained)
        golden = record(chosen, artifact, work / f"golden-{name}")
        tuned = Tuned.of(chosen, artifact, golden, tokenizer)
        further = Further(artifact, tuned.goldens, tokenizer)
        rounds = [found for number in range(ROUNDS) if (found := further.round(number)) is not None]
        for damage, factor in DAMAGES.items():
            source = work / "source.gguf"
            shutil.copy(whole, source)
            blend(source, without, share * factor)
            _read_all(source, wanted[name, damage], tuned, rounds)


def _read_all(source: Path, wanted: dict[str, Path], tuned: Tuned, rounds: list[Round]) -> None:
    """Store the file in every type, compare all their weights at once, then read each."""
    ggufs = {kind: source.with_name(f"{kind}.gguf") for kind, path in wanted.items() if not path.exists()}
    for kind, gguf in ggufs.items():
        _stored_as(source, gguf, kind)
    exports: dict[str, Exported] = {kind: GGUFWeights(gguf, tuned.tuning.layout) for kind, gguf in ggufs.items()}
    compared = compare_weights(tuned.tuning, exports, largest_rest, lambda: None)
    for kind, gguf in ggufs.items():
        started = time.process_time()
        check = weights_check(compared[kind], Expected.of(tuned.adapter))
        _keep(_read(gguf, check, tuned, rounds), wanted[kind])
        gguf.unlink()
        print(f"{wanted[kind].stem}: {time.process_time() - started:.1f} s", file=sys.stderr, flush=True)


def _converted(chosen: Recipe, adapter: Artifact[AdapterFacts], folder: Path) -> Path:
    for name in ("merge", "convert"):
        (folder / name).mkdir(parents=True)
    model = finished(folder / "merge", merge(chosen, adapter, folder / "merge"))
    return folder / "convert" / convert(chosen, adapter, model, folder / "convert").files[0].name


def _stored_as(source: Path, target: Path, kind: str) -> None:
    if kind not in CONVERTED_FILE_TYPES:
        quantize_file(source, {kind: target})
        return
    if kind == "F32":
        shutil.copy(source, target)
        return
    # llama.cpp's quantizer writes 16 bits too, as the converter does, and need not import torch for it.
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    with captured_log():
        assert not llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))


def _read(gguf: Path, weights: Check, tuned: Tuned, rounds: list[Round]) -> Reading:
    with Candidate(gguf) as candidate:
        own, answers = evaluate(tuned.goldens, candidate, NEW_TOKENS)
        read = [own, *(read_round(found, candidate) for found in rounds)]
    ends = tuned.goldens.facts.end_tokens
    return Reading(
        read, [bool(a.golden["stopped"]) for a in answers], [a.tokens[-1] in ends for a in answers],
        whole_in_weights([weights]), weights.verdict, tuned.parameters,
    )  # fmt: skip


_ARRAYS = ("kl", "kl_base", "margin", "loss_tuned", "loss_export", "text", "together", "alone")


def _keep(reading: Reading, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {"wanted": reading.wanted, "ended": reading.ended}
    for number, positions in enumerate(reading.rounds):
        for name in _ARRAYS:
            kept[f"{name}{number}"] = np.array(getattr(positions, name))
        kept[f"flips{number}"] = np.array([tuple(flip) for flip in positions.flips]).reshape(-1, 5)
    kept["told"] = json.dumps([reading.whole, reading.weights, reading.parameters])
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **kept)
    partial.rename(path)


def kept(path: Path) -> Reading:
    """A reading, as it was kept."""
    found = np.load(path, allow_pickle=False)
    rounds = []
    for number in range(sum(name.startswith("kl_base") for name in found.files)):
        lists = {name: found[f"{name}{number}"].tolist() for name in _ARRAYS}
        flips = [Flip(int(g), int(i), int(t), int(e), m) for g, i, t, e, m in found[f"flips{number}"].tolist()]
        first = {text: i for i, text in reversed(list(enumerate(lists["text"])))}
        flipped = [first[flip.golden] + flip.position for flip in flips]
        rounds.append(Positions(**lists, flips=flips, flipped=flipped))
    whole, weights, parameters = json.loads(str(found["told"]))
    return Reading(rounds, found["wanted"].tolist(), found["ended"].tolist(), whole, weights, parameters)
