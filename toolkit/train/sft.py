"""Supervised fine-tuning (TRL's SFTTrainer) on prompt/completion rows, loss on the answers only."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from toolkit.errors import DataError
from toolkit.models.bases import resolve_base
from toolkit.models.chat_template import template_file
from toolkit.models.ends import ends_of
from toolkit.models.safetensors_file import writing
from toolkit.recipe.schema import Recipe
from toolkit.run.artifacts import Artifact, read_jsonl, text_sha256, write_json, write_text
from toolkit.run.facts import AdapterFacts, BaseFacts, DatasetFacts, SourceLoss
from toolkit.train.memory import memory_advice
from toolkit.train.model import Loaded, autocast_of, load_for_training
from toolkit.train.rows import ALL_SOURCES, LOSS_ROWS, NOT_LEARNED, TokenizedRow, losses, source_of, tokenized
from toolkit.train.told import look_at, told

stderr = Console(stderr=True)

CHECKPOINTS = "checkpoints"


def train(recipe: Recipe, dataset: Artifact[DatasetFacts], out: Path) -> AdapterFacts:
    """Train an adapter (or, with method "full", the whole model) and leave it in `out`.

    A killed run that finds its own checkpoints in `out` goes on from the last complete one.

    Raises:
        DataError: most rows are too long for `train.max_length`, or the numbers break down.
        ResourceError: memory ran out; the hint lists what to lower. Or the disk is full.
    """
    base = resolve_base(recipe.base)
    rows = read_jsonl(dataset.folder / "train.jsonl")
    held_out = read_jsonl(dataset.folder / "validation.jsonl")
    with memory_advice(recipe), writing(out):
        loaded = load_for_training(recipe, base)
        return _train(recipe, base, loaded, rows, held_out, out)


def _train(
    recipe: Recipe,
    base: BaseFacts,
    loaded: Loaded,
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    out: Path,
) -> AdapterFacts:
    # After the model: Unsloth must be imported before these.
    from toolkit.train.forward import computed_in, record_forward
    from toolkit.train.progress import TrainingProgress, cut_metrics, last_complete_checkpoint

    model, tokenizer = loaded.model, loaded.tokenizer
    if recipe.train.chat_template is not None:
        tokenizer.chat_template = template_file(recipe.train.chat_template)
    splits = {"validation": held_out, "train": rows}
    if unlisted := ends_of(Path(base.folder), tokenizer).told():
        stderr.print(unlisted[:1].upper() + unlisted[1:] + ".", style="yellow", markup=False)
    fields = recipe.train.chat_template_kwargs
    found = look_at(tokenizer, rows, fields)
    for line in told(found):
        stderr.print(line, markup=False)
    sequences, long = tokenized(tokenizer, rows, recipe.train.max_length, fields)
    validation, long_held_out = tokenized(tokenizer, held_out, recipe.train.max_length, fields)
    _list_long(long + long_held_out, recipe.train.max_length, out)
    checkpoints = out / CHECKPOINTS
    resume = last_complete_checkpoint(checkpoints)
    for folder in checkpoints.glob("checkpoint-*"):
        if folder != resume and (resume is None or _step(folder) > _step(resume)):
            shutil.rmtree(folder)
    cut_metrics(out / "metrics.jsonl", _step(resume) if resume else 0)
    sources = sorted({source_of(row) for row in rows + held_out})
    sources = sources if len(sources) > 1 else []
    before = _losses_before(out, model, validation, sources)
    progress = TrainingProgress(out / "metrics.jsonl")
    trainer = _trainer(recipe, loaded, sequences, checkpoints, progress)
    if resume:
        stderr.print(f"Going on from step {_step(resume)}, the last complete checkpoint.")
    try:
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        progress.bar.stop()
    record_forward(trainer, tokenizer, splits, recipe.train.max_length, out, fields)
    compared = _compared(before, losses(model, validation, sources), validation)
    for name, loss in compared.items():
        stderr.print(
            f"Validation loss {f'of {name} ' if name else ''}{loss.before:.3f} → {loss.after:.3f}, perplexity "
            f"{math.exp(loss.before):.1f} → {math.exp(loss.after):.1f}, over {loss.measured} of {loss.rows} rows",
            markup=False,
        )
    of_all = compared.get(ALL_SOURCES)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    (out / "loss_before.json").unlink(missing_ok=True)
    _name_base(out, base)
    return AdapterFacts(
        method=recipe.train.method,
        base=base,
        # `_trainer` makes float32 of all that is trained, and so it is saved.
        base_dtype="float32" if recipe.train.method == "full" else loaded.base_dtype,  # type: ignore[arg-type]
        quantization=loaded.quantization,
        chat_template_sha256=text_sha256(tokenizer.get_chat_template()),
        chat_template_kwargs=fields,
        system=recipe.system,
        trained_here=True,
        validation_loss_before=of_all.before if of_all else None,
        validation_loss_after=of_all.after if of_all else None,
        validation_by_source={name: compared.get(name) for name in sources},
        validation_rows=len(validation),
        validation_rows_measured=min(len(validation), LOSS_ROWS),
        steps=int(result.global_step),
        train_rows=len(sequences),
        answers=sum(len(sequence.spans) for sequence in sequences),
        rows_split=found.split,
        thoughts=found.thoughts,
        calls=found.calls,
        rows_too_long=len(long) + len(long_held_out),
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        tokens_per_second=round(progress.tokens_per_second, 1),
        computed_in=computed_in(model, trainer.args),
    )


def _list_long(long: list[dict[str, Any]], max_length: int, out: Path) -> None:
    if long:
        write_text(out / "too_long.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in long))
        stderr.print(
            f"{len(long)} rows have more than train.max_length = {max_length} tokens: their answers behind that are left out; "
            "too_long.jsonl lists them."
        )


def _name_base(out: Path, base: BaseFacts) -> None:
    """Write the base's name, not its place on this machine, into what PEFT saved."""
    (out / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    path = out / "adapter_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base.id
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()  # a set in PEFT, in another order every time
        write_text(path, json.dumps(config, indent=2, sort_keys=True))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _losses_before(out: Path, model: Any, validation: list[TokenizedRow], sources: list[str]) -> dict[str, float]:
    # Kept in a file, so that a resumed run does not measure a half-trained model.
    path = out / "loss_before.json"
    if path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    # A fresh adapter changes nothing (B = 0), so this is the base, quantized as it will be trained on.
    before = losses(model, validation, sources)
    write_json(path, before)
    return before


def _compared(
    before: dict[str, float], after: dict[str, float], validation: list[TokenizedRow]
) -> dict[str, SourceLoss]:
    rows = Counter(row.source for row in validation) | {ALL_SOURCES: len(validation)}
    return {
        name: SourceLoss(before=before[name], after=loss, rows=rows[name], measured=min(rows[name], LOSS_ROWS))
        for name, loss in after.items()
    }


def _trainer(recipe: Recipe, loaded: Loaded, rows: list[TokenizedRow], checkpoints: Path, progress: Any) -> Any:
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer

    settings = recipe.train
    config = SFTConfig(
        output_dir=str(checkpoints),
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optim,
        max_length=None,  # `tokenized` left longer rows out; TRL would cut them
        train_sampling_strategy=settings.train_sampling_strategy,
        # Never all logits at once: by TRL's loss, or by Unsloth's own, which TRL's would push aside.
        loss_type="nll" if loaded.through_unsloth else "chunked_nll",
        **autocast_of(recipe),
        gradient_checkpointing=settings.gradient_checkpointing,
        logging_steps=settings.logging_steps,
        include_num_input_tokens_seen="non_padding",  # TRL counts them too, Unsloth's trainer does not
        save_steps=settings.save_steps,
        save_total_limit=2,
        seed=settings.seed,
        data_seed=settings.seed,
        report_to=settings.report_to,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )
    if settings.report_to == "tensorboard":
        # Beside the artifact, not in it: its files tell times and hosts.
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(checkpoints.parent.parent / "tensorboard")
    disable_progress_bars()
    # As tokens with labels: TRL and Unsloth each render conversations in their own way.
    examples = [row.example() for row in rows]
    trainer = SFTTrainer(
        model=loaded.model,
        args=config,
        train_dataset=Dataset.from_list(examples),
        processing_class=loaded.tokenizer,
        callbacks=[progress],
    )
    # TRL rounds the adapter of a quantized base to bfloat16; a resumed run would then go on in float32, elsewhere.
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    _check_batches(trainer, examples)
    return trainer


def _check_batches(trainer: Any, examples: list[dict[str, list[int]]]) -> None:
    """Ask the trainer's own dataset and collator for what it will train on: nothing cut, nothing else learned."""
    prepared = trainer.train_dataset
    kept = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in prepared]
    if kept == examples:
        some = range(min(4, len(examples)))
        batch = trainer.data_collator([prepared[index] for index in some])["labels"]
        # In one row where the trainer does without padding, as Unsloth may.
        if batch[batch != NOT_LEARNED].tolist() == [x for i in some for x in examples[i]["labels"] if x != NOT_LEARNED]:
            return
    raise DataError(
        "the trainer changed the rows: it would learn from other tokens than the answers",
        "The versions installed here do not fit together: make setup",
    )
