"""What a run will cost, estimated before anything is spent: memory, disk and time of every stage.

Estimates, not promises: formulas and the measured rates behind them are in the docstrings here and in
`toolkit.recipe.estimates`. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.errors import MAKE_ROOM, ExternalToolError, ResourceError, ToolkitError
from toolkit.models.bases import is_here, read_chat_template, settings_folder
from toolkit.models.convertible import check_converts
from toolkit.ollama.predict import told_before_training
from toolkit.recipe.counted import Rows, packed, rows_of
from toolkit.recipe.estimates import (
    CARD_START_SECONDS,
    CUDA_CONTEXT_BYTES,
    GIB,
    IMATRIX_TOKENS,
    IMATRIX_TOKENS_PER_SECOND,
    PROCESS_BYTES,
    TRAINING_PROCESS_BYTES,
    step_seconds,
    tokens_per_second,
    training_memory,
)
from toolkit.recipe.schema import AUTO, Recipe
from toolkit.recipe.sizes import BITS_PER_WEIGHT, EMBEDDED, Shape, shape_of_base
from toolkit.recipe.trained import trained_parameters
from toolkit.recipe.training import SAMPLED, SHARDED, Train
from toolkit.run.hardware import Hardware, free_disk_bytes

if TYPE_CHECKING:
    pass

GENERAL_TOKENS = 4000
"""Of the general texts and questions that `evaluate` reads, with all choices."""


@dataclass(frozen=True)
class StagePlan:
    """One stage; bytes and seconds."""

    name: str
    memory_bytes: int
    gpu_memory_bytes: int
    disk_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The whole run."""

    name: str
    profile: str
    base: str
    parameters: int
    trained_parameters: int
    train_rows: int
    tokens_per_row: int
    """With those of its pictures."""
    picture_tokens_per_row: int
    steps: int
    stages: list[StagePlan]
    lower: list[str]
    """Settings that lower the memory of training, as `--set` takes them, cheapest first."""
    notes: list[str]


def make_plan(recipe: Recipe, hardware: Hardware) -> Plan:
    """Estimate a run of `recipe` on `hardware`.

    Raises:
        DataError: the base folder's config.json cannot be read.
    """
    from toolkit.train.memory import settings_to_lower

    shape, note = shape_of_base(recipe.base)
    notes = ["These are estimates; report.md says what a finished run did cost."]
    notes += [note] if note else []
    notes += _not_converted(recipe.base) or _not_by_its_template(recipe)
    rows = rows_of(recipe, notes)
    train = recipe.train
    if train.packing:
        rows = packed(rows, train.max_length)
        if not hardware.gpu_memory_bytes:
            notes.append("Packed rows are slower on a CPU than rows of their own: train.packing is for a card.")
    batch = train.rows_a_step / (train.num_generations if train.objective in SAMPLED else 1)
    steps = (
        train.max_steps if train.max_steps > 0 else math.ceil(math.ceil(rows.train / batch) * train.num_train_epochs)
    )
    if recipe.adapter is not None or not rows.train:
        steps = 0
    elif train.num_processes > 1:
        notes.append(_of_a_step(train, rows.tokens))
    if recipe.profile.startswith("gpu") and not hardware.gpu_memory_bytes:
        notes.append(f"Profile {recipe.profile}, but no NVIDIA card is here: everything is counted on the CPU.")
    return Plan(
        recipe.name,
        recipe.profile,
        recipe.base,
        shape.parameters() + (shape.vision.parameters() if shape.vision else 0),
        trained_parameters(recipe, shape),
        rows.train,
        round(rows.tokens),
        round(rows.shown),
        steps,
        [*_earlier(recipe, hardware, notes), *_stages(recipe, shape, hardware, rows, steps)],
        settings_to_lower(recipe),
        notes,
    )


