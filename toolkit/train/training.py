"""The training stage: base, adapter, checkpoints, progress and what is recorded, whatever the objective."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from toolkit.errors import DataError
from toolkit.models.bases import resolve_base
from toolkit.models.chat_template import template_file
from toolkit.models.ends import ends_of
from toolkit.models.packing import pack_rows
from toolkit.models.pictures import rules_of
from toolkit.models.processor import attend_without_mask, speed_up
from toolkit.models.safetensors_file import writing
from toolkit.models.seen import seen_rows
from toolkit.recipe.schema import Recipe
from toolkit.recipe.training import SAMPLED
from toolkit.run.artifacts import Artifact, text_sha256, write_json, write_text
from toolkit.run.facts import AdapterFacts, BaseFacts, DatasetFacts, SourceLoss
from toolkit.run.hardware import has_bfloat16_products
from toolkit.run.processes import keep_freed_memory
from toolkit.train.adapter import resized_rows, save_adapter
from toolkit.train.answer_loss import use_in_trl
from toolkit.train.fits import learns_from_pictures
from toolkit.train.memory import memory_advice
from toolkit.train.methods import examples_of, trainer_of
from toolkit.train.methods.common import Order
from toolkit.train.model import Loaded, load_for_training
from toolkit.train.own_rewards import Reward
from toolkit.train.rows import ALL_SOURCES, LOSS_ROWS, TokenizedRow, losses, source_of
from toolkit.train.told import look_at, told
from toolkit.train.world import check_engine, check_world, is_first, wait_for_all, whole_weights

stderr = Console(stderr=True)

CHECKPOINTS = "checkpoints"


def train(
    recipe: Recipe,
    dataset: Artifact[DatasetFacts],
    out: Path,
    start: Artifact[AdapterFacts] | None = None,
    judge: Artifact[AdapterFacts] | None = None,
    own_rewards: Path | None = None,
) -> AdapterFacts:
    """Train an adapter (or, with method "full", the whole model) and leave it in `out`.

    A killed run that finds its own checkpoints in `out` goes on from the last complete one. Of processes that train together each
    calls this; what computes is done by all of them, since weights may be divided, and the first alone writes.

    Args:
        recipe: as the step sees it (`Recipe.at`).
        start: what an earlier step left; it is trained on.
        judge: a reward model that an earlier step left, for rloo.
        own_rewards: a Python file of the user's with rewards (see `toolkit.train.rewards`).

    Raises:
        DataError: most rows are too long for `train.max_length`, a reward fails, or the numbers break down.
        ResourceError: memory ran out; the hint lists what to lower. Or the disk is full.
        ExternalToolError: there are other processes than `train.num_processes`, or they are divided otherwise.
    """
    check_world(recipe.train)
    base = resolve_base(recipe.base)
    rules = rules_of(Path(base.folder)) if dataset.facts.pictures else None
    if rules is not None and (faults := learns_from_pictures(recipe.train, str(dataset.folder))):
        raise faults[0]  # of a row behind the first ones, which were looked at before anything was done
    rows = seen_rows(dataset.folder, "train", rules)
    held_out = seen_rows(dataset.folder, "validation", rules)
    with memory_advice(recipe), writing(out):
        loaded = load_for_training(recipe, base, start.folder if start else None)
        if not torch.cuda.is_available() and recipe.train.distributed == "none":
            _use_the_processor(recipe, loaded)
        order = Order(
            recipe, loaded, out / CHECKPOINTS, goes_on=start is not None, rewards=_rewards(recipe, own_rewards),
            judge=_judge(judge), rules=rules,
        )  # fmt: skip
        return _train(order, base, rows, held_out, out)


def _use_the_processor(recipe: Recipe, loaded: Loaded) -> None:
    keep_freed_memory()
    bfloat16 = recipe.train.bf16 and has_bfloat16_products()
    if hasattr(loaded.model, "peft_config"):
        speed_up(loaded.model, bfloat16)
    if recipe.train.objective != "reward" and not pack_rows(loaded.model, bfloat16 or loaded.base_dtype != "float32"):
        attend_without_mask(loaded.model)
    use_in_trl(bfloat16)


def _rewards(recipe: Recipe, own: Path | None) -> Mapping[str, Reward]:
    if recipe.train.objective not in SAMPLED:
        return {}
    from toolkit.train.rewards import named

    return named(recipe.train.rewards, own)


def _judge(artifact: Artifact[AdapterFacts] | None) -> Callable[[list[list[int]]], list[float]] | None:
    if artifact is None:
        return None
    from toolkit.train.judge import load_judge

    return load_judge(artifact)


def _train(
    order: Order, base: BaseFacts, rows: list[dict[str, Any]], held_out: list[dict[str, Any]], out: Path
) -> AdapterFacts:
    # After the model: Unsloth must be imported before these.
    from toolkit.train.forward import computed_in, record_forward
    from toolkit.train.progress import TrainingProgress, cut_metrics, last_complete_checkpoint

    recipe, loaded, checkpoints = order.recipe, order.loaded, order.checkpoints
    model, tokenizer, objective = loaded.model, loaded.tokenizer, recipe.train.objective
    if recipe.train.chat_template is not None:
        tokenizer.chat_template = template_file(recipe.train.chat_template)
    if unlisted := ends_of(Path(base.folder), tokenizer).told():
        stderr.print(unlisted[:1].upper() + unlisted[1:] + ".", style="yellow", markup=False)
    fields = recipe.train.chat_template_kwargs
    found = look_at(tokenizer, rows, fields)
    for line in told(found):
        stderr.print(line, markup=False)
    given, learnt, long = examples_of(objective, tokenizer, rows, order)
    # Few rows are held out, and one that is long says nothing of the others.
    of_held_out = examples_of(objective, tokenizer, held_out, order) if held_out else None
    validation = of_held_out.learnt if of_held_out and _has_losses(objective) else []
    resume = last_complete_checkpoint(checkpoints)
    if is_first():
        _list_long([*long, *(of_held_out.long if of_held_out else [])], recipe.train.max_length, out)
        for folder in checkpoints.glob("checkpoint-*"):
            if folder != resume and (resume is None or _step(folder) > _step(resume)):
                shutil.rmtree(folder)
        cut_metrics(out / "metrics.jsonl", _step(resume) if resume else 0)
    sources = sorted({source_of(row) for row in rows + held_out})
    sources = sources if len(sources) > 1 else []
    before = _losses_before(out, model, validation, sources)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    progress = TrainingProgress(out / "metrics.jsonl", objective)
    order = replace(order, held_out=_looked_at(recipe, of_held_out.given if of_held_out else []))
    trainer = trainer_of(objective, order, given, [progress])
    check_engine(recipe.train, trainer)
    if resume:
        stderr.print(f"Going on from step {_step(resume)}, the last complete checkpoint.")
    try:
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        progress.bar.stop()
    best = _kept(trainer.state) if recipe.train.early_stopping_patience else None
    if objective != "reward":
        record_forward(trainer, tokenizer, {"validation": held_out, "train": rows}, recipe, out)
    compared = _compared(before, losses(model, validation, sources), validation)
    _tell(compared)
    of_all = compared.get(ALL_SOURCES)
    weights = whole_weights(trainer, recipe.train)
    pair_accuracy = _pair_accuracy(order, of_held_out.given if of_held_out else [])
    wait_for_all()
    if is_first():
        _save(loaded, out, weights)
        shutil.rmtree(checkpoints, ignore_errors=True)
        (out / "loss_before.json").unlink(missing_ok=True)
        _name_base(out, base)
        if order.rules is not None:
            order.rules.write(out)
    return AdapterFacts(
        method=recipe.train.method,
        objective=objective,
        base=base,
        # What is trained is made float32, and so it is saved.
        base_dtype="float32" if recipe.train.method == "full" else loaded.base_dtype,  # type: ignore[arg-type]
        quantization=loaded.quantization,
        vocabulary=resized_rows(model, Path(base.folder)) if recipe.tokens.add else None,
        chat_template_sha256=text_sha256(tokenizer.get_chat_template()),
        chat_template_kwargs=fields,
        pictures=order.rules,
        system=recipe.system,
        trained_here=True,
        validation_loss_before=of_all.before if of_all else None,
        validation_loss_after=of_all.after if of_all else None,
        validation_by_source={name: compared.get(name) for name in sources},
        validation_rows=len(validation),
        validation_rows_measured=min(len(validation), LOSS_ROWS),
        pair_accuracy=pair_accuracy,
        steps=int(result.global_step),
        best_step=best,
        train_rows=len(given),
        answers=sum(len(sequence.spans) for sequence in learnt),
        rows_split=found.split,
        thoughts=found.thoughts,
        calls=found.calls,
        rows_too_long=len(long) + len(of_held_out.long if of_held_out else []),
        trained_parameters=trained,
        tokens_per_second=round(progress.tokens_per_second, 1),
        computed_in=computed_in(model, trainer.args),
    )


def _looked_at(recipe: Recipe, held_out: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if recipe.train.looks_every is not None and not held_out:
        raise DataError(
            "train.early_stopping_patience and eval_steps look at held-out rows, and there are none",
            "Give more rows, raise data.validation, or leave these keys out.",
        )
    return held_out


def _kept(state: Any) -> int:
    """Tell which step's weights are kept; gives it."""
    best = int(state.best_global_step)
    early = f"Stopped at step {state.global_step} of {state.max_steps}" if state.global_step < state.max_steps else ""
    stderr.print(
        f"{early or f'All {state.max_steps} steps were done'}: the loss of held-out rows was lowest at step {best} "
        f"({state.best_metric:.3f}), whose weights are kept."
    )
    return best


