"""`tune2ollama init`: a first recipe for a user's own file, from a look at its rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.data.formats import objectives_of
from toolkit.data.loading import for_other_objectives
from toolkit.data.peek import Peek, peek
from toolkit.errors import DataError, UsageError
from toolkit.recipe.reading import assembled, load_recipe
from toolkit.recipe.rows import Data
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import write_text

_SYSTEM = {"en": "You are a helpful assistant. Answer briefly.", "zh": "你是一位乐于助人的助手，请简短回答。"}
_MAX_LENGTH = 512
# Tokens a character, on the safe side: a row longer than train.max_length is an error, so longer pairs are dropped before.
_TOKENS = {("en", False): 0.35, ("en", True): 0.35, ("zh", False): 1.0, ("zh", True): 3.0}
_FRAME_TOKENS = 64
_GOLDEN = 16
_RATES = {
    "sft": ("2.0e-4", "1.0e-3"),
    "pretrain": ("5.0e-5", "5.0e-4"),
    "dpo": ("5.0e-6", "1.0e-4"),
    "kto": ("5.0e-6", "1.0e-4"),
}
"""Learning rates, on a card and for the embedded base: what moves a model by comparison needs less than what it copies."""
_BEGINNINGS, _BEGINNING = 8, 40
_LARGE_FILE_ROWS = 400

_TEMPLATE = """\
# {title} → `ollama run {model}`.
#
#   tune2ollama run {recipe}
#   tune2ollama run {recipe} --dry-run          what would run, and why
#   tune2ollama plan {recipe}                   memory, disk and time
#
# Written from a look at {rows} rows: {looked}. Change what you like; every key is checked.
name: {name}
license: other                # of your data; it is written into the model

data:
  path: {path}
  format: {format}{read_with}
  language: {language}
  max_characters: {characters:<11} # longer pairs are dropped, and listed: they would not fit train.max_length
  validation: {validation}
  test: {test}

# The system text: trained with, verified with, and served. Say who answers, and how.
system: {system}

train:
  method: qlora               # NF4 base with double quantization; lora: 16-bit base; full: every weight{objective}
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 4
  num_train_epochs: 3
  learning_rate: {rate}
  max_length: {max_length}             # tokens of system text, prompt and answer
  gradient_checkpointing: true
  bf16: true
  optim: adamw_8bit

lora:
  r: 16                       # higher: learns more, costs more memory
  lora_alpha: 16              # the adapter acts with lora_alpha / r

golden:
  {golden}
  max_new_tokens: 96

export:
  file_types: [F16, Q8_0, Q4_K_M]
  serve: Q4_K_M

ollama:
  model: {model}

# Picked by what the machine has; `--profile` overrides.
profiles:
  cpu:                        # the embedded base speaks English; it learns the manner of your rows, hardly new facts
    base: embedded:smollm2-135m-instruct
    data:
      max_characters: {cpu_characters}
      max_rows: {cpu_rows}           # so that a CPU takes minutes
    train:
      per_device_train_batch_size: 4
      gradient_accumulation_steps: 2
      learning_rate: {cpu_rate}   # a small model takes, and needs, a larger step
      gradient_checkpointing: false
      bf16: true              # where the processor has such products
      train_sampling_strategy: group_by_length   # less padding
      optim: adamw_torch
    export:
      serve: Q8_0             # a model this small loses too much in 4 bits
  gpu-4gb:
    base: Qwen/Qwen2.5-0.5B-Instruct@7ae557604adf67be50417f59c2c2f167def9a775
    export:
      serve: Q8_0
  gpu-6gb:
    base: Qwen/Qwen2.5-1.5B-Instruct@989aa7980e4cf806f80c7fef2b1adb7bc71aa306
  gpu-8gb:
    base: Qwen/Qwen2.5-3B-Instruct@aa8e72537993ba99e69dfaafa59ed015b17504d1
  gpu-16gb:
    base: Qwen/Qwen2.5-7B-Instruct@a09a35458c702b33eeacc393d103063234e8bc28
  gpu-24gb:
    base: Qwen/Qwen2.5-7B-Instruct@a09a35458c702b33eeacc393d103063234e8bc28
    train:
      per_device_train_batch_size: 4
      gradient_accumulation_steps: 2