def _earlier(recipe: Recipe, hardware: Hardware, notes: list[str]) -> list[StagePlan]:
    """The stages of the steps before the recipe's own training."""
    found = []
    for step in recipe.earlier:
        plan = make_plan(recipe.at(step), hardware)
        notes += [note for note in plan.notes if note not in notes]
        found += [
            replace(stage, name=f"{stage.name}-{step}") for stage in plan.stages if stage.name in ("prepare", "train")
        ]
    return found


def _of_a_step(train: Train, tokens: float) -> str:
    """What a step learns from where several processes train together."""
    rows = train.rows_a_step
    return (
        f"{train.num_processes} processes train together ({train.distributed}): a step learns from {rows} rows, about "
        f"{rows * tokens:,.0f} tokens ({train.per_device_train_batch_size} per_device_train_batch_size × "
        f"{train.gradient_accumulation_steps} gradient_accumulation_steps × {train.num_processes} num_processes)."
    )


def _not_converted(base: str) -> list[str]:
    """A note where llama.cpp cannot run what is tuned on this base; nothing is fetched to find out."""
    if not is_here(base):
        return []
    try:
        check_converts(settings_folder(base))
    except ExternalToolError:
        return ["Whether llama.cpp knows this architecture is told once it is set up: make setup"]
    except ToolkitError as error:
        return [error.message]
    return []


def _not_by_its_template(recipe: Recipe) -> list[str]:
    """A note where Ollama does not serve the base's own chat template; nothing is fetched to find out."""
    if not is_here(recipe.base):
        return []
    from toolkit.models.layout import architecture_of

    folder = settings_folder(recipe.base)
    told = told_before_training(
        architecture_of(folder), read_chat_template(folder) or "", recipe.train.chat_template_kwargs
    )
    return [f"{told}."] if told else []


def check_plan(plan: Plan, hardware: Hardware, folder: Path, runs: Collection[str]) -> list[ToolkitError]:
    """What this machine lacks for `plan`: memory, GPU memory, disk; empty when it fits.

    Args:
        folder: runs/<name>.
        runs: stages that will run; the others need nothing.
    """
    faults: list[ToolkitError] = []
    left = [stage for stage in plan.stages if stage.name in runs]
    hint = "Lower one of these, best first:\n  " + "\n  ".join(plan.lower)
    for stage in left:
        advice = (
            hint if stage.name.startswith("train") else "Close other programs, or take a smaller base: --set base=…"
        )
        if stage.memory_bytes > hardware.available_memory_bytes:
            have = hardware.available_memory_bytes
            faults.append(ResourceError(_short(stage.name, "memory", stage.memory_bytes, have), advice))
        if stage.gpu_memory_bytes > hardware.gpu_memory_bytes:
            have = hardware.gpu_memory_bytes
            faults.append(ResourceError(_short(stage.name, "GPU memory", stage.gpu_memory_bytes, have), advice))
    needed, free = sum(stage.disk_bytes for stage in left), free_disk_bytes(folder)
    if needed > free:
        advice = f"{MAKE_ROOM}; or make fewer export.file_types, or take a smaller base."
        faults.append(ResourceError(_short("the run", f"disk in {folder}", needed, free), advice))
    return faults


def _short(who: str, what: str, needed: float, have: float) -> str:
    return f"{who} needs about {needed / GIB:.1f} GiB of {what}, and {have / GIB:.1f} GiB are free"