def _has_losses(objective: str) -> bool:
    """Whether the loss of the rows' own answers says how far training came: rewards may rise while it rises too."""
    return objective not in (*SAMPLED, "reward")


def _tell(compared: dict[str, SourceLoss]) -> None:
    for name, loss in compared.items():
        stderr.print(
            f"Validation loss {f'of {name} ' if name else ''}{loss.before:.3f} → {loss.after:.3f}, perplexity "
            f"{math.exp(loss.before):.1f} → {math.exp(loss.after):.1f}, over {loss.measured} of {loss.rows} rows",
            markup=False,
        )


def _pair_accuracy(order: Order, pairs: list[dict[str, Any]]) -> float | None:
    """Of a reward model: the share of held-out pairs whose better answer it gives the larger number."""
    if order.recipe.train.objective != "reward" or not pairs:
        return None
    from toolkit.train.judge import scores

    chosen, rejected = (
        scores(order.loaded.model, [[*row["prompt_ids"], *row[side]] for row in pairs])
        for side in ("chosen_ids", "rejected_ids")
    )
    share = sum(better > worse for better, worse in zip(chosen, rejected)) / len(pairs)
    stderr.print(f"The reward model tells the better answer in {share:.0%} of {len(pairs)} held-out pairs.")
    return share


def _save(loaded: Loaded, out: Path, weights: dict[str, Any] | None) -> None:
    """Write what was trained.

    Args:
        weights: put together, where each process holds a part of them.
    """
    if hasattr(loaded.model, "peft_config"):
        save_adapter(loaded.model, loaded.start, out, weights)
    else:
        loaded.model.save_pretrained(out, state_dict=weights)
    loaded.tokenizer.save_pretrained(out)


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
    if is_first():
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