"""


class Written(NamedTuple):
    """A recipe that was written."""

    path: Path
    told: list[str]
    """What was found, what was chosen and what else there was, a line each."""


def write_recipe(data: str, name: str | None = None, out: Path | None = None, settings: Sequence[str] = ()) -> Written:
    """Write a commented recipe for `data` (a file, a folder of files, or hub:OWNER/NAME@COMMIT); it runs as it is.

    Args:
        name: of the recipe and of the Ollama model; None: the file's, as far as it can be one.
        out: None: recipes/<name>.yaml.
        settings: `data.key=value` texts: how the file is to be read.

    Raises:
        UsageError: the name cannot be one, or the recipe exists already: it is never overwritten.
        DataError: the file cannot be read, or no column looks like the answers.
    """
    if name is None:
        stem = Path(data.partition("@")[0]).name.partition(".")[0]
        name = re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "mymodel"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise UsageError(
            f"{name!r} cannot name a recipe: use letters, digits, '.', '_' and '-'",
            f"For example: tune2ollama init {data} --name helpdesk",
        )
    path = out or Path("recipes") / f"{name}.yaml"
    if path.exists():
        raise UsageError(
            f"{path} is there already and is not overwritten", f"Choose another: tune2ollama init {data} --name …"
        )
    seen = peek(data_of(data, settings, "tune2ollama init"))
    if faults := for_other_objectives(seen.loaded, objectives_of(seen.shape.held)[0]):
        raise UsageError(
            "\n".join(fault.message for fault in faults),
            "\n".join(dict.fromkeys([*(fault.hint for fault in faults), *seen.loaded.doubts.values()])),
        )
    if not seen.examples:
        first = seen.dropped[0]
        raise DataError(
            f"{data}: none of its {seen.loaded.read:,} rows can be learnt from; the first: {first.file}:{first.line}: "
            f"{first.reason}",
            f"Look at it: tune2ollama inspect {data}",
        )
    if any(example.pictures for example in seen.examples):
        raise UsageError(
            f"{data}: its rows show pictures, and this writes recipes for rows of words",
            f"Begin with recipes/car_insurance.yaml: --set data.path={data} --set name={name}; or learn the words alone: "
            "--set data.columns.image=false",
        )
    write_text(path, recipe_text(data, name, path, seen))
    return Written(path, _told(seen))


def data_of(path: str, settings: Sequence[str], command: str) -> Data:
    """The `data` section for a path, with the keys that `--set data.…` changes.

    Raises:
        UsageError: a setting that is none of `data`.
    """
    if others := [setting for setting in settings if not setting.startswith("data.")]:
        raise UsageError(
            f"--set {others[0]}: here only keys of data can be set", "For example: --set data.header=false"
        )
    tree = {"name": "look", "base": "none", "data": {"path": path}, "ollama": {"model": "look"}}
    return assembled(tree, settings, command).data or Data(path=path)


def recipe_to_look(path: str, base: str, settings: Sequence[str]) -> Recipe:
    """The recipe that `inspect` reads rows by: a recipe's file, or what `init` would make of a file of rows.

    Raises:
        UsageError: a setting that cannot be.
    """
    if path.endswith((".yaml", ".yml")):
        return load_recipe(Path(path), None, settings)
    tree = {
        "name": "look",
        "base": base,
        "data": {"path": path},
        "golden": {"from_test": 1},
        "ollama": {"model": "look"},
    }
    return assembled(tree, settings, "tune2ollama inspect")


def _told(seen: Peek) -> list[str]:
    lines = [*seen.notes, f"{len(seen.examples):,} of {seen.loaded.read:,} rows can be learnt from"]
    counts: dict[str, int] = {}
    for dropped in seen.dropped:
        counts[dropped.reason] = counts.get(dropped.reason, 0) + 1
    lines += [f"  {count:,} dropped: {reason}" for reason, count in sorted(counts.items(), key=lambda c: -c[1])[:5]]
    lines += [f"  {count:,} times: {what}" for what, count in seen.repaired.most_common(5)]
    own = [text for text in seen.systems if text]
    if len(own) == 1 and "" not in seen.systems:
        lines.append(f"all rows share a system text, which became the recipe's: {own[0][:60]!r}")
    elif own:
        lines.append(
            f"rows bring {len(own):,} system texts of their own, which are trained with (data.system: row); none is served"
        )
    return lines


def _system(seen: Peek) -> tuple[str, bool]:
    """The recipe's system text, and whether rows keep their own."""
    own = [text for text in seen.systems if text]
    if not own:
        return _SYSTEM[seen.language], False
    return (own[0], False) if len(own) == 1 and "" not in seen.systems else ("", True)


