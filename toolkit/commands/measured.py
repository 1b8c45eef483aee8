"""Did it help, did it forget: of a recipe's model, or of anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.commands.options import (
    PATH,
    as_json_option,
    chat_template_kwargs_option,
    load,
    load_in_4bit_option,
    print_json,
    recipe_options,
    rewards_option,
)


@click.command()
@click.argument("recipe", type=PATH, required=False)
@recipe_options
@rewards_option
@click.option("--force", is_flag=True, help="With a recipe: redo it even when it is current.")
@click.option("--adapter", type=PATH, help="A PEFT adapter; its base is measured beside it.")
@click.option("--gguf", type=PATH, help="A GGUF file.")
@click.option("--ollama", default="", metavar="NAME:TAG", help="A model of the running Ollama.")
@click.option(
    "--base", default="", help="What a GGUF file or an Ollama model is compared with; of an adapter, its base."
)
@load_in_4bit_option
@chat_template_kwargs_option
@click.option("--data", default="", metavar="FILE", help="Rows that were not trained on, in any format (docs/data.md).")
@click.option("--system", default="", help="The system text of the rows.")
@click.option("--rows", type=click.IntRange(min=0), default=16, show_default=True, help="Rows to ask; 0: only losses.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=96, show_default=True, help="Of an answer.")
@click.option("--max-length", type=click.IntRange(min=32), default=2048, show_default=True, help="Tokens of a row.")
@click.option("--forgetting/--no-forgetting", default=True, help="Whether general texts are read too.")
@click.option("--lm-eval", "tasks", default="", metavar="TASKS", help="Run these tasks of lm-eval instead.")
@click.option("--task-folder", type=PATH, help="With --lm-eval: a folder with tasks of your own.")
@click.option("--limit", type=click.IntRange(min=1), help="With --lm-eval: examples of each task.")
@click.option("--out", type=PATH, help="Folder for evaluation.json and answers.jsonl.")
@as_json_option
def evaluate(
    recipe: Path | None, profile: str | None, settings: tuple[str, ...], rewards: Path | None, force: bool, tasks: str,
    task_folder: Path | None, limit: int | None, out: Path | None, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Say whether it helped and what it forgot: a recipe's model and its exports, or any one model.

    \b
    Example:  tune2ollama evaluate recipes/medical.yaml
    Example:  tune2ollama evaluate --adapter outputs/checkpoint-60 --data held-out.jsonl
    Example:  tune2ollama evaluate --gguf model-Q4_K_M.gguf --base ./Qwen2.5-0.5B-Instruct --data held-out.csv
    Example:  tune2ollama evaluate --ollama mymodel:latest --data held-out.csv --json
    Example:  tune2ollama evaluate --gguf model-Q4_K_M.gguf --lm-eval arc_easy --limit 50
    """
    if recipe is not None:
        _refuse_beside_recipe()
        found = _of_recipe(recipe, profile, settings, rewards, force)
    else:
        from toolkit.errors import UsageError
        from toolkit.evaluate.tool import Asked, measure, measure_tasks

        if profile or force or rewards:
            raise UsageError("--profile, --force, --rewards: there is no recipe to change", "Name the recipe first.")
        these = Asked(**asked, settings=settings)
        found = measure_tasks(these, tasks, task_folder, limit) if tasks else measure(these, out)
    if as_json:
        print_json(found)
    elif tasks and recipe is None:
        for task, metrics in found["results"].items():
            for metric, value in metrics.items():
                click.echo(f"{task:<24}{metric:<28}{value:.4f}" if isinstance(value, float) else f"{task:<24}{value}")
    else:
        from rich.console import Console, Group

        from toolkit.report.evaluated import evaluation_parts

        Console(highlight=False).print(Group(*evaluation_parts(found)))


def _of_recipe(
    recipe: Path, profile: str | None, settings: tuple[str, ...], rewards: Path | None, force: bool
) -> dict[str, Any]:
    import json

    from toolkit.report.summary import EVALUATION
    from toolkit.run import pipeline

    resolved = load(recipe, profile, settings)
    artifacts = pipeline.run(resolved, upto="evaluate", force="evaluate" if force else "", rewards=rewards)
    found: dict[str, Any] = json.loads((artifacts["evaluate"].folder / EVALUATION).read_text(encoding="utf-8"))
    return found


def _refuse_beside_recipe() -> None:
    """Raises UsageError for options that a recipe says itself."""
    from toolkit.errors import UsageError

    context = click.get_current_context()
    own = {"recipe", "profile", "settings", "rewards", "force", "as_json"}
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in own
        and context.get_parameter_source(str(parameter.name)) == click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)}: beside a recipe this changes nothing",
            "The recipe says all that: leave it out, or change the recipe: --set evaluate.rows=32",
        )
