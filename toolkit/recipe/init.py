"""`tune2ollama init`: a first recipe for a user's own file, from a look at its columns."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from toolkit.data.inspect import Peek, peek
from toolkit.errors import DataError, UsageError
from toolkit.run.artifacts import write_text

_SYSTEM = {"en": "You are a helpful assistant. Answer briefly.", "zh": "你是一位乐于助人的助手，请简短回答。"}
_MAX_LENGTH = 512
# Tokens a character, on the safe side: a row longer than train.max_length is an error, so longer pairs are dropped before.
_TOKENS = {("en", False): 0.35, ("en", True): 0.35, ("zh", False): 1.0, ("zh", True): 3.0}
_FRAME_TOKENS = 64
_GOLDEN = 16
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
  format: {format}{columns}
  language: {language}
  max_characters: {characters:<11} # longer pairs are dropped, and listed: they would not fit train.max_length
  validation: {validation}
  test: {test}

# The system text: trained with, verified with, and served. Say who answers, and how.
system: {system}

train:
  method: qlora               # NF4 base with double quantization; lora: 16-bit base; full: every weight
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 4
  num_train_epochs: 3
  learning_rate: 2.0e-4
  max_length: {max_length}             # tokens of system text, prompt and answer
  gradient_checkpointing: true
  bf16: true
  optim: adamw_8bit

lora:
  r: 16                       # higher: learns more, costs more memory
  lora_alpha: 16              # the adapter acts with lora_alpha / r

golden:
  from_test: {golden:<17}# the proof is about so many prompts that were not trained on
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
      learning_rate: 1.0e-3   # a small model takes, and needs, a larger step
      gradient_checkpointing: false
      bf16: false
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


def write_recipe(data: Path, name: str | None = None, out: Path | None = None) -> Path:
    """Write a commented recipe for `data` (a file, or a folder of files); it runs as it is.

    Args:
        name: of the recipe and of the Ollama model; None: the file's, as far as it can be one.
        out: None: recipes/<name>.yaml.

    Returns:
        The recipe's path.

    Raises:
        UsageError: the name cannot be one, or the recipe exists already: it is never overwritten.
        DataError: the file cannot be read, or no column looks like the answers.
    """
    if name is None:
        name = re.sub(r"[^a-z0-9._-]+", "-", data.stem.lower()).strip("-._") or "mymodel"
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
    write_text(path, recipe_text(data, name, path, peek(data)))
    return path


def recipe_text(data: Path, name: str, path: Path, seen: Peek) -> str:
    """The recipe's YAML. Raises as `write_recipe`."""
    columns, looked = "", f"format {seen.format}"
    if seen.format == "columns":
        prompt, completion = _columns(data, seen)
        columns = f"\n  columns:\n    prompt: {_quoted(prompt)}\n    completion: {_quoted(completion)}"
        looked = f"columns {', '.join(seen.columns)}"
    if seen.median_characters:
        looked += f"; half of the pairs have up to {seen.median_characters} characters"
    # Rows are split by a hash of their content, so the test split's size varies: 2.5 standard deviations are allowed for.
    test = min(0.2, max(0.05, math.ceil(100 * 30 / max(seen.rows, 1)) / 100))
    expected = test * seen.rows
    golden = max(1, min(_GOLDEN, int(expected - 2.5 * math.sqrt(expected))))
    return _TEMPLATE.format(
        title=" ".join(data.name.split()),
        model=name.lower(),
        recipe=path,
        rows=f"{seen.rows:,}",
        looked=" ".join(looked.split()),
        name=_quoted(name),
        path=_quoted(data.as_posix()),
        format=seen.format,
        columns=columns,
        language=seen.language,
        characters=_characters(seen, embedded=False),
        validation=min(0.1, test),
        test=test,
        system=_SYSTEM[seen.language],
        max_length=_MAX_LENGTH,
        golden=golden,
        cpu_characters=_characters(seen, embedded=True),
        cpu_rows=_LARGE_FILE_ROWS,
    )


def _columns(data: Path, seen: Peek) -> tuple[str, str]:
    if seen.prompt and seen.completion and seen.prompt != seen.completion:
        return seen.prompt, seen.completion
    if len(seen.columns) == 2:
        return seen.columns[0], seen.columns[1]
    raise DataError(
        f"{data} has the columns {', '.join(seen.columns)}, and none of them looks like "
        f"{'the questions' if not seen.prompt else 'the answers'}",
        "Rename them in the file's first line: prompt for what is asked, completion for what is answered.",
    )


def _characters(seen: Peek, embedded: bool) -> int:
    return int((_MAX_LENGTH - _FRAME_TOKENS) / _TOKENS[seen.language, embedded] // 10 * 10)


def _quoted(text: str) -> str:
    # A JSON string is a YAML one, whatever it holds.
    return text if re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) else json.dumps(text, ensure_ascii=False)