def _stages(recipe: Recipe, shape: Shape, hardware: Hardware, rows: Rows, steps: int) -> list[StagePlan]:
    """Rates beside training, measured with the embedded base on 2 cores: 250 tokens/s read in fp32 and 200 answered, 100 MB/s
    through merge and convert, 30 million weights/s for each quantization, 350 tokens/s for verifying each file."""
    total, on_gpu = shape.parameters(), hardware.gpu_memory_bytes > 0
    seeing = shape.vision.parameters() if shape.vision else 0
    read = rows.read(shape)
    speed = EMBEDDED.parameters() / total * hardware.cores / 2
    rate = tokens_per_second(recipe, shape, hardware, read)
    train, export = recipe.train, recipe.export
    trained = trained_parameters(recipe, shape)
    made = [*([export.converted] if export.makes_converted or seeing else []), *export.quantized]
    size = {name: total * BITS_PER_WEIGHT[name] / 8 for name in made}
    converted, merged = size.get(export.converted, 0.0), (total + seeing) * (2 if on_gpu else 4)
    projector = seeing * 2
    listed = recipe.golden.prompts
    prompts = recipe.golden.from_test + (len(listed) if isinstance(listed, list) else _lines(listed) if listed else 0)
    answers = prompts * recipe.golden.max_new_tokens
    largest = shape.embedding_parameters() * 4
    peak = training_memory(recipe, shape, rows.longest, on_gpu, rows.largest, rows.largest * rows.patches)
    told = prompts * read
    looked = told if rows.shown else 0  # pictures are read by every process anew
    whole, streamed = (total + seeing) * 4, 2 * (largest + 4 * shape.linear_parameters() / shape.num_hidden_layers)
    golden = whole if whole < 0.6 * hardware.available_memory_bytes else streamed
    scores = (rows.longest + recipe.golden.max_new_tokens) * shape.vocab_size * 8
    download = 0 if recipe.base.startswith("embedded:") or is_here(recipe.base) else (total + seeing) * 2
    host = PROCESS_BYTES
    # One process a card; on a CPU each holds all.
    training = train.num_processes * (TRAINING_PROCESS_BYTES + (2 * GIB if on_gpu else peak))
    if on_gpu and train.distributed in SHARDED:  # loaded whole before it is cut into parts
        training += train.num_processes * total * 2
    served = size[export.serve] if export.serve in size else max(size.values())  # auto: one of them
    seconds = CARD_START_SECONDS if on_gpu else 10.0
    looks = 2 + (steps // train.looks_every if train.looks_every else 0)
    seconds += steps * step_seconds(recipe, shape, hardware, read)
    seconds += looks * rows.held_out * read / (3 * rate)
    table: list[tuple[str, float, float, float, float]] = [
        (
            "prepare",
            0.3 * GIB + 8 * rows.bytes,
            0,
            3 * rows.bytes + 2 * rows.pixels,  # a photo as PNG has two bytes a pixel
            2 + rows.bytes / 2e6 + rows.pixels / 2e7,
        ),
        (
            "train",
            host if recipe.adapter else training,
            CUDA_CONTEXT_BYTES + peak if on_gpu and not recipe.adapter else 0,
            download
            + trained * (4 if recipe.adapter else 4 + 24),  # the adapter, and two checkpoints with Adam's states
            10 if recipe.adapter else seconds,
        ),
        ("golden", host + golden, 0, 2 * answers * shape.vocab_size * 4, 10 + 2 * (answers / 200 + told / 250) / speed),
        ("convert", host + 2 * largest, 0, converted + projector, 10 + (converted + projector) / 1e8),
        (
            "quantize",
            0.5 * GIB,  # pieces of rows
            0,
            sum(size[name] for name in export.quantized),
            3 + len(export.quantized) * total / (6e7 * hardware.cores / 2),
        ),
        (
            "verify",
            host + max(size.values()) + scores,
            0,
            served,  # once more, with the summary in its metadata
            15 + len(size) * (answers + told + looked) / (350 * speed),
        ),
        (
            "create",
            0.3 * GIB + served + projector,
            0,
            served + projector,
            12 + (answers / 150 + 2 * told / 350 + 6 * looked / 350) / speed,
        ),
        ("evaluate", host + golden, 0, 0, _evaluate_seconds(recipe, rows, read, len(size), speed)),
        ("report", 0.3 * GIB, 0, 0, 3),
    ]
    if recipe.adapter is not None:
        table = table[1:]
    trained_at = next(place for place, row in enumerate(table) if row[0] == "train")
    if recipe.merge.folder:
        table.insert(trained_at + 1, ("merge", host + 3 * largest, 0, merged, 5 + merged / 1e8))
    if recipe.merge.onto == AUTO:
        table.insert(
            trained_at + 1, ("onto", host + golden, 0, 0, 15 + 2 * min(rows.held_out, 16) * read / (350 * speed))
        )
    if export.measures_imatrix:
        place = next(place for place, row in enumerate(table) if row[0] == "quantize")
        tokens = min(IMATRIX_TOKENS, max(1, rows.train) * rows.tokens)
        table.insert(place, ("imatrix", host + converted, 0, 0, 5 + tokens / (IMATRIX_TOKENS_PER_SECOND * speed)))
    return [StagePlan(n, round(m), round(g), round(d), round(s, 1)) for n, m, g, d, s in table]


def _evaluate_seconds(recipe: Recipe, rows: Rows, row: float, files: int, speed: float) -> float:
    """By rates measured with the embedded base on 2 cores: 350 tokens/s read, 150 answered in a batch, 50 by the server."""
    settings = recipe.evaluate
    held_out = min(rows.held_out, 32)
    questions = min(held_out, settings.rows)
    answers = questions * (settings.max_new_tokens or recipe.golden.max_new_tokens) / 2
    asked = questions * row if rows.shown else 0
    read = (2 + files) * (held_out * row + 2 * asked) + (3 * GENERAL_TOKENS if settings.forgetting else 0)
    return 15 + (read / 350 + (2 + files) * answers / 150 + asked / 350 + answers / 50) / speed


def check_seconds(recipe: Recipe, hardware: Hardware) -> tuple[float, float]:
    """About how long it takes to record the goldens, and then to judge one GGUF file; by the rates of `_stages`.

    Measured with the embedded base on 2 cores: 33 s for 20 goldens, 8 s for each file.
    """
    shape, _ = shape_of_base(recipe.base)
    speed = EMBEDDED.parameters() / shape.parameters() * hardware.cores / 2
    listed = recipe.golden.prompts
    prompts = recipe.golden.from_test + (len(listed) if isinstance(listed, list) else _lines(listed) if listed else 0)
    answers = prompts * recipe.golden.max_new_tokens
    return 15 + 2 * answers / (150 * speed), 3 + answers / (350 * speed) + shape.parameters() / 3e7


def _lines(path: str) -> int:
    try:
        return len([line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()])
    except (OSError, UnicodeDecodeError):
        return 16


def print_plan(plan: Plan) -> None:
    """The plan as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(
        f"[bold]{plan.name}[/], profile {plan.profile}: {plan.base}, {plan.parameters / 1e6:,.1f} M parameters, "
        f"{plan.trained_parameters / 1e6:,.2f} M of them trained; {plan.train_rows:,} rows of about "
        f"{plan.tokens_per_row:,} tokens"
        + (f" ({plan.picture_tokens_per_row:,} of them its pictures')" if plan.picture_tokens_per_row else "")
        + f", {plan.steps:,} steps"
    )
    table = Table("stage", "memory", "GPU memory", "disk", "time")
    for column in table.columns[1:]:
        column.justify = "right"
    for s in plan.stages:
        table.add_row(s.name, _gib(s.memory_bytes), _gib(s.gpu_memory_bytes), _gib(s.disk_bytes), _time(s.seconds))
    table.add_section()
    stages = plan.stages
    table.add_row(
        "all",
        _gib(max(s.memory_bytes for s in stages)),
        _gib(max(s.gpu_memory_bytes for s in stages)),
        _gib(sum(s.disk_bytes for s in stages)),
        _time(sum(s.seconds for s in stages)),
    )
    console.print(table)
    for note in plan.notes:
        console.print(note, markup=False, soft_wrap=True)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size else "–"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