def recipe_text(data: str, name: str, path: Path, seen: Peek) -> str:
    """The recipe's YAML."""
    shapes = {shape.kind for shape in seen.loaded.shapes.values()}
    kind = shapes.pop() if len(shapes) == 1 else "auto"
    system, rows_own = _system(seen)
    looked = f"{kind}, since {seen.shape.reason}"
    if seen.median_characters:
        looked += f"; half of the rows have up to {seen.median_characters} characters"
    # Rows are split by a hash of their content, so the test split's size varies: 2.5 standard deviations are allowed for.
    rows = len(seen.examples)
    test = min(0.2, max(0.05, math.ceil(100 * 30 / max(rows, 1)) / 100))
    expected = test * rows
    from_test = max(1, min(_GOLDEN, int(expected - 2.5 * math.sqrt(expected))))
    golden = f"from_test: {from_test:<17}# the proof is about so many prompts that were not trained on"
    objective = objectives_of(seen.shape.held)[0]
    if objective == "pretrain":  # plain text asks nothing
        golden = f"prompts: {json.dumps(_beginnings(seen), ensure_ascii=False)}   # questions of your own are better"
    rate, cpu_rate = _RATES.get(objective, _RATES["sft"])
    return _TEMPLATE.format(
        title=" ".join(Path(data).name.split()),
        model=name.lower(),
        recipe=path,
        rows=f"{seen.loaded.read:,}",
        looked=" ".join(looked.split()),
        name=_quoted(name),
        path=_quoted(Path(data).as_posix() if not data.startswith("hub:") else data),
        format=kind,
        read_with=_read_with(seen, kind, rows_own),
        language=seen.language,
        characters=_characters(seen, embedded=False),
        validation=min(0.1, test),
        test=test,
        system=_quoted(system) if rows_own or system not in _SYSTEM.values() else system,
        max_length=_MAX_LENGTH,
        golden=golden,
        objective=""
        if objective == "sft"
        else f"\n  objective: {objective:<14} # {_learns(seen)}; see docs/methods.md",
        rate=rate,
        cpu_rate=cpu_rate,
        cpu_characters=_characters(seen, embedded=True),
        cpu_rows=_LARGE_FILE_ROWS,
    )


def _learns(seen: Peek) -> str:
    held = seen.shape.held
    others = ", ".join(objectives_of(held)[1:])
    return f"the rows hold {held}" + (f"; {others} learn from them too" if others else "")


def _beginnings(seen: Peek) -> list[str]:
    """The first words of texts from all over the file, as prompts."""
    step = max(1, len(seen.examples) // _BEGINNINGS)
    words = {"en": "Go on: ", "zh": "请接着写："}[seen.language]
    return [words + e.topic[:_BEGINNING].rsplit(None, 1)[0].strip() for e in seen.examples[::step][:_BEGINNINGS]]


def _read_with(seen: Peek, kind: str, rows_own: bool) -> str:
    """Further keys of `data`, a line each."""
    lines = []
    roles, image = seen.shape.roles, seen.data.columns.image
    columns: list[str] = []
    if kind == "columns" and all(shape.roles == roles for shape in seen.loaded.shapes.values()):
        columns += [f"prompt: {_quoted(roles['prompt'])}", f"completion: {_quoted(roles['completion'])}"]
        columns += [f"thinking: {_quoted(roles['thinking'])}"] if "thinking" in roles else []
    columns += [f"image: {_quoted(image) if image else 'false'}"] if image is not None else []
    lines += ["columns:", *(f"  {column}" for column in columns)] if columns else []
    for key in ("header", "sheet", "encoding"):
        value = getattr(seen.data, key)
        if value is not None:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    lines += (
        ["system: row                 # rows keep their own system texts; `system` below is served"] if rows_own else []
    )
    return "".join(f"\n  {line}" for line in lines)


def _characters(seen: Peek, embedded: bool) -> int:
    return int((_MAX_LENGTH - _FRAME_TOKENS) / _TOKENS[seen.language, embedded] // 10 * 10)


def _quoted(text: str) -> str:
    # A JSON string is a YAML one, whatever it holds.
    return text if re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) else json.dumps(text, ensure_ascii=False)
